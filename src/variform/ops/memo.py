"""What was worked out from the values of tensors, remembered for as long as these hold."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar
from weakref import ref

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["TensorMemo"]

T = TypeVar("T")


class TensorMemo:
    """Results by the tensors that they were worked out from, or those that these are views of.

    A result is forgotten when a tensor changes in place, and dies with the first tensor; it must not hold it. Tensors
    made in inference mode do not tell of changes, and nothing is remembered of them; nor do changes tell that pass
    torch by (`.data`, memory shared with numpy).

    Args:
        size: results that are remembered for one first tensor.
    """

    def __init__(self, size: int = 4) -> None:
        self.size = size
        self._known: Any = WeakIdKeyDictionary()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, tensors: Sequence[Tensor], key: Hashable, work_out: Callable[[], T]) -> T:
        """The result for these tensors under `key`, worked out now where it is not known."""
        if any(tensor.is_inference() for tensor in tensors):
            return work_out()
        bases = [tensor if tensor._base is None else tensor._base for tensor in tensors]
        views = tuple((id(base), *_view(tensor)) for base, tensor in zip(bases, tensors, strict=True))
        entries = self._known.setdefault(bases[0], {})
        known = entries.get((key, views))
        if known is not None and all(there() is base for there, base in zip(known[0], bases, strict=True)):
            return known[1]  # type: ignore[no-any-return]
        found = work_out()
        entries.pop((key, views), None)
        while len(entries) >= self.size:
            entries.pop(next(iter(entries)))
        entries[key, views] = ([ref(base) for base in bases], found)
        return found


def _view(tensor: Tensor) -> tuple[Hashable, ...]:
    return tensor._version, tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride()
