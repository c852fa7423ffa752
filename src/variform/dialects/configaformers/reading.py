"""Reads blocks of module dicts into the lines of a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from variform.core.fields import MOST_PARTS, fields_of
from variform.core.spec import Shared, Spec
from variform.dialects.configaformers.modules import TYPES, step_of
from variform.dialects.configaformers.places import Place, Places
from variform.dialects.configaformers.registered import part_step
from variform.dialects.configaformers.scope import INDEX, Scope, plain
from variform.dialects.configaformers.shapes import read_shapes
from variform.dialects.configaformers.values import evaluated
from variform.errors import ConfigError, Problem, did_you_mean
from variform.stack.lines import Block, Step

COMMON = ("when", "share", "label")
"""Keys that every module may have, whatever its type."""

LEFT_OUT = Block.spec(lines=[])
"""What stands for a line whose condition is false, so that those after it keep their numbers and names."""


@dataclass(frozen=True)
class Spot:
    """Where the reader is.

    Args:
        path: in the config.
        at: in the program.
        words: in words.
        own: what of these words the program knows: not what stands around a nested one.
    """

    path: str
    at: str
    words: str
    own: str

    def line(self, index: int) -> Spot:
        """One module of the block here."""
        words = f", line {index + 1}"
        return Spot(f"{self.path}.config.{index}", f"{self.at}.lines.{index}", self.words + words, self.own + words)


@dataclass
class Reader:
    """Reads a config.

    Args:
        problems: what is wrong with the dicts themselves.
        places: where each line of the program comes from.
        shares: the parts that are shared by name, and where each is described first.
    """

    problems: list[Problem] = field(default_factory=list)
    places: Places = field(default_factory=Places)
    shares: dict[str, tuple[Spec, str]] = field(default_factory=dict)

    def blocks(self, blocks: Any, scope: Scope, path: str = "blocks", at: str = "", outer: str = "") -> list[Spec]:
        """The blocks of a program, copies included.

        Args:
            blocks: a list of dicts.
            scope: what expressions may name.
            path: the place of the list in the config.
            at: the place of the program, with a point; empty for the whole model.
            outer: the place around it in words, with a comma.
        """
        if not isinstance(blocks, (list, tuple)):
            self.problems.append(Problem(path, "blocks is a list of dicts", type(blocks).__name__))
            return []
        lines: list[Spec] = []
        for index, block in enumerate(blocks):
            label = _heading(block, index)
            spot = Spot(f"{path}.{index}", f"{at}lines.{len(lines)}", outer + label, label)
            lines += self._block(block, scope, spot)
        return lines

    def lines(self, config: Any, scope: Scope, path: str = "config", at: str = "", outer: str = "") -> list[Spec]:
        """The lines of a program without blocks; the arguments are those of `blocks`."""
        if not isinstance(config, (list, tuple)):
            self.problems.append(Problem(path, "must be a list of module dicts", config))
            return []
        return [
            self._line(module, scope, Spot(f"{path}.{index}", f"{at}lines.{index}", f"{outer}{own}", own))
            for index, module in enumerate(config)
            for own in [f"line {index + 1}"]
        ]

    def _block(self, block: Any, scope: Scope, spot: Spot) -> list[Spec]:
        if not isinstance(block, Mapping):
            self.problems.append(Problem(spot.path, "a block is a dict: {'config': [...], 'repeat': N}", block))
            return []
        config, repeat = self._keys(block, scope, spot)
        copies: list[Spec] = []
        for index in range(repeat if config else 0):
            inner = scope.repeat(index, repeat)
            copies.append(self._copy(block, config, inner, _copy_spot(spot, index)))
            if INDEX not in inner.used:
                self._same_places(spot, repeat)
                return copies * repeat
        return copies

    def _copy(self, block: Mapping[Any, Any], config: Sequence[Any], scope: Scope, spot: Spot) -> Spec:
        self.places.known[spot.at] = Place(spot.path, spot.words, spot.own)
        found: list[Problem] = []
        holds = _holds(block, scope, found)
        self._report(found, spot)
        lines = [self._line(module, scope, spot.line(index)) for index, module in enumerate(config)] if holds else []
        label = block.get("label")
        label = label if isinstance(label, str) else spot.own.split(",")[0]
        return Block.spec(lines=lines, label=label)  # one that is left out is empty, and counted

    def _same_places(self, spot: Spot, repeat: int) -> None:
        """The places in further copies of a block that does not depend on the number of the repeat."""
        first = [(at, place) for at, place in self.places.known.items() if f"{at}.".startswith(f"{spot.at}.")]
        for index in range(1, repeat):
            copy = _copy_spot(spot, index)
            for at, place in first:
                self.places.known[copy.at + at.removeprefix(spot.at)] = replace(
                    place,
                    words=place.words.replace(spot.words, copy.words, 1),
                    own=place.own.replace(spot.own, copy.own, 1),
                )

    def _keys(self, block: Mapping[Any, Any], scope: Scope, spot: Spot) -> tuple[Sequence[Any], int]:
        """The modules of a block, and how often it stands there."""
        known = ("config", "repeat", "when", "label")
        wrong = [
            Problem(str(key), "a block has no such key", hint=did_you_mean(str(key), known))
            for key in block
            if key not in known
        ]
        wrong += [Problem(key, "a block needs this key") for key in known[:2] if key not in block]
        if "label" in block and not (isinstance(block["label"], str) and block["label"]):
            wrong.append(Problem("label", "must be a name", block["label"]))
        repeat, config = plain(block.get("repeat", 1)), block.get("config", [])
        try:
            repeat = scope.integer(repeat) if isinstance(repeat, str) else repeat
        except ConfigError as error:
            wrong += [problem.below("repeat") for problem in error.problems]
            repeat = 1
        if isinstance(repeat, bool) or not isinstance(repeat, int) or not 0 <= repeat <= MOST_PARTS:
            wrong.append(Problem("repeat", f"must be an integer of at least 0 and at most {MOST_PARTS}", repeat))
            repeat = 1
        if not isinstance(config, (list, tuple)):
            wrong.append(Problem("config", "must be a list of module dicts", config))
            config = []
        self.problems += [problem.below(spot.path) for problem in wrong]
        return config, repeat

    def _line(self, module: Any, scope: Scope, spot: Spot) -> Spec:
        kind = str(module.get("type", "")) if isinstance(module, Mapping) else ""
        place = self.places.known[spot.at] = Place(spot.path, spot.words, spot.own, kind or "no type")
        found: list[Problem] = []
        step = LEFT_OUT
        if not isinstance(module, Mapping):
            step, found = step_of(module)
        elif _holds(module, scope, found):
            settings = {key: plain(value) for key, value in module.items() if key not in COMMON}
            step, problems = self._step(settings, scope, spot)
            found += problems
            step = self._marked(step, module, found, spot)
        place.broken = self._report(found, spot) or not step.args.keys() >= {"op"}
        return step

    def _step(self, settings: dict[Any, Any], scope: Scope, spot: Spot) -> tuple[Spec, list[Problem]]:
        name = settings.get("type")
        if not isinstance(name, str):
            return step_of(settings)
        if name.lower() in TYPES:
            values, problems = evaluated(settings, TYPES[name.lower()], scope)
            step, further = step_of(values)
            seen = {problem.path for problem in problems}
            return step, problems + [problem for problem in further if problem.path not in seen]
        if name.lower() == "program":
            return self._program(settings, scope, spot)
        return part_step(settings, scope)

    def _program(self, settings: dict[Any, Any], scope: Scope, spot: Spot) -> tuple[Spec, list[Problem]]:
        """A step that is a program itself: its modules are read here, its other keys are those of the part."""
        lists = {key: settings[key] for key in ("config", "blocks") if key in settings}
        rest = {key: value for key, value in settings.items() if key not in lists}
        problems: list[Problem] = []
        if len(lists) != 1:
            problems.append(Problem("config", "a program has a list of modules, 'config', or of blocks, 'blocks'"))
        for key, content in lists.items():
            if not isinstance(content, (list, tuple)) or not content:
                problems.append(Problem(key, "must be a list of dicts, and not empty", content))
            else:
                read = self.lines if key == "config" else self.blocks
                rest["lines"] = read(
                    content, scope, f"{spot.path}.{key}", f"{spot.at}.op.", f"{spot.words} (program), "
                )
        if "streams" in rest:
            rest["streams"], wrong = read_shapes(rest["streams"], scope, "streams")
            problems += wrong
        if problems:
            return Step.spec(label=str(settings["type"])), problems
        return part_step({**rest, "type": "layer/program"}, scope, label=settings["type"])

    def _marked(self, step: Spec, module: Mapping[Any, Any], found: list[Problem], spot: Spot) -> Spec:
        """The step with its label, and its part marked as shared."""
        wrong = [
            key for key in ("share", "label") if key in module and not (isinstance(module[key], str) and module[key])
        ]
        found += [Problem(key, "must be a name", module[key]) for key in wrong]
        if wrong:
            return step
        step = step.replace(label=module["label"]) if "label" in module else step
        if "share" not in module or "op" not in step.args:
            return step
        name, op = module["share"], step["op"]
        if not isinstance(op, Spec):
            found.append(Problem("share", "the part of this step is shared already", name))
            return step
        first, where = self.shares.setdefault(name, (op, spot.words))
        if first != op:
            message = f"{name!r} is described differently at {where}: {_difference(first, op)}"
            found.append(Problem("share", message, hint="describe it alike, or use two names"))
        return step.replace(op=Shared(name, first))

    def _report(self, problems: list[Problem], spot: Spot) -> bool:
        """Take note of problems of one place, those of further copies once; whether there are any."""
        known = {problem.path for problem in self.problems}
        for problem in problems:
            moved = problem.below(spot.path)
            if moved.path not in known:
                self.problems.append(replace(moved, message=f"{spot.words}: {problem.message}"))
        return bool(problems)


def _heading(block: Any, index: int) -> str:
    """What a block is called: its label, else its number."""
    label = block.get("label") if isinstance(block, Mapping) else None
    return label if isinstance(label, str) and label else f"Block #{index + 1}"


def _copy_spot(spot: Spot, index: int) -> Spot:
    """One repeat of a block."""
    head, _, first = spot.at.rpartition(".")
    words = f", repeat {index + 1}" if index else ""
    return Spot(spot.path, f"{head}.{int(first) + index}", spot.words + words, spot.own + words)


def _holds(config: Mapping[Any, Any], scope: Scope, found: list[Problem]) -> bool:
    """Whether the condition of a module or block is true; one that cannot be read is reported."""
    try:
        return scope.condition(config.get("when", True))
    except ConfigError as error:
        found += [problem.below("when") for problem in error.problems]
        return True


def _difference(first: Spec, second: Spec) -> str:
    """In which fields two descriptions of a part differ."""
    if first.part is not second.part:
        return f"{first.kind} {first.name!r} there, {second.kind} {second.name!r} here"
    fields = [f.name for f in fields_of(first.part) if first.get(f.name) != second.get(f.name)]
    return ", ".join(f"{name} = {first.get(name)!r} there, {second.get(name)!r} here" for name in fields)
