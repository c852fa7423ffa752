"""Gates and factors of heads against their formulas, in float64."""

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ConfigError, ShapeError
from variform.parts.attention.gated import GatedAttention, HeadScaleAttention
from variform.parts.kinds import Sides
from variform.parts.projection.maps import LinearProjection, LowRankProjection

FACTS = {"dim": 6, "heads": 4, "dim_head": 3, "causal": False}


def given(length: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 3, dtype=torch.float64) for heads in (4, 2, 2))
    return q, k, v, torch.randn(2, length, 6, dtype=torch.float64)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return (q @ k.mT / 3**0.5).softmax(-1) @ v


def built(spec: vf.Spec) -> GatedAttention:
    part: GatedAttention = vf.build(spec, **FACTS).double()
    for param in part.parameters():
        param.data += torch.randn_like(param)
    return part


def test_gates_of_input_and_output_add_up() -> None:
    q, k, v, x = given()
    part = built(GatedAttention.spec(output_gate=LinearProjection.spec(), activation="silu"))
    assert isinstance(part.input_gate, LinearProjection)
    assert isinstance(part.output_gate, LinearProjection)
    joined = plain(q, k, v).transpose(1, 2).reshape(2, 5, 12)
    logits = x @ part.input_gate.out.weight.T + joined @ part.output_gate.out.weight.T
    expected = (joined * logits * logits.sigmoid()).view(2, 5, 4, 3).transpose(1, 2)
    torch.testing.assert_close(part(q, k, v, Sides(x=x)), expected, rtol=0, atol=1e-12)


def test_a_gate_for_each_head() -> None:
    q, k, v, x = given()
    gate = LinearProjection.spec(bias=True, offset=10.0)
    part = built(GatedAttention.spec(input_gate=gate, input_per_head=True))
    assert isinstance(part.input_gate, LinearProjection)
    assert part.input_gate.offset is not None
    logits = x @ part.input_gate.out.weight.T + part.input_gate.offset
    expected = plain(q, k, v) * logits.sigmoid().transpose(1, 2).unsqueeze(-1)
    torch.testing.assert_close(part(q, k, v, Sides(x=x)), expected, rtol=0, atol=1e-12)


def test_gates_of_low_rank() -> None:
    q, k, v, x = given()
    part = built(GatedAttention.spec(input_gate=LowRankProjection.spec(rank=2, activation="silu", zero=True)))
    assert isinstance(part.input_gate, LowRankProjection)
    down = x @ part.input_gate.down.weight.T
    logits = (down * down.sigmoid()) @ part.input_gate.out.weight.T
    expected = plain(q, k, v) * logits.sigmoid().view(2, 5, 4, 3).transpose(1, 2)
    torch.testing.assert_close(part(q, k, v, Sides(x=x)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gate", [LinearProjection.spec(zero=True), LowRankProjection.spec(rank=2, zero=True)])
def test_gates_that_begin_at_zero_let_half_through(gate: vf.Spec) -> None:
    q, k, v, x = given()
    part = vf.build(GatedAttention.spec(input_gate=gate), **FACTS).double()
    torch.testing.assert_close(part(q, k, v, Sides(x=x)), plain(q, k, v) / 2, rtol=0, atol=1e-12)
    meta = vf.build(GatedAttention.spec(input_gate=gate), device="meta", **FACTS)
    again = vf.materialise(meta, "cpu").double()
    torch.testing.assert_close(again(q, k, v, Sides(x=x)), plain(q, k, v) / 2, rtol=0, atol=1e-12)


def test_an_offset_outlives_materialising() -> None:
    gate = LinearProjection.spec(zero=True, bias=True, offset=10.0)
    part = vf.build(GatedAttention.spec(input_gate=gate, input_per_head=True), device="meta", **FACTS)
    offset = vf.materialise(part, "cpu").input_gate.offset
    assert offset.tolist() == [10.0] * 4


def test_factors_of_heads() -> None:
    q, k, v, _ = given()
    part: HeadScaleAttention = vf.build(HeadScaleAttention.spec(), **FACTS).double()
    torch.testing.assert_close(part(q, k, v, Sides()), plain(q, k, v), rtol=0, atol=1e-12)
    part.scale_of_heads.data = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    expected = plain(q, k, v) * part.scale_of_heads[:, None, None]
    torch.testing.assert_close(part(q, k, v, Sides()), expected, rtol=0, atol=1e-12)


def test_what_cannot_be_gated_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to gate with"):
        vf.build(GatedAttention.spec(input_gate=None), **FACTS)
    q, k, v, _ = given()
    with pytest.raises(ShapeError, match="put it into a mixer"):
        built(GatedAttention.spec())(q, k, v, Sides())
