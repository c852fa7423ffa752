"""Fourier mixing against its definition."""

import pytest
import torch

from variform.ops.fourier import fourier_flops, fourier_mix, naive_fourier_mix


@pytest.mark.parametrize(("length", "dim", "groups"), [(1, 4, 1), (7, 6, 1), (12, 9, 3), (5, 8, 2)])
def test_equals_the_definition(length: int, dim: int, groups: int) -> None:
    x = torch.randn(2, length, dim, dtype=torch.float64, requires_grad=True)
    out, wanted = fourier_mix(x, groups), naive_fourier_mix(x, groups)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-11)
    weights = torch.randn_like(out)
    gradients = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (out, wanted))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


def test_half_precision_is_transformed_in_float32() -> None:
    x = torch.randn(1, 9, 4).bfloat16()
    assert torch.equal(fourier_mix(x), fourier_mix(x.float()).bfloat16())


def test_operations_of_a_transform() -> None:
    assert [fourier_flops(1, 1), fourier_flops(8, 4)] == [0, 5 * 32 * 5]
