"""Inferred shapes against real ones, and values against formulas."""

from typing import Any

import torch
from torch import Tensor

from variform.core.dims import parse_shape, size_of
from variform.core.resolve import resolve
from variform.core.spec import Spec

Written = tuple[int | str, ...]


def built(spec: Spec, *shapes: Written, **sizes: int) -> tuple[Any, list[Tensor], tuple[Tensor, ...]]:
    """The op, with the fields that follow from the shapes of its inputs."""
    symbolic = tuple(map(parse_shape, shapes))
    args = dict(resolve(spec, **spec.part.sizes(spec.args, symbolic)).args)
    inferred = spec.part.shapes(args, symbolic)
    op = spec.part(**args).double()
    inputs = [real(shape, **sizes) for shape in shapes]
    out = op(*inputs)
    outputs = out if isinstance(out, tuple) else (out,)
    for shape, output in zip(inferred, outputs, strict=True):
        assert [size_of(size, sizes) for size in shape] == list(output.shape), f"{shape} against {list(output.shape)}"
    return op, inputs, outputs


def real(shape: Written, **sizes: int) -> Tensor:
    """Random numbers of a shape."""
    whole = [size_of(size, sizes) for size in parse_shape(shape)]
    return torch.randn(whole, dtype=torch.float64, requires_grad=True)


def same(got: Tensor, wanted: Tensor, *inputs: Tensor) -> None:
    """Equal values, and equal gradients of the inputs."""
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), inputs, allow_unused=True, materialize_grads=True),
        torch.autograd.grad((wanted * weight).sum(), inputs, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
