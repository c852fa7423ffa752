"""Stacks in `torch.nn.Transformer`: the same function as PyTorch's own layers, with PyTorch's masks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from variform.core.spec import Spec
from variform.interop.torch_nn import TorchDecoder, TorchEncoder
from variform.parts.feedforward.mlp import MLP
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

DIM, HEADS, BATCH, SRC, TGT = 8, 2, 3, 7, 5
OFFSETS = {"bias": True, "out_bias": True}


def stack(cross: bool, norm_first: bool, **more: Any) -> Spec:
    """PyTorch's layers, as a stack."""
    norms = {"norm": "layer_norm"} if norm_first else {"norm": None, "out_norm": "layer_norm"}
    bodies: list[Spec] = [MultiHead.spec(**OFFSETS), MLP.spec(hidden=16, activation="relu", bias=True)]
    if cross:
        bodies.insert(1, CrossMultiHead.spec(**OFFSETS))
    layer = TransformerLayer.spec(sublayers=[Sublayer.spec(body=body, **norms) for body in bodies])
    norm = "layer_norm" if norm_first else None
    return LayerStack.spec(layers=[layer] * 2, norm=norm, dim=DIM, heads=HEADS, **more)


def torchs(norm_first: bool, batch_first: bool) -> Any:
    sizes = {"d_model": DIM, "nhead": HEADS, "dim_feedforward": 16, "dropout": 0.0}
    order = {"batch_first": batch_first, "norm_first": norm_first}
    norm = [nn.LayerNorm(DIM) if norm_first else None for _ in range(2)]
    first = nn.TransformerEncoder(nn.TransformerEncoderLayer(**sizes, **order), 2, norm[0], enable_nested_tensor=False)
    last = nn.TransformerDecoder(nn.TransformerDecoderLayer(**sizes, **order), 2, norm[1])
    model = nn.Transformer(DIM, HEADS, custom_encoder=first, custom_decoder=last, batch_first=batch_first).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return model


def ours(like: Any, norm_first: bool, batch_first: bool) -> Any:
    first = TorchEncoder(stack(False, norm_first), batch_first)
    last = TorchDecoder(stack(True, norm_first), batch_first)
    model = nn.Transformer(DIM, HEADS, custom_encoder=first, custom_decoder=last, batch_first=batch_first).double()
    for side, source in ((first, like.encoder), (last, like.decoder)):
        own: Any = side.model.stacks[0]
        for layer, other in zip(own.layers.in_order(), source.layers, strict=True):
            copy_layer(list(layer.sublayers.in_order()), other, norm_first)
        if norm_first:
            own.norm.load_state_dict(source.norm.state_dict())
    return model


def copy_layer(steps: list[Any], layer: Any, norm_first: bool) -> None:
    attentions = [layer.self_attn, *([layer.multihead_attn] if len(steps) == 3 else [])]
    for index, step in enumerate(steps):
        (step.norm if norm_first else step.out_norm).load_state_dict(getattr(layer, f"norm{index + 1}").state_dict())
    for step, source in zip(steps, attentions, strict=False):
        for name, weight, offset in zip(
            "qkv", source.in_proj_weight.chunk(3), source.in_proj_bias.chunk(3), strict=True
        ):
            getattr(step.body, name).load_state_dict({"weight": weight, "bias": offset})
        step.body.out.load_state_dict(source.out_proj.state_dict())
    steps[-1].body.up.load_state_dict(layer.linear1.state_dict())
    steps[-1].body.down.load_state_dict(layer.linear2.state_dict())


def inputs(batch_first: bool) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    src, tgt = (torch.randn(BATCH, length, DIM, dtype=torch.float64) for length in (SRC, TGT))
    return (src, tgt) if batch_first else (src.transpose(0, 1), tgt.transpose(0, 1))


