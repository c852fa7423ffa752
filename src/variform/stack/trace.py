"""Names, shapes and their origin along the lines of a program, inferred before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from variform.core.dims import Shape, shape_text
from variform.core.fields import field_map
from variform.core.inherit import Inherit
from variform.core.part import Facts
from variform.core.spec import Shared, Spec
from variform.errors import Problem, ShapeError, join_path
from variform.parts.kinds import Op
from variform.stack.adapt import ADAPTERS, output_shapes, step_facts
from variform.stack.lines import Block, Step
from variform.stack.rows import Row, Sound, Trace, names_or_none, place_text, unshared
from variform.stack.suggest import Misfit, missing, repair, replace_contents
from variform.stack.values import SIZE, Uses, Value, accepted, in_words, tells_size, written

__all__ = ["LineFollower", "Row", "Trace", "trace_lines", "unshared"]


class LineFollower:
    """Follows the lines of a program or of one of its blocks while they are resolved.

    Args:
        trace: what is known, shared with the lines around.
        path: the place of the list of lines.
        block: the heading.
        repeat: which copy of the block.
        lines: the lines themselves, where they are known from the start.
    """

    def __init__(
        self, trace: Trace, path: str = "lines", block: str = "", repeat: int = 1, lines: tuple[Any, ...] = ()
    ) -> None:
        self.trace = trace
        self.path = path
        self.block = block
        self.repeat = repeat
        self.lines = lines
        self.found: list[Problem] = []
        self.current: Spec | None = None
        self.entry: dict[str, Value] | None = None
        self.start = 0
        self.sound: Sound | None = None

    def problems(self) -> list[Problem]:
        """What has been found, by place in the list of lines."""
        return self.found

    def before(self, index: int, child: Any) -> Facts | None:
        """Sizes for the line that comes next; None when what it reads is missing or lost."""
        self.current = line = self._description(child)
        if line is None or not _is_readable(line):
            return {}
        if line.part is Block:
            return self._enter(index, line, isinstance(child, Shared))
        names: tuple[str, ...] = line["reads"]
        values = self.trace.values
        unknown = [name for name in dict.fromkeys(names) if name not in values]
        for name in unknown:
            message = f"reads {name!r}, which nothing before it writes"
            self._report(
                index, line, message, self._written_later(index, name) or missing(name, values, names), "reads"
            )
        if unknown or any(values[name].shape is None for name in names):
            return None
        return self._sizes(index, line, names)

    def after(self, index: int, child: Any) -> None:
        """Infer what the line writes."""
        if self.sound is not None:
            sound, self.sound = self.sound, None
            copy = self.trace.copies[sound.block["label"]] if sound.block["label"] else self.repeat
            self.trace.rows += sound.again(f"{self.path}.{index}", copy, self.trace.values)
            return
        line = None if child is None else self._description(child)
        if line is None:
            if self.current is not None:
                self._leave_broken(index, self.current)
        elif line.part is Step:
            self._infer(index, line)
        elif self.entry is not None and self.current is not None:
            self.trace.keep(self.current, line, self.entry, self.trace.rows[self.start :])

    def _written_later(self, index: int, name: str) -> str:
        for place, child in enumerate(self.lines[index + 1 :], index + 1):
            line = self._description(child)
            if line is not None and line.part is Step and name in names_or_none(line.get("into")):
                return f"{self._where(place, line)} writes it, after this: should it come first?"
        return ""

    def _description(self, child: Any) -> Spec | None:
        if isinstance(child, Shared):
            if child.spec is not None:
                self.trace.shared[child.name] = child.spec
            child = self.trace.shared.get(child.name)
        return child if isinstance(child, Spec) and child.part in (Step, Block) else None

    def _enter(self, index: int, block: Spec, shared: bool) -> Facts | None:
        label: str = block["label"]
        self.entry = None
        if any(block == other for other, _ in self.trace.broken):
            return None
        self.entry, self.start = dict(self.trace.values), len(self.trace.rows)
        count = self.trace.copies[label] = self.trace.copies.get(label, 0) + 1
        sound = self.trace.sound.get(id(block))
        if sound is not None and not shared and sound.serves(self.trace.values):
            self.sound = sound
            return {"resolved": sound.resolved}
        path = f"{self.path}.{index}.lines"
        heading, copy = label or self.block, count if label else self.repeat
        return {"block_follower": LineFollower(self.trace, path, heading, copy, block["lines"])}

    def _leave_broken(self, index: int, line: Spec) -> None:
        """Lose what depends on a mistake: in a block its own lines have seen to that, unless it was passed over."""
        trace = self.trace
        if line.part is Block and self.entry is not None:
            now = trace.values
            trace.broken.append((line, all(now[name].shape == value.shape for name, value in self.entry.items())))
        elif not any(line == block and steady for block, steady in trace.broken):
            trace.lose(line, self._where(index, line))

    def _sizes(self, index: int, line: Spec, names: tuple[str, ...]) -> Facts | None:
        shapes = self._shapes(names)
        op = unshared(line.get("op"))
        known = {"read_shapes": shapes, "read_words": self._told(names)}
        known.update({} if op is None else step_facts(op.part, shapes))
        if op is None or not (issubclass(op.part, Op) or op.kind in ADAPTERS):
            return known
        exact = issubclass(op.part, Op) and op.part.arity is not None
        least = (op.part.arity or 1) if issubclass(op.part, Op) else ADAPTERS[op.kind].mains
        if len(names) < least or (exact and len(names) > least):
            many = f"{least} streams" if exact else f"at least {least} streams"
            self._report(index, line, f"takes {many}, and reads {len(names)}", field="reads", value=names)
            return None
        if not self._holds(index, line, op, names):
            return None
        dim = None if op.kind == "embedding" or "dim" not in field_map(op.part) else op.get("dim")
        if "dim" not in known and isinstance(dim, Inherit) and not dim.has_fallback:
            message = f"needs a known number of features, and {names[0]} is {self.trace.values[names[0]]}"
            hint = "the last size must be a number: declare it in the inputs' shapes"
            ids = self.trace.uses.of(self.trace.values[names[0]]) & {"ids"} and len(shapes[0]) == 2
            self._report(index, line, message, f"if it holds ids, embed it first; {hint}" if ids else hint, "reads")
            return None
        if issubclass(op.part, Op):
            known.update(op.part.sizes(op.args, shapes))
        return known

    def _holds(self, index: int, line: Spec, op: Spec, names: tuple[str, ...]) -> bool:
        """Whether what is read holds what the part takes; what does not is reported."""
        trace, wanted = self.trace, accepted(op, names)
        before, where = len(self.found), self._where(index, line)
        uses = Uses(dict(trace.uses.known))  # of this line: it may read one input twice
        for place, name in enumerate(names):
            value = trace.values[name]
            if uses.of(value) & wanted[place]:
                uses.read(value, wanted[place], where)
                continue
            shape = shape_text(value.shape or ())
            message = f"takes {in_words(wanted[place])}, and reads {name!r} {shape}, which {uses.told(value)}"
            misfit = Misfit(names, trace.values, trace.uses, wanted, lambda shapes: True)
            self._report(index, line, message, replace_contents(misfit, place), field="reads")
        return len(self.found) == before

    def _infer(self, index: int, line: Spec) -> None:
        op, names, into = unshared(line["op"]), line["reads"], line["into"]
        assert op is not None
        shapes, where, trace = self._shapes(names), self._where(index, line), self.trace
        wanted = accepted(op, names)
        try:
            outputs = _outputs(op, shapes, line)
        except ShapeError as error:
            fits = lambda changed: bool(_outputs(op, changed, line))  # noqa: E731
            hint = repair(Misfit(names, trace.values, trace.uses, wanted, fits))
            if not hint and len([name for name in names if not tells_size(name)]) > 1 and issubclass(op.part, Op):
                hint = "change one of the lines that these streams come from, so that they agree"
            self._report(index, line, f"{error}; it reads {self._told(names)}", hint)
            trace.lose(line, where)
            return
        if len(outputs) != len(into):
            streams = "1 stream" if len(outputs) == 1 else f"{len(outputs)} streams"
            message = f"gives {streams}, and {len(into)} {'is' if len(into) == 1 else 'are'} named"
            self._report(index, line, message, field="into", value=into)
            trace.lose(line, where)
            return
        if any(map(tells_size, into)):
            self._report(index, line, f"names of streams do not begin with {SIZE!r}", field="into", value=into)
            trace.lose(line, where)
            return
        read = tuple(trace.values[name] for name in names)
        for value, contents in zip(read, wanted, strict=True):
            trace.uses.read(value, contents, where)
        values = written(op, read, outputs, into, where)
        trace.values.update(zip(into, values, strict=True))
        constants = op.part.constants(op.args) if issubclass(op.part, Op) else {}
        takes = (*zip(names, shapes, strict=True), *constants.items())
        gives = tuple(zip(into, outputs, strict=True))
        path, name = f"{self.path}.{index}", line["label"] or op.name
        holds = tuple(value.holds for value in values)
        trace.rows.append(Row(path, self.block, self.repeat, index + 1, name, takes, gives, op, holds))

    def _told(self, names: tuple[str, ...]) -> str:
        return ", ".join(f"{name} {self.trace.values[name]}" for name in dict.fromkeys(names) if not tells_size(name))

    def _shapes(self, names: tuple[str, ...]) -> tuple[Shape, ...]:
        return tuple(self.trace.values[name].shape or () for name in names)

    def _where(self, index: int, line: Spec) -> str:
        op = unshared(line.get("op"))
        name = line.get("label") or (line.name if op is None else op.name)
        return place_text(self.block, self.repeat, index + 1, name)

    def _report(self, index: int, line: Spec, message: str, hint: str = "", field: str = "", value: Any = None) -> None:
        more = {} if value is None else {"value": value}
        text = f"{self._where(index, line)}: {message}"
        self.found.append(Problem(join_path(str(index), field), text, hint=hint, **more))


def trace_lines(lines: tuple[Any, ...], values: Mapping[str, Value]) -> Trace:
    """The trace of lines that are resolved and sound."""
    trace = Trace(dict(values))
    _follow(lines, LineFollower(trace))
    return trace


def _follow(lines: tuple[Any, ...], follower: LineFollower) -> None:
    for index, line in enumerate(lines):
        facts = follower.before(index, line) or {}
        spec = unshared(line)
        if spec is not None and "block_follower" in facts:
            _follow(spec["lines"], facts["block_follower"])
        follower.after(index, line)


def _outputs(op: Spec, shapes: tuple[Shape, ...], line: Spec) -> tuple[Shape, ...]:
    if issubclass(op.part, Op):
        return op.part.shapes(op.args, shapes)
    return output_shapes(op, line["reads"], shapes, line["into"])


def _is_readable(line: Spec) -> bool:
    """Whether the names are names: if not, resolution says so."""
    if line.part is Block:
        return isinstance(line["label"], str)
    names = (*names_or_none(line.get("reads")), *names_or_none(line.get("into")))
    return line.part is Step and all(isinstance(name, str) for name in names) and bool(line.get("reads"))
