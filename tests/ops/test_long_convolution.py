"""Long convolutions and diagonal state spaces against sums written out, values and gradients."""

import pytest
import torch

from tests.ops.test_scan import agree, draw
from variform.ops.diagonal import diagonal_kernel, diagonal_state_space, naive_diagonal_state_space
from variform.ops.long_convolution import (
    causal_convolution,
    causal_convolution_flops,
    convolution,
    naive_convolution,
)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 70, 150])
def test_a_causal_convolution(length: int) -> None:
    u, taps = draw(2, length, 3), draw(length + 5, 3)
    agree(causal_convolution(u, taps), naive_convolution(u, taps), u, taps)
    agree(causal_convolution(u, taps[:1]), u * taps[:1], u, taps)


@pytest.mark.parametrize("length", [1, 2, 33])
def test_a_convolution_to_both_sides(length: int) -> None:
    u, after, before = draw(2, length, 3), draw(length, 3), draw(length, 3)
    agree(convolution(u, after, before), naive_convolution(u, after, before), u, after, before)


def test_the_future_leaves_no_trace_not_even_by_rounding() -> None:
    u, taps = torch.randn(1, 150, 2), torch.randn(150, 2)
    changed = u.clone()
    changed[:, 71:] *= 1000
    assert torch.equal(causal_convolution(changed, taps)[:, :71], causal_convolution(u, taps)[:, :71])


def test_operations_grow_far_slower_than_the_square_of_the_length() -> None:
    assert causal_convolution_flops(3, 16, 2) == 2 * 3 * 16 * 16 * 2
    long, short = causal_convolution_flops(1, 8192, 1), causal_convolution_flops(1, 1024, 1)
    assert 8 < long / short < 16


@pytest.mark.parametrize("length", [1, 5, 8, 11, 16, 23])
@pytest.mark.parametrize("continued", [False, True])
def test_a_diagonal_state_space(length: int, continued: bool) -> None:
    u, rate, turn, weight, held = draw(2, length, 3), draw(3, 4), draw(3, 4), draw(3, 2, 4), draw(2, 3, 2, 4)
    decay, state = torch.stack((-rate.exp(), turn), 1), held if continued else None
    got, last = diagonal_state_space(u, decay, weight, state, chunk=8)
    wanted, end = naive_diagonal_state_space(u, decay, weight, state)
    agree(got, wanted, u, rate, turn, weight, held)
    agree(last, end, u, rate, turn, weight, held)
    if not continued:
        by_kernel = naive_convolution(u, diagonal_kernel(decay, weight, length))
        torch.testing.assert_close(got, by_kernel, rtol=0, atol=1e-11)
