"""Retention, gated linear attention and the delta rule as parts, against their formulas written out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import variform as vf
from tests.parts.attention.decoders import decoder, generates_as_uncached, learns
from variform.ops.delta_rule import naive_delta_attention, unit_length
from variform.ops.gated_linear_attention import naive_gated_attention
from variform.parts.kinds import Sides

NAMES = ["retention", "gated_linear", "delta_rule", "gated_delta_rule"]
HEADS, DIM = 4, 8


def part(name: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    made = vf.build({"part": f"attention/{name}", "heads": HEADS, "dim_head": DIM, "causal": True, **fields}).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made


def inputs(length: int, heads: int = HEADS) -> list[Tensor]:
    return [torch.randn(2, n, length, DIM, dtype=torch.float64, requires_grad=True) for n in (HEADS, heads, heads)]


def retention(made: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rates = 1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=torch.float64))
    distances = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    weights = rates[:, None, None] ** distances.abs()
    weights = weights.tril() if made.causal else weights
    return (q @ k.mT / DIM**0.5 * weights) @ v


def gated_linear(made: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    gates = torch.einsum("bhld,hde->bhle", v, made.gate) + made.gate_bias
    fading = gates.sigmoid().log() / made.temperature
    q = q / DIM**0.5
    out = naive_gated_attention(q, k, v, fading)
    if made.causal:
        return out
    back = naive_gated_attention(*(t.flip(2) for t in (q, k, v, fading))).flip(2)
    return out + back - (q * k).sum(-1, keepdim=True) * v


def delta_rule(made: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    strength = (torch.einsum("bhld,hd->bhl", v, made.write) + made.write_bias).sigmoid()
    tensors = [unit_length(q), unit_length(k), v, strength]
    if hasattr(made, "fade"):
        steps = functional.softplus(torch.einsum("bhld,hd->bhl", v, made.fade) + made.fade_bias)
        tensors.append(-made.log_rate.exp() * steps)
    out = naive_delta_attention(*tensors)
    if made.causal:
        return out
    return (out + naive_delta_attention(*(t.flip(2) for t in tensors)).flip(2)) / 2


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "retention": retention,
    "gated_linear": gated_linear,
    "delta_rule": delta_rule,
    "gated_delta_rule": delta_rule,
}


def gradients(out: Tensor, made: nn.Module, given: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    return list(torch.autograd.grad((out * weights).sum(), [*given, *made.parameters()]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("length", "kv_heads"), [(1, 4), (7, 2), (70, 4)])
def test_equals_its_formula(name: str, causal: bool, length: int, kv_heads: int) -> None:
    made, given = part(name, causal=causal), inputs(length, kv_heads)
    repeated = [given[0], *(t.repeat_interleave(HEADS // kv_heads, 1) for t in given[1:])]
    raw = FORMULAS[name](made, *repeated)
    wanted = raw * torch.rsqrt(raw.square().mean(-1, keepdim=True) + made.norm.eps) * made.norm.weight
    found = made(*given, Sides())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    for a, b in zip(gradients(found, made, given), gradients(wanted, made, given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_norm_is_a_slot(name: str) -> None:
    bare, given = part(name, norm=None), inputs(9)
    torch.testing.assert_close(bare(*given, Sides()), FORMULAS[name](bare, *given), rtol=0, atol=1e-9)
    other = part(name, norm="layer_norm")(*given, Sides())
    assert not torch.allclose(other, part(name)(*given, Sides()))


@pytest.mark.parametrize("name", NAMES)
def test_both_directions_respect_padding_and_documents(name: str) -> None:
    made, given = part(name, causal=False), inputs(11)
    real = torch.tensor([[False] * 3 + [True] * 6 + [False] * 2, [True] * 11])
    out = made(*given, Sides(q_valid=real, k_valid=real))
    short = made(*(t[:1, :, 3:9] for t in given), Sides())
    torch.testing.assert_close(out[:1, :, 3:9], short)
    ids = torch.tensor([4] * 5 + [7] * 6)
    packed = made(*given, Sides(q_segments=ids, k_segments=ids))
    for piece in (slice(5), slice(5, 11)):
        torch.testing.assert_close(packed[:, :, piece], made(*(t[:, :, piece] for t in given), Sides()))


def test_the_temperature_slows_the_fading() -> None:
    given = inputs(9)
    outs = [part("gated_linear", temperature=t)(*given, Sides()) for t in (1.0, 16.0, 1e9)]
    assert not torch.allclose(outs[0], outs[1], atol=1e-3)
    q, k, v = given
    unfaded = (q @ k.mT / DIM**0.5).tril() @ v
    made = part("gated_linear", temperature=1e9, norm=None)
    torch.testing.assert_close(made(*given, Sides()), unfaded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_refused(name: str) -> None:
    q, k, v = inputs(5)
    made = part(name)
    with pytest.raises(vf.ShapeError, match="for 4 heads"):
        made(q[:, :2], k[:, :2], v[:, :2], Sides())
    with pytest.raises(vf.ShapeError, match="as many queries as keys"):
        made(q[:, :, :3], k, v, Sides())
    if name != "retention":
        with pytest.raises(vf.ShapeError, match="values of 8 features"):
            made(q, k, v[..., :4], Sides())


@pytest.mark.parametrize("name", NAMES)
def test_the_state_does_not_grow(name: str) -> None:
    model = decoder(name)
    sizes = [sum(t.numel() for t in _tensors(model.init_state(1, n)["parts"])) for n in (8, 40)]
    assert sizes[0] == sizes[1]


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(tree) if isinstance(t, Tensor)]


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_generates_as_it_computes(name: str) -> None:
    generates_as_uncached(name)
    generates_as_uncached(name, kv_heads=2, rotation="rotary")


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_learns(name: str) -> None:
    learns(name)


def test_another_sequence_is_refused() -> None:
    spec = vf.models.seq2seq(vocab_size=11, dim=16, depth=1, heads=4, max_seq_len=24)
    for name in NAMES:
        changed = vf.override(spec, {"decoder.stacks.0.layers.*.sublayers.1.body.attention": name})
        with pytest.raises(vf.ConfigError, match="cannot attend to another sequence"):
            vf.build(changed)
