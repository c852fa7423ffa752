"""Linear maps: the kernel that is called without gradients computes the same, and nobody who watches meets it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from variform.ops import products
from variform.ops.products import linear
from variform.parts.linear import Linear

WIDTH = 512


class Spy:
    """The kernel, on any processor; counts its calls."""

    calls = 0

    def __call__(self, *inputs: Any) -> Tensor:
        self.calls += 1
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(*inputs)
        return out


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here")
    found = Spy()
    monkeypatch.setattr(products, "_kernel", lambda: found)
    return found


def inputs(rows: int = 1, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(WIDTH + 3, WIDTH))
    return torch.randn(1, rows, WIDTH), weight, torch.randn(WIDTH + 3) if bias else None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_it_is_the_formula(spy: Spy, rows: int, bias: bool) -> None:
    x, weight, offset = inputs(rows, bias)
    with torch.no_grad():
        expected = x.double() @ weight.double().T + (0 if offset is None else offset.double())
        for given in (x, x[0], x.transpose(0, 1), x.repeat(2, 1, 2)[..., ::2].contiguous(), x.expand(2, -1, -1)):
            out = linear(given, weight, offset)
            assert out.shape == (*given.shape[:-1], WIDTH + 3)
        torch.testing.assert_close(linear(x, weight, offset).double(), expected, rtol=1e-5, atol=1e-4)
        strided = torch.stack((x, x), -1)[..., 0]
        torch.testing.assert_close(linear(strided, weight, offset).double(), expected, rtol=1e-5, atol=1e-4)
    assert spy.calls == 7


def test_layers_and_tied_heads_call_it(spy: Spy) -> None:
    layer, x = Linear(WIDTH, WIDTH), torch.randn(2, WIDTH)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)
    assert spy.calls == 1
    layer(x).sum().backward()
    assert spy.calls == 1
    assert layer.weight.grad is not None


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype is torch.bfloat16


def _vmap(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        out = torch.func.vmap(lambda one: linear(one, weight, bias))(x)
        torch.testing.assert_close(out, F.linear(x, weight, bias))


def _tangents(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad(), forward_ad.dual_level():
        out = linear(forward_ad.make_dual(x, x), weight, None)
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, F.linear(x, weight))


def _counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        linear(x, weight, bias)
    assert counter.get_total_flops() == 2 * weight.numel() * x[..., 0].numel()


def _traced(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        graph = torch.jit.trace(Linear(WIDTH, WIDTH), x, check_trace=False).inlined_graph
    assert "aten::linear" in str(graph)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert linear(mode.from_tensor(x), mode.from_tensor(weight.detach())).shape == (1, 1, WIDTH + 3)


def _compiled(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        out = torch.compile(linear, backend="aot_eager", fullgraph=True)(x, weight, bias)
        torch.testing.assert_close(out, F.linear(x, weight, bias))


def _exported(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    layer = Linear(WIDTH, WIDTH).requires_grad_(False)
    with torch.no_grad():
        assert "mkldnn" not in str(torch.export.export(layer, (x,)).graph)


def _switched_off(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        linear(x, weight, bias)


def _other_tensors(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        linear(x.double(), weight.double(), None if bias is None else bias.double())
        linear(x.bfloat16(), weight.bfloat16())
        linear(x[..., :8], weight[:, :8])
        linear(x, weight.T.contiguous().T)
        linear(x[0, 0], weight)
        linear(x[:0], weight)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:TF32 acceleration:UserWarning")
@pytest.mark.parametrize(
    "watch",
    [
        _autocast,
        _vmap,
        _tangents,
        _counted,
        _traced,
        _fake,
        _compiled,
        _exported,
        _switched_off,
        _other_tensors,
    ],
)
def test_who_watches_or_transforms_meets_the_usual_operation(
    spy: Spy, watch: Callable[[Tensor, Tensor, Tensor | None], None]
) -> None:
    x, weight, bias = inputs()
    watch(x, weight, bias)
    assert spy.calls == 0


def test_what_does_not_fit_is_refused_as_ever(spy: Spy) -> None:
    x, weight, _ = inputs()
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(x[..., 1:], weight)


def test_where_it_is_not_known_to_be_quicker_the_usual_kernel_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, wide, known in (("AMD EPYC", True, True), ("AMD EPYC", False, False), ("Intel(R) Xeon(R)", True, False)):
        facts = {"cpu_name": name, "avx512_f": wide}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda facts=facts: facts)
        products._kernel.cache_clear()
        available = torch._C.has_mkl and torch._C._has_mkldnn
        assert (products._kernel() is not None) == (known and available)
    products._kernel.cache_clear()
