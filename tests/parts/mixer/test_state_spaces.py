"""The mixers `mamba`, `s4d` and `hyena` written out token by token, values and gradients, and each of their fields."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import variform as vf
from variform.errors import ConfigError, ShapeError
from variform.ops.diagonal import naive_diagonal_state_space
from variform.ops.long_convolution import naive_convolution
from variform.ops.scan import naive_selective_scan
from variform.parts.mixer.hyena import Filters, Hyena
from variform.parts.mixer.mamba import Mamba, SelectiveStateSpace
from variform.parts.mixer.s4d import S4D, DiagonalStateSpace

DIM = 6


def built(spec: vf.Spec, **facts: Any) -> Any:
    torch.manual_seed(3)
    part = vf.build(spec, dim=DIM, max_seq_len=48, **facts).double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return part


def inputs(length: int) -> Tensor:
    return torch.randn(2, length, DIM, dtype=torch.float64, requires_grad=True)


def agree(part: nn.Module, x: Tensor, wanted: Tensor) -> None:
    leaves = [x, *part.parameters()]
    torch.testing.assert_close(part(x, {}), wanted, rtol=0, atol=1e-10)
    weights = torch.randn_like(wanted)
    found, right = (torch.autograd.grad((y * weights).sum(), leaves) for y in (part(x, {}), wanted))
    for got, gradient in zip(found, right, strict=True):
        torch.testing.assert_close(got, gradient, rtol=1e-9, atol=1e-9)


def shifted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A causal convolution of few taps."""
    taps = weight.shape[1]
    padded = F.pad(x, (0, 0, taps - 1, 0))
    y = sum(padded[:, k : k + x.shape[1]] * weight[:, k] for k in range(taps))
    assert isinstance(y, Tensor)
    return y if bias is None else y + bias


# ---- mamba ----


def written_mamba(space: SelectiveStateSpace, x: Tensor) -> Tensor:
    u = F.silu(shifted(x, space.conv, space.conv_bias))
    read = u @ space.read.weight.T
    rank, b, c = read[..., : space.rank], read[..., space.rank : -space.state], read[..., -space.state :]
    dt = F.softplus(F.linear(rank, space.step, space.step_bias))
    return naive_selective_scan(u, dt, -space.log_a.exp(), b, c)[0] + space.skip * u


MAMBAS = [{}, {"expand": 3, "state": 4, "width": 2, "rank": 2}, {"bias": True, "conv_bias": False}]


@pytest.mark.parametrize("more", MAMBAS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 7, 19])
def test_mamba_is_the_recurrence_written_out(more: dict[str, Any], causal: bool, length: int) -> None:
    part, x = built(Mamba.spec(causal=causal, **more)), inputs(length)
    u, gate = part.inputs(x).chunk(2, -1)
    y = written_mamba(part.forth, u)
    if not causal:
        y = y + written_mamba(part.back, u.flip(1)).flip(1)
    agree(part, x, part.out(y * F.silu(gate)))


def test_the_sizes_and_initial_values_of_mamba() -> None:
    part = vf.build(Mamba.spec(expand=3, state=5, width=2, min_step=0.2, max_step=0.4), dim=32, causal=True)
    assert part.back is None
    space = part.forth
    assert [*space.log_a.shape] == [96, 5]
    assert [*space.conv.shape] == [96, 2]
    assert space.rank == 2
    assert vf.build(Mamba.spec(rank=7), dim=32).forth.rank == 7
    torch.testing.assert_close(space.log_a[3].exp(), torch.arange(1.0, 6))
    steps = F.softplus(space.step_bias)
    assert 0.2 <= float(steps.detach().min()) <= float(steps.detach().max()) <= 0.4 + 1e-6
    plain, biased = vf.build(Mamba.spec(conv_bias=False), dim=8), vf.build(Mamba.spec(bias=True), dim=8)
    assert (plain.forth.conv_bias, plain.inputs.bias, plain.out.bias) == (None, None, None)
    assert biased.inputs.bias is not None
    assert biased.out.bias is not None
    narrow = vf.build(Mamba.spec(), dim=64, init_std=0.02, writes=4)
    assert 0.018 < float(narrow.inputs.weight.detach().std()) < 0.022
    assert 0.008 < float(narrow.out.weight.detach().std()) < 0.012


