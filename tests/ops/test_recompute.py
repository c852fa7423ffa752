import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from variform.ops.recompute import Cheap


def setting() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    make = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 5, 7), (11, 7), (11,))]
    return make[0], make[1], make[2]


@pytest.mark.parametrize("bias", [True, False])
def test_equals_a_linear_map(bias: bool) -> None:
    x, weight, b = setting()
    leaves = [x, weight, b] if bias else [x, weight]
    y = Cheap(F.gelu(x), F.gelu, (x,)).linear(weight, b if bias else None)
    true = F.linear(F.gelu(x), weight, b if bias else None)
    assert torch.equal(y, true)
    found = torch.autograd.grad(y.square().sum(), leaves)
    for a, c in zip(found, torch.autograd.grad(true.square().sum(), leaves), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12)


def test_derivatives_of_all_orders() -> None:
    x, weight, b = setting()

    def function(x: Tensor, weight: Tensor, b: Tensor) -> Tensor:
        return Cheap(F.gelu(x), F.gelu, (x,)).linear(weight, b)

    assert torch.autograd.gradcheck(function, (x, weight, b))
    assert torch.autograd.gradgradcheck(function, (x, weight, b))


def test_the_input_is_not_kept() -> None:
    x, weight, b = setting()
    value = F.gelu(x)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        Cheap(value, F.gelu, (x,)).linear(weight, b)
    assert value.data_ptr() not in kept
    assert x.data_ptr() in kept


def test_a_parameter_that_changed_in_between_is_noticed() -> None:
    x, weight, b = setting()
    gain = torch.ones(7, dtype=torch.float64, requires_grad=True)
    y = Cheap(x * gain, lambda x: x * gain, (x, gain)).linear(weight, b)
    with torch.no_grad():
        gain += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
