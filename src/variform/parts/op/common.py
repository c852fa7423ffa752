"""What steps of programs share: abilities, kinds of contents, splitting and dividing features."""

from __future__ import annotations

from torch import Tensor

from variform.core.dims import Dim, Shape, shape_text
from variform.core.part import Can
from variform.errors import ShapeError, nearest_divisors

FEATURES, HEADS, MASKS = frozenset({"features"}), frozenset({"heads"}), frozenset({"mask", "scores"})
SCORES = frozenset({"scores"})

NO_STREAMS = Can(key_padding=False, attention_mask=False, packed=False, decode=False)
"""What a step that mixes rows of the sequence can do: it knows nothing of padding, masks or documents."""

STEPWISE = Can(key_padding=False, attention_mask=False, packed=False)
"""The same of a step that decodes."""


def split(x: Tensor, heads: int) -> Tensor:
    """[B, L, H * D] -> [B, H, L, D]."""
    batch, length, dim = x.shape
    return x.view(batch, length, heads, dim // heads).transpose(1, 2)


def ranked(what: str, shape: Shape, form: str) -> Shape:
    """Refuse a shape of another rank than `form`, which is written "[B, H, L, D]" with or without words before it."""
    if len(shape) != form.count(",") + 1:
        raise ShapeError(f"{what} takes {form}, not {shape_text(shape)}")
    return shape


def divided(dim: int | Dim, heads: int | Dim, what: str = "heads") -> int | Dim:
    """The features of one head, or of another piece."""
    if not isinstance(dim, int) or not isinstance(heads, int):
        raise ShapeError(f"features and {what} must be numbers to divide them, not {dim} and {heads}")
    if dim % heads:
        raise ShapeError(f"{heads} {what} do not divide {dim} features; {nearest_divisors(dim, heads)}")
    return dim // heads
