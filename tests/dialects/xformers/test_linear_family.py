"""Linear attentions and recurrences of the library, by name in this dialect."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.dialects.xformers.cases import DIM, HEADS, SEQ, attention, decoder, encoder, ids
from variform.dialects.xformers.components import build_multi_head_attention
from variform.dialects.xformers.components.attention import build_attention
from variform.dialects.xformers.factory import xFormer, xFormerConfig
from variform.weights.xformers import to_native

RECURRENCES = ["retention", "gated_linear", "delta_rule", "gated_delta_rule"]
NAMES = ["favor", "linear", "cosformer", *RECURRENCES]


def heads(name: str, **more: Any) -> dict[str, Any]:
    return attention(name, seq_len=SEQ, **more) | {"dim_model": DIM}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("causal", [False, True])
def test_spec_describes_the_same_function(name: str, causal: bool) -> None:
    torch.manual_seed(0)
    part = build_multi_head_attention(heads(name, causal=causal)).double().eval()
    native = vf.build(part.spec, dim=DIM).double().eval()
    for own, other in zip(("q_proj", "k_proj", "v_proj"), ("q", "k", "v"), strict=True):
        getattr(native, other).load_state_dict(getattr(part.in_proj_container, own).state_dict())
    native.out.load_state_dict(part.proj.state_dict())
    native.attention.load_state_dict(part.attention.native.state_dict())
    x = torch.randn(2, SEQ, DIM, dtype=torch.float64)
    torch.testing.assert_close(part(x), native(x, {}), rtol=0, atol=1e-12)
    assert part.attention.causal is causal


@pytest.mark.parametrize("name", NAMES)
def test_a_causal_decoder_decodes_as_it_computes(name: str) -> None:
    torch.manual_seed(0)
    masked = attention(name, seq_len=SEQ, causal=True)
    stacks = [decoder(multi_head_config_masked=masked, multi_head_config_cross=None, num_layers=2)]
    model = xFormer.from_config(xFormerConfig(stacks)).double().eval()
    target, changed = ids(seed=1), ids(seed=1)
    changed[:, 5:] = 0
    with torch.no_grad():
        out = model(target)
        assert torch.equal(model(changed)[:, :5], out[:, :5])
        assert not torch.allclose(model(changed)[:, 5:], out[:, 5:])
        native = vf.build(model.spec).double().eval()
        native.load_state_dict(to_native(model.state_dict()))
        state = native.init_state(2, SEQ)
        pieces = []
        for start, end in ((0, 4), (4, 5), (5, SEQ)):
            piece, state = native(target[:, start:end], state=state)
            pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), out, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_an_encoder_decoder(name: str) -> None:
    torch.manual_seed(0)
    stacks = [
        encoder(multi_head_config=attention(name, seq_len=SEQ)),
        decoder(multi_head_config_masked=attention(name, seq_len=SEQ, causal=True)),
    ]
    model = xFormer.from_config(xFormerConfig(stacks)).double()
    real = torch.arange(SEQ).expand(2, SEQ) < torch.tensor([[SEQ], [5]])
    source, other = ids(), ids()
    other[1, 5:] = 3
    outs = [model(src=s, tgt=ids(seed=1), encoder_input_mask=real) for s in (source, other)]
    torch.testing.assert_close(outs[0], outs[1])
    outs[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", RECURRENCES)
def test_folded_heads_are_told_apart(name: str) -> None:
    part = build_attention({"name": name, "num_heads": HEADS, "dim_head": 4, "causal": True})
    q, k, v = (torch.randn(3, HEADS, 7, 4) for _ in range(3))
    whole = part(q, k, v)
    folded = [t.flatten(0, 1) for t in (q, k, v)]
    assert torch.equal(part(*folded), whole.flatten(0, 1))
    real = torch.arange(7).expand(3, 7) < torch.tensor([[7], [4], [2]])
    padded = part(q, k, v, key_padding_mask=real)
    for mask in (real, real.repeat_interleave(HEADS, 0)):
        assert torch.equal(part(*folded, key_padding_mask=mask), padded.flatten(0, 1))
    with pytest.raises(vf.ShapeError, match="do not divide"):
        part(*(t[:5] for t in folded))


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_refused(name: str) -> None:
    part = build_multi_head_attention(heads(name))
    x: Tensor = torch.randn(2, SEQ, DIM)
    with pytest.raises(vf.ShapeError, match="does not support attention masks"):
        part(x, att_mask=torch.ones(SEQ, SEQ, dtype=torch.bool))
    if name in RECURRENCES:
        with pytest.raises(vf.ShapeError, match="as many queries as keys"):
            part(x[:, :3], x, x)


def test_sizes_come_from_the_surroundings_or_are_asked_for() -> None:
    part = build_attention({"name": "cosformer", "seq_len": 12, "causal": True})
    assert part(*(torch.randn(3, 12, 8) for _ in range(3))).shape == (3, 12, 8)
    with pytest.raises(vf.ConfigError, match="max_seq_len"):
        build_attention({"name": "cosformer"})
    with pytest.raises(vf.ConfigError, match="heads"):
        build_attention({"name": "retention"})
