"""Programs as configs: any program, and any model as the program that computes the same, as blocks of module dicts.

from variform.dialects.configaformers.write import to_config

print(dump_yaml(to_config(vf.models.gpt(...))))
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from variform.core.codec import as_spec
from variform.core.dims import Dim, parse_shape
from variform.core.fields import field_map
from variform.core.minimal import minimal
from variform.core.resolve import resolve
from variform.core.spec import Shared, Spec, default_of, described
from variform.dialects.configaformers.model_builder import left_unread
from variform.dialects.configaformers.scope import COUNT, INDEX
from variform.dialects.configaformers.spelling import Module, Number, module_of, plain_part, type_of
from variform.errors import ConfigError
from variform.lower import Lowered, lower
from variform.stack.lines import Block, Step
from variform.stack.program import Program, ProgramModel
from variform.stack.values import tells_size

LARGEST_FACTOR = 8
"""`8*d` is written for a multiple of a size, `9*d` no more."""


def as_program(source: Any, **options: Any) -> Lowered:
    """The program that computes what a model does, its lines called by their module types; see `lower`."""
    low = lower(source, label=type_of, **options)
    return replace(low, spec=resolve(low.spec.replace(lines=_labelled(low.spec["lines"]))))


def to_config(source: Any, sizes: Mapping[str, int] | None = None, **options: Any) -> dict[str, Any]:
    """A program as a config: what a program file holds, and `program_of(config)` reads.

    Reading it gives the same program back, if it stands in blocks of steps as those of this dialect do. Others are
    brought to this form: steps outside of blocks and blocks in blocks stand in one block, steps without a label are
    called by their type, and the first size of the inputs is the batch.

    Args:
        source: a program, or any other spec, which is lowered first; a mapping, a path or a built part.
        sizes: names for numbers; the numbers and their multiples are written by name.
        **options: those of `lower`, for a source that is no program.

    Raises:
        ConfigError: something cannot be written; a size has a name that is taken.
    """
    spec = as_spec(source)
    if spec.part is not ProgramModel:
        spec = as_program(spec, **options).spec
    elif options:
        raise ConfigError("a program is written as it is: leave the options out", value=tuple(options))
    spec = resolve(spec)
    number = _named(sizes or {}, spec)
    writer = _Writer(number)
    config: dict[str, Any] = {"sizes": dict(sizes)} if sizes else {}
    config["input_streams"] = {
        name: [number(size) if isinstance(size, int) else size for size in shape]
        for name, shape in spec["inputs"].items()
        if not tells_size(name)
    }
    lines, bare = spec["lines"], minimal(spec)["lines"]
    config["blocks"] = _described_once(writer.blocks(lines, bare), set())
    unread = tuple(left_unread([Block.spec(lines=list(_steps(lines)))]))
    if spec["outputs"] != unread or spec["unasked"] != unread[:-1]:
        config["output_streams"] = list(spec["outputs"])
    own = {name: value for name, value in spec.leaves().items() if name not in ("outputs", "unasked", "strict")}
    own = {name: value for name, value in own.items() if value != default_of(field_map(ProgramModel)[name])}
    return {**config, **own, **({"strict": True} if spec["strict"] else {})}


@dataclass
class _Writer:
    """Writes lines.

    Args:
        number: how numbers are written.
    """

    number: Number

    def blocks(self, lines: tuple[Any, ...], bare: tuple[Any, ...]) -> list[dict[str, Any]]:
        """Blocks, equal ones that follow one another once."""
        found: list[dict[str, Any]] = []
        for label, modules in self._each_block(lines, bare):
            block: dict[str, Any] = {"config": modules or [_LEFT_OUT], "repeat": 1}
            if label not in ("", f"Block #{len(found) + 1}"):
                block["label"] = label
            if not modules:
                block["when"] = False
            last = found[-1] if found else {}
            same = all(last.get(key) == block.get(key) for key in ("config", "when"))
            if same and label == last.get("label", f"Block #{len(found)}"):
                last["repeat"] += 1
            else:
                found.append(block)
        return found

    def _each_block(self, lines: tuple[Any, ...], bare: tuple[Any, ...]) -> Iterator[tuple[str, list[Module]]]:
        loose: list[Module] = []
        for line, short in zip(lines, bare, strict=True):
            block, brief = described(line), described(short)
            if block.part is not Block:
                loose.append(self._module(block, brief))
                continue
            if loose:
                yield "", loose
                loose = []
            name = line.name if isinstance(line, Shared) else ""
            yield block["label"], self._modules(block["lines"], brief["lines"], name)
        if loose:
            yield "", loose

    def _modules(self, lines: tuple[Any, ...], bare: tuple[Any, ...], shared: str = "") -> list[Module]:
        """The modules of a block; those of blocks inside stand among them."""
        found: list[Module] = []
        for index, (line, short) in enumerate(zip(lines, bare, strict=True)):
            inner, brief = described(line), described(short)
            name = line.name if isinstance(line, Shared) else f"{shared}.{index}" if shared else ""
            if inner.part is Step:
                found.append(self._module(inner, brief, name))
            elif inner["lines"]:
                found += self._modules(inner["lines"], brief["lines"], name)
            else:
                found.append(dict(_LEFT_OUT))
        return found

    def _module(self, step: Spec, brief: Spec, shared: str = "") -> Module:
        op, short = described(step["op"]), described(brief["op"])
        name = step["op"].name if isinstance(step["op"], Shared) else shared
        if op.part is Program:
            module = self._program(step, op, short)
        else:
            module = module_of(step, short, self.number)
        if step["label"] not in ("", module["type"]):
            module["label"] = step["label"]
        return {**module, "share": name} if name else module

    def _program(self, step: Spec, program: Spec, bare: Spec) -> Module:
        """A program as a step: a list of modules, or of blocks."""
        fields = plain_part(bare, self.number)
        names = {"input_names": list(step["reads"])} if step["reads"] != ("x",) else {}
        into = {"output_name": list(step["into"])} if step["into"] != ("x",) else {}
        own = {key: value for key, value in fields.items() if key not in ("part", "lines")}
        lines, brief = program["lines"], bare["lines"]
        if any(described(line).part is Block for line in lines):
            return {"type": "program", **names, **into, **own, "blocks": self.blocks(lines, brief)}
        return {"type": "program", **names, **into, **own, "config": self._modules(lines, brief)}


def _steps(lines: tuple[Any, ...]) -> Iterator[Spec]:
    for line in map(described, lines):
        if line.part is Block:
            yield from _steps(line["lines"])
        else:
            yield line


def _described_once(value: Any, known: set[str]) -> Any:
    """Config data in which a shared part within another one is only named where a step before describes it."""
    if isinstance(value, list):
        return [_described_once(item, known) for item in value]
    if not isinstance(value, dict):
        return value
    if "shared" in value and value["shared"] in known:
        return {"shared": value["shared"]}
    known |= {value[key] for key in ("share", "shared") if key in value}
    return {key: _described_once(item, known) for key, item in value.items()}


def _labelled(lines: tuple[Any, ...]) -> list[Any]:
    """Lines in which all steps have labels, those of programs that are steps too."""
    found: list[Any] = []
    for line in lines:
        spec = described(line)
        if spec.part is Block:
            spec = spec.replace(lines=_labelled(spec["lines"]))
        else:
            op = described(spec["op"])
            inner = op.replace(lines=_labelled(op["lines"])) if op.part is Program else op
            part = Shared(spec["op"].name, inner) if isinstance(spec["op"], Shared) else inner
            spec = spec.replace(op=part, label=spec["label"] or ("program" if op.part is Program else type_of(op)))
        found.append(Shared(line.name, spec) if isinstance(line, Shared) else spec)
    return found


def _named(sizes: Mapping[str, int], spec: Spec) -> Number:
    """Numbers by the names of sizes: the first that a number is equal to, else the largest that divides it."""
    shapes = [parse_shape(shape) for shape in spec["inputs"].values()]
    symbols = {name for shape in shapes for size in shape if isinstance(size, Dim) for name in size.symbols()}
    for name in sizes:
        if not name.isidentifier() or name in symbols or name in (INDEX, COUNT):
            raise ConfigError(f"{name!r} cannot name a size: it is no name, or has another meaning", path="sizes")

    def number(value: int) -> int | str:
        for name, size in sizes.items():
            if value == size:
                return name
        ordered: Collection[tuple[str, int]] = sorted(sizes.items(), key=lambda item: -item[1])
        for name, size in ordered:
            if size > 1 and value > 0 and value % size == 0 and value // size <= LARGEST_FACTOR:
                return f"{value // size}*{name}"
        return value

    return number


_LEFT_OUT: Module = {"type": "make_stream", "output_name": "x", "when": False}
