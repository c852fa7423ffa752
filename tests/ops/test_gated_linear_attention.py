"""Recurrences with decay, and the delta rule, against their definitions token by token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.ops.cases import LENGTHS, error
from tests.ops.test_linear_attention import OPTIONS, _options, _with_gradients
from variform.errors import ShapeError
from variform.ops.delta_rule import delta_attention, naive_delta_attention, unit_length, unit_lower_inverse
from variform.ops.gated_linear_attention import (
    GatedState,
    decayed_attention,
    gated_attention,
    gated_state,
    naive_gated_attention,
)

Op = Callable[..., tuple[Tensor, GatedState]]


def decayed(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, **more: Any) -> tuple[Tensor, GatedState]:
    return decayed_attention(q, k, v, functional.logsigmoid(gates[..., 0]), **more)


def gated(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, **more: Any) -> tuple[Tensor, GatedState]:
    return gated_attention(q, k, v, functional.logsigmoid(gates), **more)


def delta(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, **more: Any) -> tuple[Tensor, GatedState]:
    return delta_attention(unit_length(q), unit_length(k), v, gates[..., 0].sigmoid(), **more)


def gated_delta(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, **more: Any) -> tuple[Tensor, GatedState]:
    fading = functional.logsigmoid(gates[..., 1])
    return delta_attention(unit_length(q), unit_length(k), v, gates[..., 0].sigmoid(), fading, **more)


def naive(op: Op, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, **more: Any) -> Tensor:
    if op in (decayed, gated):
        wide = gates if op is gated else gates[..., :1]
        return naive_gated_attention(q, k, v, functional.logsigmoid(wide), **more)
    fading = functional.logsigmoid(gates[..., 1]) if op is gated_delta else None
    return naive_delta_attention(unit_length(q), unit_length(k), v, gates[..., 0].sigmoid(), fading, **more)


OPS = pytest.mark.parametrize("op", [decayed, gated, delta, gated_delta])


def inputs(length: int) -> list[Tensor]:
    """Queries, keys, values and gates; some decay slowly, others at once."""
    q, k, v, gates = (torch.randn(2, 3, length, n, dtype=torch.float64) for n in (8, 8, 6, 8))
    return [t.requires_grad_() for t in (q, k, v, 4 * gates)]


def options(name: str, length: int) -> dict[str, Any]:
    found = _options(name, length)
    found["segments"] = found.pop("q_segments", None)
    found.pop("k_segments", None)
    return found


@OPS
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "nothing_valid"])
def test_values_and_gradients(op: Op, name: str, length: int) -> None:
    given, more = inputs(length), options(name, length)
    wanted = _with_gradients(naive(op, *given, **more), given, more)
    for dtype, chunk in ((torch.float64, 16), (torch.float64, 64), (torch.float32, 16)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in given]
        found = op(*leaves, chunk=chunk, **more)[0]
        assert found.dtype == dtype
        # Sums are not normalised here, so their errors are those of sums.
        limit = (1e-10 if dtype == torch.float64 else 1e-5) * max(1.0, float(wanted[0].abs().max()))
        assert error(_with_gradients(found, leaves, more), wanted) < limit


@OPS
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("sizes", [[33], [1] * 33, [5, 1, 1, 17, 9]])
def test_any_pieces_equal_the_whole(op: Op, name: str, sizes: list[int]) -> None:
    given, more = inputs(33), options(name, 33)
    whole, final = op(*given, **more)
    wanted = _with_gradients(whole, given, more)
    state: GatedState = gated_state(2, 3, 8, 6, torch.float64)
    outs, start = [], 0
    for size in sizes:
        piece = slice(start, start + size)
        rest = {key: None if value is None else value[..., piece] for key, value in more.items()}
        out, state = op(*(t[:, :, piece] for t in given), state=state, chunk=8, **rest)
        outs.append(out)
        start += size
    assert error(_with_gradients(torch.cat(outs, 2), given, more), wanted) < 1e-10
    torch.testing.assert_close(state.s, final.s)
    assert torch.equal(state.segment, final.segment)


@OPS
def test_the_past_is_bit_equal_whatever_the_future_holds(op: Op) -> None:
    given = [t.detach() for t in inputs(40)]
    before = op(*given, chunk=16)[0]
    for t in given:
        t[:, :, 21:] = 30 * torch.randn_like(t[:, :, 21:])
    assert torch.equal(op(*given, chunk=16)[0][:, :, :21], before[:, :, :21])


@OPS
def test_rows_without_tokens_are_zero_and_keep_their_state(op: Op) -> None:
    given = inputs(9)
    state = op(*given)[1]
    out, after = op(*given, k_valid=torch.zeros(2, 9, dtype=torch.bool), state=state)
    assert not out.any()
    assert torch.equal(after.s, state.s)


@OPS
def test_invalid_tokens_may_hold_anything(op: Op) -> None:
    given = [t.detach() for t in inputs(9)]
    valid = (torch.arange(9) != 4).expand(2, -1)
    wanted = op(*given, k_valid=valid)
    for t in given[1:3]:
        t[:, :, 4] = torch.nan
    found = op(*given, k_valid=valid)
    assert torch.equal(found[0][:, :, 5:], wanted[0][:, :, 5:])
    assert torch.equal(found[1].s, wanted[1].s)


@pytest.mark.parametrize("op", [decayed, gated, gated_delta])
def test_a_history_that_fades_at_once_neither_overflows_nor_loses_its_gradient(op: Op) -> None:
    """A decay of exp(-50) a token is exp(-3200) over a chunk; its inverse would be no number."""
    q, k, v, gates = (t.detach().float() for t in inputs(80))
    leaves = [t.requires_grad_() for t in (q, k, v, gates - 50)]
    out = op(*leaves)[0]
    exact = naive(op, *(t.detach().double() for t in leaves))
    assert error([out], [exact]) < 1e-4
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), leaves))


def test_a_key_gives_back_what_was_last_stored_under_it() -> None:
    keys = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 2]].expand(1, 1, 4, 4)
    values = torch.randn(1, 1, 4, 3, dtype=torch.float64)
    ones = torch.ones(1, 1, 4, dtype=torch.float64)
    out = delta_attention(keys, keys, values, ones)[0]
    torch.testing.assert_close(out, values)  # the third token has replaced the first one
    added = decayed_attention(keys, keys, values, 0 * ones)[0]
    torch.testing.assert_close(added[:, :, 2], values[:, :, 0] + values[:, :, 2])


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_the_inverse_of_a_triangle(size: int) -> None:
    lower = torch.randn(2, 3, size, size, dtype=torch.float64).tril(-1) * 0.3
    whole = torch.eye(size, dtype=torch.float64) + lower
    torch.testing.assert_close(whole @ unit_lower_inverse(lower), torch.eye(size, dtype=torch.float64).expand_as(whole))


@OPS
def test_half_precision_keeps_a_wide_state(op: Op) -> None:
    out, state = op(*(t.detach().bfloat16() for t in inputs(9)))
    assert out.dtype in (torch.bfloat16, torch.float32)
    assert state.s.dtype == torch.float32


@pytest.mark.parametrize("op", [decayed, gated, delta])
def test_what_does_not_fit_is_refused(op: Op) -> None:
    q, k, v, gates = inputs(5)
    with pytest.raises(ShapeError, match="of one length"):
        op(q, k, v[:, :, :3], gates)
