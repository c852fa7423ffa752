"""Attentions of the library inside timm's vision transformers."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import variform as vf
from variform.interop.timm import replace_attention
from variform.ops.masks import Window


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
    return VisionTransformer(**{**sizes, **options}).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no offsets": {"qkv_bias": False},
    "norms": {"qk_norm": True, "norm_layer": nn.LayerNorm},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_softmax_attention_changes_nothing(options: dict[str, Any]) -> None:
    before = vit(**options)
    after = copy.deepcopy(before)
    report = replace_attention(after)
    assert [line.path for line in report.replaced] == [f"blocks.{i}.attn" for i in range(3)]
    assert after.state_dict().keys() == before.state_dict().keys()
    torch.testing.assert_close(after(images()), before(images()), rtol=0, atol=1e-5)
    for model in (before, after):
        model(images()).square().sum().backward()
    wanted = {name: p.grad for name, p in before.named_parameters()}
    for name, p in after.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-3, atol=1e-5)


def test_a_mask_is_honoured() -> None:
    before, after, symbolic = vit(), vit(), vit()
    mask = (torch.arange(17)[:, None] - torch.arange(17)).abs() <= 2
    replace_attention(after, with_=mask)
    replace_attention(symbolic, with_=Window(2, 2))
    wanted = before.forward_features(images(), attn_mask=mask)
    torch.testing.assert_close(after.forward_features(images()), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(symbolic.forward_features(images()), wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(before.forward_features(images()), wanted, atol=1e-3)


@pytest.mark.parametrize("form", ["bool", "float"])
def test_masks_of_the_caller_reach_it(form: str) -> None:
    before, after = vit(), vit()
    replace_attention(after)
    mask = torch.rand(17, 17, generator=torch.Generator().manual_seed(2)) > 0.3
    mask |= torch.eye(17, dtype=torch.bool)
    given = mask if form == "bool" else torch.randn(17, 17).masked_fill(~mask, -torch.inf)
    wanted = before.forward_features(images(), attn_mask=given)
    torch.testing.assert_close(after.forward_features(images(), attn_mask=given), wanted, rtol=0, atol=1e-5)
    block = copy.deepcopy(before).blocks[0]
    x = torch.randn(2, 17, 32)
    torch.testing.assert_close(after.blocks[0](x, is_causal=True), block(x, is_causal=True), rtol=0, atol=1e-5)


def test_some_layers_and_other_attentions() -> None:
    model = vit(attn_drop_rate=0.1)
    whole = model(images())
    report = replace_attention(model, where="blocks.[12].attn", with_={"part": "attention/linear"})
    assert [line.after for line in report.replaced] == ["linear", "linear"]
    assert report.left == ("blocks.0.attn",)
    assert not torch.allclose(model(images()), whole, atol=1e-4)
    again = vit(attn_drop_rate=0.1)
    replace_attention(again)
    assert again.blocks[0].attn.variform_heads.attention.dropout == pytest.approx(0.1)
    again.train()
    assert not torch.equal(again(images()), again(images()))


def test_models_of_timms_registry() -> None:
    for name in ("vit_tiny_patch16_224", "deit_tiny_patch16_224"):
        torch.manual_seed(0)
        before = timm.create_model(name, img_size=32, depth=2).eval()
        after = copy.deepcopy(before)
        replace_attention(after)
        torch.testing.assert_close(after(images()), before(images()), rtol=0, atol=1e-5)


def test_a_relative_position_bias_is_not_lost() -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1, 1, 1), embed_dim=32)
    with pytest.raises(vf.ConfigError, match="relative position bias"):
        replace_attention(swin)


def test_mistakes() -> None:
    with pytest.raises(vf.ConfigError, match=r"fits 'block\.\*'.*blocks"):
        replace_attention(vit(), where="block.*")
    with pytest.raises(vf.ConfigError, match="the model has no attention"):
        replace_attention(nn.Linear(2, 2))
    model = vit()
    replace_attention(model, with_="linear")
    with pytest.raises(vf.ShapeError, match="cannot honour an attention mask"):
        model.forward_features(images(), attn_mask=torch.ones(17, 17, dtype=torch.bool).tril())
