"""Named sizes in the bounds of cuts: the program tells them, whatever has become of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from variform.core.dims import Dim, parse_dim, parse_shape
from variform.core.spec import Spec, described
from variform.errors import ConfigError
from variform.parts.op.cutting import CutOp, names_told
from variform.stack.lines import Block, Step
from variform.stack.values import SIZE

Shapes = Mapping[str, Sequence[int | str]]


def lend_sizes(lines: Sequence[Spec], inputs: Shapes) -> tuple[list[Spec], dict[str, tuple[int | str, ...]]]:
    """The lines, with cuts that also read the sizes which their bounds name, and the inputs with these sizes.

    A bound such as `L_in` is a number only when the program runs. A cut of an input that has it needs no other.

    Args:
        lines: blocks and steps.
        inputs: the shapes of the input streams.
    """
    known = names_told([parse_shape(shape) for shape in inputs.values()])
    lent: dict[str, tuple[int | str, ...]] = {}
    done = [_with_sizes(line, known, lent) for line in lines]
    return done, {**{name: tuple(shape) for name, shape in inputs.items()}, **lent}


def _with_sizes(line: Spec, known: Iterable[str], lent: dict[str, tuple[int | str, ...]]) -> Spec:
    if line.part is Block:
        inner = [_with_sizes(item, known, lent) for item in line["lines"]]
        same = all(a is b for a, b in zip(inner, line["lines"], strict=True))
        return line if same else line.replace(lines=inner)
    op = described(line.get("op"))
    if line.part is not Step or not isinstance(op, Spec) or op.part is not CutOp:
        return line
    needed = sorted(_names(op) & frozenset(known))
    lent.update({SIZE + name: (name,) for name in needed})
    more = [SIZE + name for name in needed if SIZE + name not in line["reads"]]
    return line.replace(reads=(*line["reads"], *more)) if more else line


def _names(cut: Spec) -> set[str]:
    """The names of sizes in the bounds of a cut; what cannot be read is reported later."""
    found: set[str] = set()
    for bound in (cut["start"], cut["stop"]):
        try:
            size = parse_dim(bound) if isinstance(bound, str) else 0
        except ConfigError:
            continue
        found |= size.symbols() if isinstance(size, Dim) else frozenset()
    return found
