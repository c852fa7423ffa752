"""act(gate) * up against the plain product: values, gradients of two orders, what is kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from variform.ops.gated import gated

ACTS = {"silu": F.silu, "gelu": F.gelu, "sigmoid": torch.sigmoid, "relu": F.relu, "tanh": torch.tanh}


@pytest.mark.parametrize("name", ACTS)
def test_values_and_gradients_of_two_orders(name: str) -> None:
    act = ACTS[name]
    inputs = [torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    torch.testing.assert_close(gated(*inputs, act), act(inputs[0]) * inputs[1], rtol=0, atol=0)
    assert torch.autograd.gradcheck(lambda gate, up: gated(gate, up, act), inputs)
    assert torch.autograd.gradgradcheck(lambda gate, up: gated(gate, up, act), inputs)


def kept(run: Callable[[Tensor, Tensor], Tensor], gate: Tensor, up: Tensor) -> int:
    """Bytes of different tensors that the backward pass needs beside the inputs."""
    found: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        if t.data_ptr() not in (gate.data_ptr(), up.data_ptr()):
            found[t.data_ptr()] = t.nbytes
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = run(gate, up)
    assert out.requires_grad
    return sum(found.values())


def test_the_activated_gate_is_not_kept() -> None:
    gate, up = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16, requires_grad=True)
    assert kept(lambda g, u: F.silu(g) * u, gate, up) == gate.nbytes
    assert kept(lambda g, u: gated(g, u, F.silu), gate, up) == 0


def test_gradients_of_each_row_alone() -> None:
    gate, up = torch.randn(4, 6), torch.randn(4, 6)
    rows = vmap(grad(lambda g, u: gated(g, u, F.silu).sum()))(gate, up)
    torch.testing.assert_close(rows, vmap(grad(lambda g, u: (F.silu(g) * u).sum()))(gate, up))