# ---- S4D ----


def written_s4d(space: DiagonalStateSpace, u: Tensor) -> Tensor:
    """Zero-order hold with complex numbers."""
    step = space.log_step.exp()[:, None]
    a = torch.complex(-space.log_rate.exp(), space.turn)
    c = torch.complex(space.weight[:, 0], space.weight[:, 1]) * ((a * step).exp() - 1) / a
    decay, weight = (torch.stack((z.real, z.imag), 1) for z in (a * step, c))
    return naive_diagonal_state_space(u, decay, weight)[0]


@pytest.mark.parametrize("more", [{}, {"state": 4, "start": "inv", "bias": False}, {"min_step": 0.05, "max_step": 0.5}])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 7, 32, 45])
def test_s4d_is_the_recurrence_written_out(more: dict[str, Any], causal: bool, length: int) -> None:
    part, x = built(S4D.spec(causal=causal, **more)), inputs(length)
    y = written_s4d(part.forth, x)
    if not causal:
        y = y + written_s4d(part.back, x.flip(1)).flip(1)
    agree(part, x, F.glu(part.out(F.gelu(y + part.skip * x)), -1))


def test_the_sizes_and_initial_values_of_s4d() -> None:
    lin = vf.build(S4D.spec(state=8, min_step=0.2, max_step=0.4), dim=16, causal=True)
    inv = vf.build(S4D.spec(state=8, start="inv"), dim=16)
    assert lin.back is None
    assert inv.back is not None
    torch.testing.assert_close(lin.forth.turn[0], math.pi * torch.arange(4.0))
    torch.testing.assert_close(inv.forth.turn[0], 8 / math.pi * (8 / (2 * torch.arange(4.0) + 1) - 1))
    torch.testing.assert_close(lin.forth.log_rate.exp(), torch.full((16, 4), 0.5))
    steps = lin.forth.log_step.detach().exp()
    assert 0.2 <= float(steps.min()) <= float(steps.max()) <= 0.4 + 1e-6
    assert vf.build(S4D.spec(bias=False), dim=16).out.bias is None
    narrow = vf.build(S4D.spec(), dim=64, init_std=0.02, writes=4)
    assert 0.008 < float(narrow.out.weight.detach().std()) < 0.012
    dropping = vf.build(S4D.spec(dropout=0.5), dim=16)
    assert bool((dropping(torch.randn(2, 9, 16), {}) == 0).any())


@pytest.mark.parametrize("part", [Mamba, S4D])
def test_steps_in_the_wrong_order_are_refused(part: Any) -> None:
    with pytest.raises(ConfigError, match=r"above max_step = 0\.1"):
        vf.build(part.spec(min_step=0.2), dim=8)


def test_an_odd_state_of_s4d_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be even.*nearest: 6 or 8"):
        vf.build(S4D.spec(state=7), dim=8)


# ---- Hyena ----


def written_filters(filters: Filters, length: int) -> Tensor:
    rows = []
    for lag in range(length):
        t = lag / max(1, filters.max_len - 1)
        bands = torch.linspace(1e-4, max(1e-4, filters.bands - 1), filters.bands, dtype=torch.float64)
        turn = 2 * math.pi * lag / filters.max_len * bands
        x = torch.cat((torch.tensor([t], dtype=torch.float64), turn.cos(), -turn.sin()))
        for layer in filters.layers:
            x = (filters.frequency * layer(x)).sin()
        rates = torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, filters.dim, dtype=torch.float64)
        rows.append(filters.last(x).view(filters.count, filters.dim) * ((rates * t).exp() + 0.05))
    return torch.stack(rows, 1)


HYENAS = [{}, {"order": 3, "width": 5, "layers": 1, "bands": 3}, {"frequency": 1.0, "short": 2, "bias": False}]


@pytest.mark.parametrize("more", HYENAS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 7, 41])
def test_hyena_is_its_convolutions_written_out(more: dict[str, Any], causal: bool, length: int) -> None:
    part, x = built(Hyena.spec(causal=causal, **more)), inputs(length)
    taps = written_filters(part.filters, length)
    value, *gates = shifted(part.inputs(x), part.short, None).chunk(part.order + 1, -1)
    for place in range(part.order - 2, -1, -1):
        value = value * gates[place + 1]
        later = None if causal else taps[part.order - 1 + place]
        value = naive_convolution(value, taps[place], later) + part.skip[place] * value
    agree(part, x, part.out(value * gates[0]))


