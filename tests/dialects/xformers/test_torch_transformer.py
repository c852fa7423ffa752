"""Stacks in `torch.nn.Transformer`: the same function as PyTorch's own layers, with PyTorch's masks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from tests.dialects.xformers.cases import attention, decoder, encoder
from variform.dialects.xformers.factory import TorchDecoder, TorchEncoder, xFormer

DIM, HEADS, BATCH, SRC, TGT = 8, 2, 3, 7, 5
STYLE: dict[str, Any] = {"residual_norm_style": "post", "num_layers": 2, "position_encoding_config": None}


def torchs(batch_first: bool) -> Any:
    """PyTorch's own layers without the norm at the end, which post-norm layers do not need."""
    sizes = {"d_model": DIM, "nhead": HEADS, "dim_feedforward": 4 * DIM, "dropout": 0.0, "batch_first": batch_first}
    first = nn.TransformerEncoder(nn.TransformerEncoderLayer(**sizes), 2, enable_nested_tensor=False)
    last = nn.TransformerDecoder(nn.TransformerDecoderLayer(**sizes), 2)
    model = nn.Transformer(DIM, HEADS, custom_encoder=first, custom_decoder=last, batch_first=batch_first).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return model


def ours(like: Any, batch_first: bool) -> Any:
    plain = {"multi_head_config_masked": attention(), **STYLE}
    first, last = xFormer(encoder(**STYLE)).double(), xFormer(decoder(**plain)).double()
    sides = {"custom_encoder": TorchEncoder(first, batch_first), "custom_decoder": TorchDecoder(last, batch_first)}
    model = nn.Transformer(DIM, HEADS, **sides, batch_first=batch_first)
    for block, layer in zip(
        (*first.encoders, *last.decoders), (*like.encoder.layers, *like.decoder.layers), strict=True
    ):
        pairs = [(block.wrap_att, layer.self_attn, layer.norm1)]
        if hasattr(layer, "multihead_attn"):
            pairs.append((block.wrap_cross, layer.multihead_attn, layer.norm2))
        for wrapper, source, norm in pairs:
            copy_attention(wrapper.sublayer.layer, source)
            wrapper.norm.load_state_dict(norm.state_dict())
        block.feedforward.mlp[0].load_state_dict(layer.linear1.state_dict())
        block.feedforward.mlp[3].load_state_dict(layer.linear2.state_dict())
        block.wrap_ff.norm.load_state_dict((layer.norm3 if len(pairs) > 1 else layer.norm2).state_dict())
    return model


def copy_attention(target: Any, source: Any) -> None:
    weights, offsets = source.in_proj_weight.chunk(3), source.in_proj_bias.chunk(3)
    projections = target.in_proj_container
    for linear, weight, offset in zip(
        (projections.q_proj, projections.k_proj, projections.v_proj), weights, offsets, strict=True
    ):
        linear.load_state_dict({"weight": weight, "bias": offset})
    target.proj.load_state_dict(source.out_proj.state_dict())


def inputs(batch_first: bool) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    src, tgt = (torch.randn(BATCH, length, DIM, dtype=torch.float64) for length in (SRC, TGT))
    return (src, tgt) if batch_first else (src.transpose(0, 1), tgt.transpose(0, 1))


CAUSAL = nn.Transformer.generate_square_subsequent_mask(TGT, dtype=torch.float64)
PADDED = torch.arange(SRC) >= torch.tensor([[7], [4], [2]])
ADDED = torch.randn(SRC, SRC, dtype=torch.float64)
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal floats": {"tgt_mask": CAUSAL, "tgt_is_causal": True},
    "causal bool": {"tgt_mask": -torch.inf == CAUSAL},
    "padding": {"src_key_padding_mask": PADDED, "memory_key_padding_mask": PADDED},
    "padding of floats": {"src_key_padding_mask": torch.zeros(BATCH, SRC).double().masked_fill(PADDED, -torch.inf)},
    "target padding": {"tgt_key_padding_mask": torch.arange(TGT) >= torch.tensor([[5], [5], [5]])},
    "added": {"src_mask": ADDED, "memory_mask": ADDED[:TGT]},
    "added ones": {"src_mask": torch.eye(SRC, dtype=torch.float64)},
    "by head": {"src_mask": torch.arange(BATCH * HEADS * SRC * SRC).view(BATCH * HEADS, SRC, SRC) % 5 == 1},
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_equals_pytorch(masks: dict[str, Any], batch_first: bool) -> None:
    theirs = torchs(batch_first)
    model, (src, tgt) = ours(theirs, batch_first), inputs(batch_first)
    torch.testing.assert_close(model(src, tgt, **masks), theirs(src, tgt, **masks), rtol=0, atol=1e-10)


def test_causal_without_a_mask_and_single_sequences() -> None:
    model, (src, tgt) = ours(torchs(True), True), inputs(True)
    causal = model(src, tgt, tgt_mask=CAUSAL)
    torch.testing.assert_close(model(src, tgt, tgt_is_causal=True), causal, rtol=0, atol=1e-12)
    assert not torch.allclose(model(src, tgt), causal)
    torch.testing.assert_close(model(src[0], tgt[0], tgt_mask=CAUSAL), causal[0], rtol=0, atol=1e-12)


def test_the_other_side_and_strange_padding_are_refused() -> None:
    both = xFormer([encoder(), decoder()])
    for side in (TorchEncoder, TorchDecoder):
        with pytest.raises(vf.ConfigError, match="alone is needed"):
            side(both)
    model, (src, tgt) = ours(torchs(True), True), inputs(True)
    with pytest.raises(AssertionError, match="src_key_padding_mask marks padding"):
        model(src, tgt, src_key_padding_mask=torch.ones(BATCH, SRC).double())