CAUSAL = nn.Transformer.generate_square_subsequent_mask(TGT, dtype=torch.float64)
PADDED = torch.arange(SRC) >= torch.tensor([[7], [4], [2]])
SEEN = torch.arange(TGT * SRC).view(TGT, SRC) % 3 == 1
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal floats": {"tgt_mask": CAUSAL, "tgt_is_causal": True},
    "causal bool": {"tgt_mask": -torch.inf == CAUSAL},
    "padding": {"src_key_padding_mask": PADDED, "memory_key_padding_mask": PADDED},
    "padding of floats": {"src_key_padding_mask": torch.zeros(BATCH, SRC).double().masked_fill(PADDED, -torch.inf)},
    "target padding": {"tgt_key_padding_mask": torch.arange(TGT) >= torch.tensor([[5], [5], [5]])},
    "memory": {"memory_mask": SEEN},
    "memory with padding": {"memory_mask": SEEN, "memory_key_padding_mask": PADDED},
    "by head": {"src_mask": torch.arange(BATCH * HEADS * SRC * SRC).view(BATCH * HEADS, SRC, SRC) % 5 == 1},
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_equals_pytorch(masks: dict[str, Any], norm_first: bool, batch_first: bool) -> None:
    theirs = torchs(norm_first, batch_first)
    model, (src, tgt) = ours(theirs, norm_first, batch_first), inputs(batch_first)
    wanted = theirs(src, tgt, **masks)
    torch.testing.assert_close(model(src, tgt, **masks), wanted, rtol=0, atol=1e-10)
    if masks and "tgt_key_padding_mask" not in masks:
        assert not torch.allclose(model(src, tgt), wanted)


def test_gradients_equal_pytorchs() -> None:
    theirs = torchs(True, True)
    model, (src, tgt) = ours(theirs, True, True), inputs(True)
    src.requires_grad_(), tgt.requires_grad_()
    masks = {"tgt_mask": CAUSAL, "memory_key_padding_mask": PADDED}
    got, wanted = (torch.autograd.grad(m(src, tgt, **masks).square().sum(), (src, tgt)) for m in (model, theirs))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_causal_without_a_mask_and_single_sequences() -> None:
    model, (src, tgt) = ours(torchs(True, True), True, True), inputs(True)
    causal = model(src, tgt, tgt_mask=CAUSAL)
    torch.testing.assert_close(model(src, tgt, tgt_is_causal=True), causal, rtol=0, atol=1e-12)
    assert not torch.allclose(model(src, tgt), causal)
    torch.testing.assert_close(model(src[0], tgt[0], tgt_mask=CAUSAL), causal[0], rtol=0, atol=1e-12)


def test_a_reversible_stack_serves_too() -> None:
    first = TorchEncoder(stack(False, True, executor="reversible"), True)
    last = TorchDecoder(stack(True, True, executor="reversible"), True)
    model = nn.Transformer(DIM, HEADS, custom_encoder=first, custom_decoder=last, batch_first=True).double()
    src, tgt = inputs(True)
    out = model(src, tgt, tgt_mask=CAUSAL)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    memory = first.model.stacks[0](src, {})
    torch.testing.assert_close(last(tgt, memory, tgt_is_causal=True), out)


def test_models_of_features_serve_and_others_are_refused() -> None:
    model = Transformer.spec(embedding=None, stacks=[stack(False, True)], dim=DIM, heads=HEADS)
    side = TorchEncoder(vf.build(model).double(), batch_first=True)
    assert side(inputs(True)[0]).shape == (BATCH, SRC, DIM)
    with pytest.raises(vf.ConfigError, match="without embedding and head"):
        TorchEncoder(vf.models.gpt(vocab_size=11, dim=8, depth=1, heads=2, max_seq_len=9))
    with pytest.raises(vf.ConfigError, match="without embedding and head"):
        TorchDecoder(nn.Identity())


def test_masks_that_cannot_be_honoured_are_refused() -> None:
    side, (src, _) = TorchEncoder(stack(False, True), True).double(), inputs(True)
    with pytest.raises(vf.ShapeError, match="mask holds other values than 0 and -inf"):
        side(src, torch.randn(SRC, SRC).double())
    with pytest.raises(vf.ShapeError, match="src_key_padding_mask marks padding"):
        side(src, src_key_padding_mask=torch.ones(BATCH, SRC).double())
    linear = Sublayer.spec(body=MultiHead.spec(attention="linear"))
    with pytest.raises(vf.ShapeError, match="linear"):
        TorchEncoder(LayerStack.spec(layers=[linear], dim=DIM, heads=HEADS), True)(src.float(), CAUSAL.bool())
