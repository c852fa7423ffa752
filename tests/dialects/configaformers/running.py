"""Programs held against their tables: every line that runs has the shapes that were printed for it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from variform.core.dims import shape_text, size_of
from variform.stack.lines import steps_of
from variform.stack.program import ProgramModel


class Made(TorchDispatchMode):
    """Counts what is computed or allocated while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def no_tensors() -> Iterator[None]:
    """What runs here must neither make a tensor nor compute with one."""
    made = Made()
    with made:
        yield
    assert not made.calls, made.calls[:5]


def run_lines(model: ProgramModel, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Any]]:
    """The outputs of a program, and the shapes of all that its steps read and wrote, in order."""
    seen: list[Any] = []

    def note(step: Any, args: Any, results: tuple[Tensor, ...]) -> None:
        seen.append(([tuple(x.shape) for x in args[0]], [tuple(y.shape) for y in results]))

    handles = [step.register_forward_hook(note) for step in {id(s): s for _, s in steps_of(model.lines)}.values()]
    try:
        with torch.no_grad():
            out = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return out, seen


def check_printed_shapes(model: ProgramModel, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Run a program whose lines are all computed (`attention="literal"`) and compare every shape with its table."""
    inputs = model.admission.example_of(sizes)
    kept = {name: (value, value.clone()) for name, value in inputs.items()}
    out, seen = run_lines(model, inputs)
    rows = model.table.rows
    assert len(seen) == len(rows)
    for row, (read, written) in zip(rows, seen, strict=True):
        for told, real in ((row.reads[: len(read)], read), (row.writes, written)):
            wanted = [tuple(size_of(size, sizes) for size in shape) for _, shape in told]
            assert wanted == real, f"{row.where}: {[shape_text(s) for _, s in told]} are {real} at {dict(sizes)}"
    assert all(inputs[name] is value and torch.equal(value, copy) for name, (value, copy) in kept.items())
    return out