def test_hyena_makes_all_its_filters_once() -> None:
    part = built(Hyena.spec(order=4), causal=True)
    calls: list[int] = []
    part.filters.register_forward_hook(lambda module, given, made: calls.append(len(made)))
    part(inputs(9), {})
    assert calls == [3]


def test_the_sizes_of_hyena() -> None:
    part = vf.build(Hyena.spec(order=3, width=5, layers=2, bands=2, short=4), dim=8, max_seq_len=9, causal=True)
    assert [*part.inputs.weight.shape] == [32, 8]
    assert [*part.short.shape] == [32, 4]
    assert [[*layer.weight.shape] for layer in part.filters.layers] == [[5, 5], [5, 5]]
    assert [*part.filters.last.weight.shape] == [16, 5]
    assert vf.build(Hyena.spec(order=3), dim=8, max_seq_len=9).filters.count == 4
    with pytest.raises(ShapeError, match=r"9 tokens long \(max_seq_len\), and the sequence has 10"):
        part(torch.randn(1, 10, 8), {})
    shorter = vf.build(Hyena.spec(order=3, width=5, layers=2, bands=2, short=4), dim=8, max_seq_len=19, causal=True)
    shorter.load_state_dict(part.state_dict())
    x = torch.randn(1, 9, 8)
    assert not torch.allclose(part(x, {}), shorter(x, {}))
    narrow = vf.build(Hyena.spec(bias=False), dim=64, max_seq_len=9, init_std=0.02, writes=4)
    assert narrow.inputs.bias is None
    assert 0.018 < float(narrow.inputs.weight.detach().std()) < 0.022
    assert 0.008 < float(narrow.out.weight.detach().std()) < 0.012


@pytest.mark.parametrize("mixer", [Hyena, S4D, Mamba])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_long_prefill_and_what_follows(mixer: Any, ragged: bool) -> None:
    spec = vf.models.gpt(vocab_size=11, max_seq_len=64, dim=DIM, depth=1, heads=2)
    torch.manual_seed(0)
    model = vf.build(vf.override(spec, {"stacks.0.layers.0.sublayers.0.body": mixer.spec()})).double().eval()
    ids = torch.randint(0, 11, (2, 50))
    with torch.no_grad():
        whole = model(ids)
        state = model.init_state(2, 60)
        lengths = torch.tensor([[40], [33]]) if ragged else torch.tensor([[40], [40]])
        valid = torch.arange(40) < lengths
        out, state = model(ids[:, :40], state=state, **({"valid": valid} if ragged else {}))
        torch.testing.assert_close(out[valid], whole[:, :40][valid], rtol=0, atol=1e-10)
        for step in range(3):
            new = ids.gather(1, lengths + step)
            out, state = model(new, state=state)
            wanted = whole.gather(1, (lengths + step)[..., None].expand(-1, -1, 11))
            torch.testing.assert_close(out, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mixer", [Hyena, S4D, Mamba])
@pytest.mark.parametrize("causal", [True, False])
def test_padding_between_tokens_changes_nothing(mixer: Any, causal: bool) -> None:
    part, x = built(mixer.spec(causal=causal)), inputs(9)
    valid = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0, 0, 0, 1]]).bool()
    out = part(torch.where(valid[..., None], x, 1e30), {"valid": valid})
    for row in range(2):
        alone = part(x[row : row + 1, valid[row]], {})
        torch.testing.assert_close(out[row, valid[row]], alone[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["mamba", "pooling", "visual"])
def test_one_compiled_mixer_takes_sequences_of_several_lengths(name: str) -> None:
    torch._dynamo.reset()
    part = built({"part": f"mixer/{name}"}, **({"causal": True} if name == "mamba" else {}))  # type: ignore[arg-type]
    compiled = torch.compile(part, backend="aot_eager", fullgraph=True)
    for length in (16, 25, 36):
        x = inputs(length)
        torch.testing.assert_close(compiled(x, {}), part(x, {}), rtol=0, atol=1e-12)
