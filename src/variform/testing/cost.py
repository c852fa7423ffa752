"""Checks of what a part is said to cost, against really running it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from variform.core.part import Part
from variform.inspect.describe import Description, describe
from variform.ops.attention.call import Call
from variform.ops.attention.meter import inside_attention, metering
from variform.testing.case import Case
from variform.testing.report import check

SIZES = ((3, 7), (2, 13))


@check("cost")
def cost(case: Case) -> None:
    """`describe` tells what a real run needs: parameters and state exactly, operations, activation bytes within 5 %."""
    host = case.host(case.setting(companion=False))
    for batch, length in ((batch, case.fit(length)) for batch, length in SIZES):
        told = describe(host, batch, length)
        model = case.model(case.setting(companion=False), torch.float32, perturbed=False)
        args, kwargs = model.example_inputs(batch, length)
        counted = sum(p.numel() for p in model.parameters())
        assert told.params == counted, f"{told.params} parameters are told, and there are {counted}"
        _operations(told, model, args, kwargs)
        kept = saved_bytes(model, args, kwargs)
        error = abs(told.activation_bytes - kept)
        assert error <= 0.05 * kept, f"{told.activation_bytes} activation bytes are told, and {kept} are kept"
        if told.state_bytes is not None:
            state = model.example_state(batch, length)
            held = _bytes_of(t for t in pytree.tree_leaves(state) if isinstance(t, Tensor))
            assert told.state_bytes == held, f"{told.state_bytes} bytes of state are told, and there are {held}"


def _operations(told: Description, model: Any, args: Any, kwargs: Any) -> None:
    calls: list[Call] = []
    counter = Operations(calls)
    with torch.no_grad(), metering(lambda call, backend: calls.append(call)), counter:
        model(*args, **kwargs)
    lowest, highest = counter.products, counter.products + 2 * counter.numbers
    by_formula = any(type(m).cost is not Part.cost for m in model.modules() if isinstance(m, Part))
    if by_formula:
        # A formula may count what no product shows (scans), but neither less than the products nor more than all.
        good = lowest <= told.flops_dense <= highest
        assert good, f"{told.flops_dense} operations are told; a run makes {lowest} in products and {highest} in all"
        return
    assert told.flops_dense == lowest, f"{told.flops_dense} operations are told, and a run makes {lowest}"
    unvisited = sum(_unvisited(call) for call in calls)
    visited = lowest - unvisited
    assert told.flops == visited, f"{told.flops} operations over visited pairs are told, and {visited} are right"


def _unvisited(call: Call) -> int:
    """Operations on pairs that the masks exclude, counted on the mask itself."""
    symbol = call.symbolic_mask()
    if symbol is None:
        return 0
    batch, heads, queries, dim = call.q.shape
    pairs = queries * call.k.shape[2]
    dense = symbol.dense(*call.positions()).expand(batch, heads, queries, -1)
    return 2 * (dim + call.v.shape[-1]) * (batch * heads * pairs - int(dense.sum()))


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations of a real run: in products by torch's formulas, and the numbers that all of them make.

    Args:
        calls: the attention calls so far, the one that runs last. Kernels that want heads of one size are given zeros
            beside the smaller ones, which do not count.
    """

    def __init__(self, calls: Sequence[Call] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = calls
        self.products = 0
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run and count."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        self.numbers += sum(t.numel() * _effort(func) for t in pytree.tree_leaves(out) if isinstance(t, Tensor))
        if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            call = self.calls[-1] if self.calls and inside_attention() else None
            own = args[:3] if call is None else (call.q, call.k, call.v)
            # As many as the whole call makes without skipping: a backend may have cut it into windows.
            self.products += _attention(own[0].shape, own[1].shape, own[2].shape[-1])
        elif packet in flop_registry:
            self.products += int(flop_registry[packet](*args, **kwargs, out_val=out))
        return out


def _attention(q: torch.Size, k: torch.Size, dim_value: int) -> int:
    """The two products of a fused attention, whose keys may have fewer heads than its queries."""
    batch, heads, queries, dim = q
    return 2 * batch * heads * queries * k[2] * (dim + dim_value)


def _effort(func: Any) -> int:
    """Operations a number: a Fourier transform makes more than one."""
    return 5 * math.ceil(math.log2(4096)) if "fft" in func.name() else 1


def saved_bytes(model: Any, args: Any, kwargs: Any) -> int:
    """The distinct memory that a real forward pass in training keeps, parameters and buffers apart."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(*args, **kwargs)
    return _bytes_of(kept)


def _bytes_of(tensors: Any) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
