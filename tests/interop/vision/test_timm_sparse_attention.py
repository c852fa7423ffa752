"""The xFormers dialect's drop-in for timm's attention, put in place by the recursive function that its users have."""

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

import variform as vf
from variform.dialects.xformers.components.attention.attention_mask import AttentionMask
from variform.dialects.xformers.helpers.timm_sparse_attention import TimmSparseAttention
from variform.ops.masks import Window


def replace(module: nn.Module, att_mask: Any) -> nn.Module:
    """As published, the size `dim` included, which is too large: the children that follow are those of the model."""
    output = module
    if isinstance(module, timm.models.vision_transformer.Attention):
        dim = module.qkv.weight.shape[1] * module.num_heads
        output = TimmSparseAttention(dim, module.num_heads, attn_mask=att_mask)
    for name, child in module.named_children():
        output.add_module(name, replace(child, att_mask))
    return output


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, **options).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"qkv_bias": False}, {"scale_attn_norm": True}], ids=str)
def test_a_mask_that_allows_everything_changes_nothing(options: dict[str, Any]) -> None:
    wanted = vit(**options)(images())
    model = replace(vit(**options), torch.ones(17, 17, dtype=torch.bool)).eval()
    assert sum(isinstance(m, TimmSparseAttention) for m in model.modules()) == 3
    torch.testing.assert_close(model(images()), wanted, rtol=0, atol=1e-5)


def test_a_sparse_mask_is_timms_own_mask() -> None:
    mask = torch.rand(17, 17, generator=torch.Generator().manual_seed(2)) < 0.2
    mask |= torch.eye(17, dtype=torch.bool)
    wanted = vit().forward_features(images(), attn_mask=mask)
    forms = (mask, AttentionMask.from_bool(mask), mask.float().log())
    for form in forms:
        model: Any = replace(vit(), form).eval()
        torch.testing.assert_close(model.forward_features(images()), wanted, rtol=0, atol=1e-5)


def test_children_and_keywords_of_a_block() -> None:
    names = [name for name, _ in TimmSparseAttention(8, 2).named_children()]
    assert names == ["qkv", "attn_drop", "proj", "proj_drop"]
    torch.manual_seed(0)
    block = Block(16, 4, qkv_bias=True, qk_norm=True, attn_layer=TimmSparseAttention, norm_layer=nn.LayerNorm).eval()
    torch.manual_seed(0)
    theirs = Block(16, 4, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm).eval()
    theirs.load_state_dict(block.state_dict())
    x = torch.randn(2, 9, 16)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    for keywords in ({}, {"attn_mask": mask}, {"is_causal": True}, {"attn_mask": torch.randn(9, 9)}):
        torch.testing.assert_close(block(x, **keywords), theirs(x, **keywords), rtol=0, atol=1e-5)


def test_every_keyword_takes_effect() -> None:
    x = torch.randn(2, 9, 16)

    def run(**options: Any) -> Tensor:
        torch.manual_seed(0)
        return TimmSparseAttention(16, **{"num_heads": 4, **options})(x)

    plain = run()
    changes: list[dict[str, Any]] = [
        {"num_heads": 2},
        {"qkv_bias": True},
        {"attn_drop": 0.5},
        {"proj_drop": 0.5},
        {"attn_mask": Window(1, 1)},
        {"qk_norm": True, "norm_layer": nn.LayerNorm},
        {"scale_norm": True, "norm_layer": nn.LayerNorm},
        {"proj_bias": False},
    ]
    for change in changes:
        assert not torch.allclose(run(**change), plain, atol=1e-6), change
    assert TimmSparseAttention(16, 4, dtype=torch.float64).qkv.weight.dtype == torch.float64
    assert TimmSparseAttention(16, 4, device="meta").qkv.weight.is_meta


def test_mistakes() -> None:
    with pytest.raises(vf.ConfigError, match="must divide dim = 16") as caught:
        TimmSparseAttention(16, 3)
    assert isinstance(caught.value, AssertionError)
    with pytest.raises(vf.ConfigError, match="what makes them"):
        TimmSparseAttention(16, 4, qk_norm=True)
    with pytest.raises(vf.ShapeError, match="does not fit"):
        TimmSparseAttention(16, 4, attn_mask=torch.ones(5, 5, dtype=torch.bool))(torch.randn(1, 9, 16))
