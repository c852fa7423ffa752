"""Recurrences and short convolutions against token-by-token references, values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from variform.ops.align import align, restore, starts_of
from variform.ops.scan import linear_scan, naive_selective_scan, selective_scan, short_convolution


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def agree(got: Tensor, wanted: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
    weights = torch.randn_like(wanted)
    found, other = (
        torch.autograd.grad((y * weights).sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        for y in (got, wanted)
    )
    for gradient, right in zip(found, other, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 7, 16, 37])
def test_a_linear_recurrence(length: int) -> None:
    a, b, initial = draw(2, length, 3), draw(2, length, 3), draw(2, 3)
    h, out = initial, []
    for t in range(length):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    agree(linear_scan(a, b, initial), torch.stack(out, 1), a, b, initial)


def test_its_second_derivatives() -> None:
    inputs = (draw(1, 5, 2), draw(1, 5, 2), draw(1, 2))
    assert torch.autograd.gradgradcheck(linear_scan, inputs)


@pytest.mark.parametrize("length", [1, 6, 23])
@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_the_selective_recurrence(length: int, continued: bool, packed: bool) -> None:
    u, dt, b, c = draw(2, length, 3), draw(2, length, 3), draw(2, length, 4), draw(2, length, 4)
    a, initial = draw(3, 4), draw(2, 3, 4)
    more: dict[str, Any] = {"initial": initial if continued else None}
    more["starts"] = torch.rand(2, length) < 0.3 if packed else None
    args = (u, torch.nn.functional.softplus(dt), -a.exp(), b, c)
    for got, wanted in zip(selective_scan(*args, **more), naive_selective_scan(*args, **more), strict=True):
        agree(got, wanted, u, dt, a, b, c, initial)


def test_a_step_of_zero_leaves_the_state_and_half_precision_is_computed_in_float32() -> None:
    u, b = torch.randn(2, 4, 3), torch.randn(2, 4, 5)
    initial = torch.randn(2, 3, 5)
    _, last = selective_scan(u, torch.zeros_like(u), -torch.ones(3, 5), b, b, initial)
    assert torch.equal(last, initial)
    y, last = selective_scan(u.bfloat16(), u.bfloat16().abs(), -torch.ones(3, 5), b.bfloat16(), b.bfloat16())
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("continued", [False, True])
def test_a_short_convolution(taps: int, packed: bool, continued: bool) -> None:
    x, weight, bias, before = draw(2, 7, 3), draw(3, taps), draw(3), draw(2, taps - 1, 3)
    starts = torch.tensor([[0, 0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 1, 0]]).bool() if packed else None
    rows = []
    for row in range(2):
        seen = [*before[row]] if continued else [torch.zeros(3, dtype=torch.float64)] * (taps - 1)
        out = []
        for t in range(7):
            if starts is not None and starts[row, t]:
                seen = [torch.zeros(3, dtype=torch.float64)] * len(seen)
            seen = [*seen, x[row, t]]
            out.append(bias + sum(weight[:, k] * seen[len(seen) - taps + k] for k in range(taps)))
        rows.append(torch.stack(out))
    got = short_convolution(x, weight, bias, before if continued else None, starts)
    agree(got, torch.stack(rows), x, weight, bias, before)
    without = short_convolution(x, weight, None, before if continued else None, starts)
    torch.testing.assert_close(without, got - bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_aligning_and_back(side: str) -> None:
    x = torch.arange(1.0, 11).view(2, 5, 1)
    valid = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    moved, aligned = align(x, valid, side)
    assert moved[0, :, 0].tolist() == ([2, 4, 5, 0, 0] if side == "left" else [0, 0, 2, 4, 5])
    assert aligned.counts.tolist() == [3, 0]
    assert restore(moved, aligned)[0, :, 0].tolist() == [0, 2, 0, 4, 5]


def test_where_documents_start() -> None:
    segments = torch.tensor([[3, 3, 5, 5, 9]])
    assert starts_of(segments, None).int().tolist() == [[0, 0, 1, 0, 1]]
    assert starts_of(segments, None, torch.tensor([2])).int().tolist() == [[1, 0, 1, 0, 1]]
    assert starts_of(segments, torch.tensor([[1, 1, 1, 1, 0]]).bool()).int().tolist() == [[0, 0, 1, 0, 0]]
