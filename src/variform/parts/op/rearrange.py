"""Splitting, merging and reordering axes by a pattern, as a step of a program."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.dims import Dim, Shape, shape_text
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import ConfigError, Problem, ShapeError, did_you_mean, nearest_divisors
from variform.parts.kinds import CONTENTS, Op

Group = tuple[str, ...]
"""The axes that one dimension is made of; none is a dimension of size 1."""

DOTS = "..."


@dataclass(frozen=True)
class Pattern:
    """Both sides of a pattern, as groups of axes."""

    left: tuple[Group, ...]
    right: tuple[Group, ...]

    def spread(self, rank: int) -> Pattern:
        """The pattern for tensors of a rank: `...` becomes the axes that it stands for.

        Raises:
            ShapeError: the rank does not fit.
        """
        dots = (DOTS,) in self.left
        count = rank - len(self.left) + dots
        if count < 0 or (not dots and count):
            least = "at least " if dots else ""
            raise ShapeError(f"the pattern is for {least}{len(self.left) - dots} sizes, and the input has {rank}")
        extra = [(f"{DOTS}{place}",) for place in range(count)]
        sides = [[new for group in side for new in (extra if group == (DOTS,) else [group])] for side in self.sides()]
        return Pattern(tuple(sides[0]), tuple(sides[1]))

    def sides(self) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
        """Left and right."""
        return self.left, self.right


@functools.cache
def read_pattern(text: str) -> Pattern:
    """A pattern as einops writes it (Rogozhnikov 2022): `b l (h d) -> b h l d`.

    Raises:
        ConfigError: it is none, names an axis twice on a side, or not on both sides.
    """
    sides = text.split("->")
    if len(sides) != 2:
        raise ConfigError("a pattern has two sides: 'b l (h d) -> b h l d'", value=text)
    left, right = (_read_side(side, text) for side in sides)
    names = [[name for group in side for name in group] for side in (left, right)]
    for side in names:
        twice = sorted({name for name in side if side.count(name) > 1})
        if twice:
            raise ConfigError(f"the pattern names {', '.join(twice)} twice on one side", value=text)
    alone = sorted(set(names[0]) ^ set(names[1]))
    if alone:
        hint = "rearranging neither drops nor invents axes; a new axis of size 1 is written 1"
        raise ConfigError(f"the pattern has {', '.join(alone)} on one side only", value=text, hint=hint)
    return Pattern(left, right)


def _read_side(side: str, text: str) -> tuple[Group, ...]:
    if not re.fullmatch(r"(\s*(\([^()]*\)|[^\s()]+)\s*)*", side):
        raise ConfigError("the brackets of the pattern do not match", value=text)
    groups: list[Group] = []
    for inner, name in re.findall(r"\(([^()]*)\)|([^\s()]+)", side):
        axes = [axis for axis in (inner.split() if not name else [name]) if axis != "1"]
        wrong = [axis for axis in axes if not axis.isidentifier() and (axis != DOTS or not name)]
        if wrong:
            hint = "'...' stands outside of brackets" if DOTS in wrong else "axes are named by letters, digits and _"
            raise ConfigError(f"{wrong[0]!r} is no axis of a pattern", value=text, hint=hint)
        groups.append(tuple(axes))
    return tuple(groups)


@register("rearrange")
class Rearrange(Op):
    """Splits, merges, reorders, adds and drops axes: `b l (h d) -> b h l d`.

    Shapes:
        x: the left side -> the right side; brackets multiply sizes, 1 is a size of 1, `...` any axes

    Args:
        pattern: both sides.
        lengths: sizes of axes within brackets; one axis of a bracket may be left out.
    """

    accepts: ClassVar[tuple[frozenset[str], ...]] = (frozenset(CONTENTS),)

    def __init__(self, pattern: str, lengths: Mapping[str, Annotated[int, Field(gt=0)]] | None = None) -> None:
        super().__init__()
        self.pattern = read_pattern(pattern)
        self.lengths = dict(lengths or {})

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The pattern can be read, and lengths are of its axes."""
        try:
            pattern = read_pattern(facts["pattern"])
        except ConfigError as error:
            return [problem.below("pattern") for problem in error.problems]
        axes = [axis for group in pattern.left for axis in group if axis != DOTS]
        return [
            Problem(f"lengths.{name}", f"the pattern has no axis {name!r}", hint=did_you_mean(name, axes))
            for name in facts["lengths"] or {}
            if name not in axes
        ]

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """A sequence of features whose tokens stay apart can be masked and cut anywhere; what decodes, `flow` tells."""
        pattern = read_pattern(args["pattern"])
        token = pattern.left[1] if len(pattern.left) == 3 else ()
        apart = len(token) == 1 and token in pattern.right
        return Can() if apart else Can(key_padding=False, attention_mask=False, packed=False)

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """Sizes follow their axes."""
        (shape,) = inputs
        pattern = read_pattern(args["pattern"]).spread(len(shape))
        lengths = args["lengths"] or {}
        sizes: dict[str, int | Dim] = {}
        for group, size in zip(pattern.left, shape, strict=True):
            sizes.update(_split(group, size, lengths, shape))
        return (tuple(_product(sizes[axis] for axis in group) for group in pattern.right),)

    @classmethod
    def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
        """Ids stay ids; what else comes out is open."""
        return ("ids",) if contents[0] == "ids" else ("",)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Split, reorder, merge."""
        (x,) = inputs
        pattern = self.pattern.spread(x.dim())
        sizes: dict[str, int] = {}
        for group, size in zip(pattern.left, x.shape, strict=True):
            # Lists, because torch.compile does not follow generators.
            known = math.prod([self.lengths[axis] for axis in group if axis in self.lengths])
            sizes.update({axis: self.lengths.get(axis, size // known) for axis in group})
        order = [axis for group in pattern.left for axis in group]
        target = [axis for group in pattern.right for axis in group]
        x = x.reshape([sizes[axis] for axis in order]).permute([order.index(axis) for axis in target])
        return x.reshape([math.prod([sizes[axis] for axis in group]) for group in pattern.right])


def _split(group: Group, size: int | Dim, lengths: Mapping[str, int], shape: Shape) -> dict[str, int | Dim]:
    """The sizes of the axes that one dimension is made of."""
    known = math.prod(lengths[axis] for axis in group if axis in lengths)
    left_open = [axis for axis in group if axis not in lengths]
    if len(left_open) > 1:
        text = f"({' '.join(group)})"
        raise ShapeError(f"to split {size} into {text}, all its axes but one need a length: {', '.join(left_open)}")
    text = " ".join(group) or "1"
    if not left_open:
        if size != known:
            raise ShapeError(f"the axes {text!r} make {known}, and the size there is {size} of {shape_text(shape)}")
        return {axis: lengths[axis] for axis in group}
    rest = size // known
    if rest * known != size:
        hint = f"; {nearest_divisors(size, known)}" if isinstance(size, int) else ""
        raise ShapeError(f"the axes {text!r} split {size}, which {known} does not divide{hint}")
    return {axis: lengths.get(axis, rest) for axis in group}


def _product(sizes: Any) -> int | Dim:
    total: int | Dim = 1
    for size in sizes:
        total = total * size
    return total
