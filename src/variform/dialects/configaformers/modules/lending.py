"""Input streams that lend their sizes to cuts with named bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from variform.core.dims import Dim, parse_dim, parse_shape
from variform.core.spec import Spec, described
from variform.errors import ConfigError
from variform.parts.op.cutting import CutOp, names_told
from variform.parts.op.tokenwise import CopyOp
from variform.stack.lines import Block, Step

Shapes = Mapping[str, Sequence[int | str]]


def lend_sizes(lines: Sequence[Spec], inputs: Shapes) -> list[Spec]:
    """The lines, with cuts that also read the input streams in whose shapes the names in their bounds stand.

    A bound such as `L_in` is a number only when the program runs, so a step that uses it has to read a stream that
    has this size. A cut of an input stream that has it needs no other.

    Args:
        lines: blocks and steps.
        inputs: the shapes of the input streams.
    """
    alive = {name: names_told((parse_shape(shape),)) for name, shape in inputs.items()}
    return [_with_lenders(line, alive) for line in lines]


def _with_lenders(line: Spec, alive: dict[str, frozenset[str]]) -> Spec:
    if line.part is Block:
        inner = [_with_lenders(item, alive) for item in line["lines"]]
        same = all(a is b for a, b in zip(inner, line["lines"], strict=True))
        return line if same else line.replace(lines=inner)
    if line.part is not Step:
        return line
    op = described(line.get("op"))
    if isinstance(op, Spec) and op.part is CutOp:
        needed = _names(op) - alive.get(line["reads"][0], frozenset())
        lenders = (next((name for name, told in alive.items() if size in told), None) for size in sorted(needed))
        more = dict.fromkeys(name for name in lenders if name is not None and name not in line["reads"])
        line = line.replace(reads=(*line["reads"], *more)) if more else line
    told = alive.get(line["reads"][0]) if isinstance(op, Spec) and op.part is CopyOp else None
    for name in line["into"]:
        alive.pop(name, None)
        if told is not None:
            alive[name] = told
    return line


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
