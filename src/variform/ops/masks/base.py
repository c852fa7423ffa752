"""`Mask`: which query may attend to which key, as an immutable symbol. True = may attend."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from variform.ops.masks.tree import field_names, register
from variform.ops.masks.view import View, grid_view, point_view

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["And", "Band", "Everything", "Mask", "MaskMod", "Not", "Or"]

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Band = tuple[int | None, int | None]
"""`(back, ahead)`: keys with -ahead <= q - k <= back are attended; None is no limit on that side."""


class Mask(ABC):
    """Which query may attend to which key; combine with `&`, `|`, `~`.

    A mask is a function of positions and segments, never of lengths, and is materialised late. Subclasses are frozen
    dataclasses; tensors they hold are pytree leaves, so that masks pass through export, compile and FSDP.
    Equality is structural; tensors compare by identity.
    """

    _leaves: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register(cls)

    @abstractmethod
    def _visit(self, view: View) -> Tensor:
        """Bool tensor that broadcasts to the points of `view`."""

    def check(self, batch: int | None, heads: int | None, q_len: int, k_len: int) -> None:
        """Raise `ShapeError` when a tensor of this mask does not fit a call of these sizes exactly (None: unknown)."""
        return None

    def band(self) -> Band | None:
        """`(back, ahead)` when the mask is exactly a band of distances, else None."""
        return None

    @property
    def has_tensors(self) -> bool:
        """Whether any tensor is held, here or in an operand."""
        return any(isinstance(getattr(self, name), Tensor) for name in self._leaves)

    @property
    def needs_segments(self) -> bool:
        """Whether segment ids are read."""
        return False

    @property
    def is_causal(self) -> bool:
        """Whether this is exactly the causal mask: every key at or before the query, and no other."""
        return self.band() == (None, 0)

    def dense(self, q_pos: Tensor, k_pos: Tensor, q_seg: Tensor | None = None, k_seg: Tensor | None = None) -> Tensor:
        """The mask as a bool tensor, broadcastable to `[B, H, Lq, Lk]` (2-D or 4-D, never 3-D).

        Shapes: q_pos, q_seg `[Lq]` or `[B, Lq]`; k_pos, k_seg `[Lk]` or `[B, Lk]`, integers.
        Errors: `ShapeError` when a tensor of the mask does not fit.
        """
        batches = [t.shape[0] for t in (q_pos, k_pos, q_seg, k_seg) if t is not None and t.dim() == 2]
        self.check(max(batches) if batches else None, None, q_pos.shape[-1], k_pos.shape[-1])
        return self._visit(grid_view(q_pos, k_pos, q_seg, k_seg))

    def mask_mod(
        self,
        q_pos: Tensor | None = None,
        k_pos: Tensor | None = None,
        q_seg: Tensor | None = None,
        k_seg: Tensor | None = None,
    ) -> MaskMod:
        """The mask as FlexAttention's `mask_mod(b, h, q_idx, kv_idx)`; also evaluates any broadcastable index tensors.

        Without positions the index is the position. Shapes as in `dense`; sizes are not checked here (see `check`).
        """

        def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return self._visit(point_view(b, h, q_idx, kv_idx, q_pos, k_pos, q_seg, k_seg))

        return mod

    def pairs(self, q_len: int, k_len: int | None = None) -> int | float:
        """Visited (query, key) pairs of one head and row at positions 0..L-1; the mean when rows or heads differ."""
        from variform.ops.masks.counts import count_pairs

        return count_pairs(self, q_len, q_len if k_len is None else k_len)

    def density(self, q_len: int, k_len: int | None = None) -> float:
        """Visited share of the `q_len x k_len` square, in [0, 1]."""
        k_len = q_len if k_len is None else k_len
        return self.pairs(q_len, k_len) / max(1, q_len * k_len)

    def layout(self, q_len: int, k_len: int, block: int) -> Tensor:
        """Blocks with a visited pair: bool `[ceil(Lq/block), ceil(Lk/block)]`, `[H, ...]` where heads differ."""
        from variform.ops.masks.counts import block_layout

        return block_layout(self, q_len, k_len, block)

    def plot(self, q_len: int, k_len: int | None = None, ax: Axes | None = None) -> Axes:
        """Draw batch row 0, head 0 with matplotlib (extra `plot`) and return the axes; `vf.plot_mask` does more."""
        from variform.ops.masks.draw import draw, pyplot

        k_len = q_len if k_len is None else k_len
        shown = self.dense(torch.arange(q_len), torch.arange(k_len))
        shown = (shown[0, 0] if shown.dim() == 4 else shown).expand(q_len, k_len)
        axes: Axes = pyplot().subplots()[1] if ax is None else ax
        draw(axes, shown)
        axes.set(xlabel="key", ylabel="query", title=f"{self!r}: density {self.density(q_len, k_len):.3f}")
        return axes

    def __and__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        parts = [part for part in (*_parts(And, self), *_parts(And, other)) if not isinstance(part, Everything)]
        return Everything() if not parts else parts[0] if len(parts) == 1 else And(tuple(parts))

    def __or__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        parts = (*_parts(Or, self), *_parts(Or, other))
        return Everything() if any(isinstance(part, Everything) for part in parts) else Or(parts)

    def __invert__(self) -> Mask:
        return self.part if isinstance(self, Not) else Not(self)

    def _key(self) -> tuple[Any, ...]:
        values = (getattr(self, name) for name in field_names(self))
        return (type(self), *(id(value) if isinstance(value, Tensor) else value for value in values))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Mask) and self._key() == other._key())

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        """A constructor call: fields in order, those at their default left out."""
        shown: list[str] = []
        for position, field in enumerate(dataclasses.fields(cast(Any, self))):
            value = getattr(self, field.name)
            if not isinstance(value, Tensor) and value == field.default:
                continue
            text = f"tensor{list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            shown.append(text if position == len(shown) else f"{field.name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, eq=False, repr=False)
class Everything(Mask):
    """Every query attends to every key."""

    def _visit(self, view: View) -> Tensor:
        return (view.q_pos == view.q_pos) & (view.k_pos == view.k_pos)

    def band(self) -> Band:
        return (None, None)


@dataclass(frozen=True, eq=False, repr=False)
class _Combined(Mask):
    parts: tuple[Mask, ...]
    _leaves: ClassVar[tuple[str, ...]] = ("parts",)

    def check(self, batch: int | None, heads: int | None, q_len: int, k_len: int) -> None:
        for part in self.parts:
            part.check(batch, heads, q_len, k_len)

    @property
    def has_tensors(self) -> bool:
        return any(part.has_tensors for part in self.parts)

    @property
    def needs_segments(self) -> bool:
        return any(part.needs_segments for part in self.parts)


@dataclass(frozen=True, eq=False, repr=False)
class And(_Combined):
    """Attended where all parts agree; written `a & b`."""

    def _visit(self, view: View) -> Tensor:
        return functools.reduce(torch.Tensor.__and__, (part._visit(view) for part in self.parts))

    def band(self) -> Band | None:
        bands = [part.band() for part in self.parts]
        if any(band is None for band in bands):
            return None
        backs = [band[0] for band in bands if band is not None and band[0] is not None]
        aheads = [band[1] for band in bands if band is not None and band[1] is not None]
        return (min(backs) if backs else None, min(aheads) if aheads else None)

    def __repr__(self) -> str:
        return " & ".join(f"({part!r})" if isinstance(part, Or) else repr(part) for part in self.parts)


@dataclass(frozen=True, eq=False, repr=False)
class Or(_Combined):
    """Attended where any part agrees; written `a | b`."""

    def _visit(self, view: View) -> Tensor:
        return functools.reduce(torch.Tensor.__or__, (part._visit(view) for part in self.parts))

    def __repr__(self) -> str:
        return " | ".join(repr(part) for part in self.parts)


@dataclass(frozen=True, eq=False, repr=False)
class Not(Mask):
    """Attended where the part is not; written `~a`."""

    part: Mask
    _leaves: ClassVar[tuple[str, ...]] = ("part",)

    def _visit(self, view: View) -> Tensor:
        return ~self.part._visit(view)

    def check(self, batch: int | None, heads: int | None, q_len: int, k_len: int) -> None:
        self.part.check(batch, heads, q_len, k_len)

    @property
    def has_tensors(self) -> bool:
        return self.part.has_tensors

    @property
    def needs_segments(self) -> bool:
        return self.part.needs_segments

    def __repr__(self) -> str:
        return f"~({self.part!r})" if isinstance(self.part, _Combined) else f"~{self.part!r}"


def _parts(kind: type[_Combined], mask: Mask) -> tuple[Mask, ...]:
    return mask.parts if isinstance(mask, kind) else (mask,)
