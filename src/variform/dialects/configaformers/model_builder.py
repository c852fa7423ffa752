"""`ConfigaFormer`: a model from a list of blocks of module dicts, over named streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from variform.core.build import build
from variform.core.dims import parse_shape
from variform.core.resolve import examine
from variform.core.spec import Spec
from variform.dialects.configaformers.errors import ConfigaformersError
from variform.dialects.configaformers.modules import TYPES, step_of
from variform.errors import ConfigError, Problem, did_you_mean
from variform.stack.lines import Block
from variform.stack.program import ProgramModel

BATCH = "BSZ"


class ConfigaFormer(ProgramModel):
    """A model over named streams, built from blocks of module dicts; it prints the shape of every stream.

    Calling it with a dict of input streams returns a dict of output streams: `model(input_data)['x']`. Neither that
    dict nor the configs are changed. Streams that nothing reads any more are freed on the way; what is left unread
    at the end is returned.

    Args:
        model_config: {'blocks': [{'config': [module dicts], 'repeat': N}, ...]}.
        input_streams: the shape of each input stream: numbers and names of sizes; the first is the batch.
        verbose: print the table of modules and shapes.
        output_streams: the streams to return, in place of those left unread.

    Raises:
        ConfigaformersError: all problems of the config at once, before anything is allocated.
    """

    def __init__(
        self,
        model_config: Mapping[str, Any],
        input_streams: Mapping[str, Sequence[int | str]],
        verbose: bool = True,
        output_streams: Sequence[str] | None = None,
    ) -> None:
        spec = program_spec(model_config, input_streams, output_streams)
        built = build(spec)
        super().__init__(list(built.lines.in_order()), **built.spec.leaves(), inputs=built.spec["inputs"])
        self.spec = built.spec
        if verbose:
            print(self.table)


def program_spec(
    model_config: Mapping[str, Any],
    input_streams: Mapping[str, Sequence[int | str]],
    output_streams: Sequence[str] | None = None,
) -> Spec:
    """The program that a config describes, resolved: every size filled in, nothing allocated.

    Args:
        model_config: as for `ConfigaFormer`.
        input_streams: as for `ConfigaFormer`.
        output_streams: as for `ConfigaFormer`.

    Raises:
        ConfigaformersError: all problems at once.
    """
    source = _Source()
    lines = source.blocks(model_config)
    inputs = source.inputs(input_streams)
    outputs = tuple(_left_unread(lines)) if output_streams is None else tuple(output_streams)
    spec = ProgramModel.spec(lines=lines, inputs=inputs, outputs=outputs, strict=False)
    resolved, problems = examine(spec)
    found = source.problems + [p for p in map(source.translate, problems) if p is not None]
    if not lines and not found:
        found = [Problem("blocks", "there is no module in any block")]
    if found:
        raise ConfigaformersError(found)
    assert resolved is not None
    return resolved


@dataclass
class _Source:
    """Reads a config and remembers where each line of the program came from.

    Args:
        problems: what is wrong with the dicts themselves.
        origin: the block and the copy of each block of the program.
        types: the type of each line, by block.
        broken: places that are reported already.
    """

    problems: list[Problem] = field(default_factory=list)
    origin: list[tuple[int, int]] = field(default_factory=list)
    types: dict[int, list[str]] = field(default_factory=dict)
    broken: set[tuple[int, int]] = field(default_factory=set)

    def blocks(self, model_config: Any) -> list[Spec]:
        """The blocks of the program, copies included."""
        if not isinstance(model_config, Mapping) or "blocks" not in model_config:
            keys = list(model_config) if isinstance(model_config, Mapping) else model_config
            self.problems.append(Problem("", "model_config is a dict with the key 'blocks'", keys))
            return []
        for key in model_config:
            if key != "blocks":
                hint = did_you_mean(str(key), ["blocks"])
                self.problems.append(Problem(str(key), "model_config has only the key 'blocks'", hint=hint))
        blocks = model_config["blocks"]
        if not isinstance(blocks, (list, tuple)):
            self.problems.append(Problem("blocks", "blocks is a list of dicts", type(blocks).__name__))
            return []
        return [line for index, block in enumerate(blocks) for line in self._block(index, block)]

    def _block(self, index: int, block: Any) -> list[Spec]:
        path = f"blocks.{index}"
        if not isinstance(block, Mapping):
            self.problems.append(Problem(path, "a block is a dict: {'config': [...], 'repeat': N}", block))
            return []
        known = ("config", "repeat")
        wrong = [
            Problem(f"{path}.{key}", "a block has no such key", hint=did_you_mean(str(key), known))
            for key in block
            if key not in known
        ]
        wrong += [Problem(f"{path}.{key}", "a block needs this key") for key in known if key not in block]
        repeat, config = block.get("repeat", 1), block.get("config", [])
        if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 0:
            wrong.append(Problem(f"{path}.repeat", "must be an integer of at least 0", repeat))
            repeat = 1
        if not isinstance(config, (list, tuple)):
            wrong.append(Problem(f"{path}.config", "must be a list of module dicts", config))
            config = []
        self.problems += wrong
        spec = Block.spec(
            lines=[self._line(index, line, module) for line, module in enumerate(config)], label=f"Block #{index + 1}"
        )
        copies = repeat if config else 0
        self.origin += [(index, copy) for copy in range(copies)]
        return [spec] * copies

    def _line(self, block: int, line: int, module: Any) -> Spec:
        step, problems = step_of(module)
        self.types.setdefault(block, []).append(str(step["label"]))
        if problems:
            self.broken.add((block, line))
            place = f"Block #{block + 1}, line {line + 1}"
            for problem in problems:
                moved = problem.below(f"blocks.{block}.config.{line}")
                self.problems.append(replace(moved, message=f"{place}: {problem.message}"))
        return step

    def inputs(self, input_streams: Any) -> dict[str, tuple[int | str, ...]]:
        """The declared shapes; the name of each first size is that of the batch."""
        if not isinstance(input_streams, Mapping) or not input_streams:
            self.problems.append(Problem("input_streams", "must be a dict of shapes by name", input_streams))
            return {}
        shapes: dict[str, tuple[int | str, ...]] = {}
        for name, sizes in input_streams.items():
            if not isinstance(sizes, (list, tuple)) or not sizes:
                self.problems.append(Problem(f"input_streams.{name}", "must be a list of sizes", sizes))
                continue
            try:
                parse_shape(sizes)
            except ConfigError as error:
                self.problems += [problem.below(f"input_streams.{name}") for problem in error.problems]
                continue
            shapes[str(name)] = tuple(sizes)
        batch = {shape[0] for shape in shapes.values() if isinstance(shape[0], str)}
        return {name: tuple(BATCH if size in batch else size for size in shape) for name, shape in shapes.items()}

    def translate(self, problem: Problem) -> Problem | None:
        """A problem of the program as one of the config; None where it was reported before."""
        steps = problem.path.split(".")
        if steps[0] == "outputs":
            return replace(problem, path="output_streams")
        if steps[0] != "lines" or len(steps) < 2:
            return problem
        block, copy = self.origin[int(steps[1])]
        if len(steps) < 4:
            return replace(problem, path=f"blocks.{block}")
        line = int(steps[3])
        if (block, line) in self.broken:
            return None
        kind = self.types[block][line]
        key = TYPES[kind.lower()].fields.get(steps[5], "") if len(steps) > 5 else ""
        path = f"blocks.{block}.config.{line}" + (f".{key}" if key else "")
        place = f"Block #{block + 1}" + (f", repeat {copy + 1}" if copy else "") + f", line {line + 1}"
        if problem.message.startswith(place):
            return replace(problem, path=path)
        return replace(problem, path=path, message=f"{place} ({kind}): {problem.message}")


def _left_unread(blocks: Sequence[Spec]) -> list[str]:
    """The streams that are written and not read after, in order."""
    waiting: dict[str, None] = {}
    for block in blocks:
        for step in block["lines"]:
            for name in step["reads"]:
                waiting.pop(name, None)
            for name in step["into"]:
                waiting.pop(name, None)
                waiting[name] = None
    return list(waiting)
