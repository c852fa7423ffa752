"""Programs as classes: one line of code a step, its shapes behind it, and a class for blocks that are repeated."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from variform.core.dims import Shape
from variform.core.spec import Shared, Spec, described, shared_specs
from variform.export.construct import identifier
from variform.export.fold import Known
from variform.export.program_text import (
    TAKEN,
    assignment,
    key_table,
    runs,
    shape_note,
    shared_in,
    torch_module,
    variable,
    x_first,
)
from variform.export.shake import LAYERS, Shaken
from variform.export.steps import Fused, cut_value, fused_groups, step_value
from variform.parts.op.cutting import CutOp
from variform.parts.op.tokenwise import LinearOp
from variform.stack.execute import ModuleList
from variform.stack.lines import Block, Stage, Step
from variform.stack.program import Program, ProgramModel, _layer_values, _model_values
from variform.stack.trace import trace_lines


@dataclass
class Scope:
    """A class on its way: the program itself, or a block of it.

    Args:
        name: of the class.
        making: the statements of its constructor.
        running: the statements of its forward.
        keys: where each module stands in a weights file.
        takes: names of shared modules that the constructor is given.
        modules: names of modules that are taken.
        streams: whether its steps read the streams of the model around it.
    """

    name: str
    making: list[ast.stmt] = field(default_factory=list)
    running: list[ast.stmt] = field(default_factory=list)
    keys: list[tuple[str, str]] = field(default_factory=list)
    takes: dict[str, None] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    streams: bool = False

    def module_name(self, wanted: str) -> str:
        """A name for a module that is free."""
        name, count = wanted, 1
        while name in self.modules or hasattr(nn.Module, name):
            count += 1
            name = f"{wanted}_{count}"
        self.modules.add(name)
        return name


class ProgramWriter:
    """Writes the classes of one program.

    Args:
        part: the program, built.
        shaken: where the classes go.
        known: of the whole model.
        later: constructions to be filled in when all classes are pruned: an assignment, or a call in a list, and
            the part that it makes.
    """

    def __init__(
        self, part: Program | ProgramModel, shaken: Shaken, known: Known, later: list[tuple[ast.Assign, Spec]]
    ) -> None:
        self.part, self.shaken, self.known, self.later = part, shaken, known, later
        self.spec = part.spec
        self.shared = shared_specs(self.spec)
        values = _model_values(self.spec.args) if isinstance(part, ProgramModel) else _layer_values(self.spec.args)
        rows = trace_lines(self.spec["lines"], values).rows
        self.shapes, self.reads = {row.path: row.writes for row in rows}, {row.path: row.reads for row in rows}
        self.inputs = {name: value.shape for name, value in values.items()}
        self.names: dict[str, str] = {}
        self.written: dict[Any, tuple[str, tuple[str, ...]]] = {}
        self.reading: dict[Any, bool] = {}

    def write(self) -> tuple[str, tuple[str, ...]]:
        """Write the program's class; its name, and the names of the shared modules that it is given."""
        scope = Scope(self._class_name("Program"))
        self._lines(scope, self.part.lines, self.part.stages, self.spec["lines"], "lines", "lines")
        if isinstance(self.part, ProgramModel):
            first = [
                self._noted(assignment(self.name(name), f'inputs["{name}"]'), [self.inputs[name]])
                for name in self.inputs
                if name in self.part.needed
            ]
            pairs = ", ".join(f'"{name}": {self.name(name)}' for name in self.part.outputs)
            return self._class(scope, "inputs", first, f"return {{{pairs}}}", self._about())
        first = [assignment(self.name(name), f'streams["{name}"]') for name in self.part.declared]
        return self._class(scope, "x, streams", first, f"return {self.name(self.part.output)}", self._about())

    def _about(self) -> str:
        if isinstance(self.part, ProgramModel):
            given = ", ".join(f"{name} {shape_note(shape)}" for name, shape in self.inputs.items())
            return f"Named tensors in, named tensors out: {given} -> {', '.join(self.part.outputs)}."
        return "A layer written as steps over named tensors."

    def name(self, wanted: str) -> str:
        """The variable for a named tensor."""
        if wanted not in self.names:
            name = variable(wanted)
            while name in self.names.values() or name in TAKEN or name in self.shaken.names:
                name += "_"
            self.names[wanted] = name
        return self.names[wanted]

    # ---- lines ----

    def _lines(
        self, scope: Scope, lines: ModuleList, stages: Sequence[Stage], specs: Sequence[Any], path: str, keys: str
    ) -> None:
        """Write a list of lines into a scope.

        Args:
            scope: the class.
            lines: built.
            stages: their plan.
            specs: their descriptions.
            path: of the list in the program's spec.
            keys: of the list in the class's part of a weights file.
        """
        modules = list(lines.in_order())
        groups = fused_groups(modules, stages)
        for start, end in runs(modules, stages, specs):
            module, spec = modules[start], described(specs[start])
            if isinstance(module, Block) and (end - start > 1 or self._recomputes()):
                self._repeated(scope, module, stages[start], spec, (path, keys, start, end, lines.order))
            elif isinstance(module, Block):
                place = f"{keys}.{lines.order[start]}.lines"
                before = len(scope.running)
                self._lines(scope, module.lines, stages[start].inner, spec["lines"], f"{path}.{start}.lines", place)
                if len(scope.running) > before and spec["label"]:
                    scope.running[before].lead = spec["label"]  # type: ignore[attr-defined]
            else:
                assert isinstance(module, Step)
                key = f"{keys}.{lines.order[start]}.op"
                self._step(scope, module, specs[start], f"{path}.{start}", key, groups.get(start))

    def _recomputes(self) -> bool:
        return getattr(self.part, "executor", "plain") == "checkpoint"

    def _repeated(self, scope: Scope, block: Block, stage: Stage, spec: Spec, where: Any) -> None:
        path, keys, start, end, order = where
        known = (spec.canonical_key(), stage.takes, stage.gives)
        if known not in self.written:
            inner = Scope(
                self._class_name(variable(spec["label"].replace("#", "").title().replace(" ", "")) or "Block")
            )
            self._lines(inner, block.lines, stage.inner, spec["lines"], f"{path}.{start}.lines", "lines")
            takes, gives = (", ".join(map(self.name, x_first(names))) for names in (stage.takes, stage.gives))
            takes += ", streams" if inner.streams else ""
            about = f"{spec['label'] or 'A block'} of the program."
            self.written[known] = self._class(inner, takes, [], f"return {gives}", about)
            self.reading[known] = inner.streams
        name, shared = self.written[known]
        scope.streams = scope.streams or self.reading[known]
        scope.takes.update(dict.fromkeys(shared))
        called = f"{name}({', '.join(map(identifier, shared))})"
        attribute = scope.module_name("blocks" if end - start > 1 else "block")
        takes, gives = (", ".join(map(self.name, x_first(names))) for names in (stage.takes, stage.gives))
        takes += ", streams" if self.reading[known] else ""
        run = f"checkpoint(%s, {takes}, use_reentrant=False)" if self._recomputes() else f"%s({takes})"
        if self._recomputes():
            self.shaken.need(LAYERS, "checkpoint")
        if end - start == 1:
            scope.making.append(assignment(f"self.{attribute}", called))
            scope.running.append(assignment(gives, run % f"self.{attribute}"))
            scope.keys.append((attribute, f"{keys}.{order[start]}"))
            return
        scope.making.append(assignment(f"self.{attribute}", f"nn.ModuleList([{called} for _ in range({end - start})])"))
        loop = ast.parse(f"for block in self.{attribute}:\n    {gives} = {run % 'block'}").body[0]
        scope.running.append(loop)
        scope.keys += [(f"{attribute}.{i - start}", f"{keys}.{order[i]}") for i in range(start, end)]

    def _step(self, scope: Scope, step: Step, spec: Any, path: str, key: str, group: Fused | None) -> None:
        line = described(spec) if described(spec) is not None else self.shared[spec.name]
        shared = line["op"] if isinstance(line["op"], Shared) else None

        def own() -> str:
            described_op = self.shared[shared.name] if shared is not None else line["op"]
            if shared is not None or torch_module(described_op) is None:
                self.shaken.need(described_op.part.__module__, described_op.part.__qualname__)
            new = step.into[0] not in (*step.takes, "x")
            attribute = scope.module_name(variable(step.into[0] if new else line["label"] or described_op.name))
            plain = None if shared is not None else torch_module(described_op)
            scope.keys.append(
                (attribute, f"{key}.project" if plain is not None and described_op.part is LinearOp else key)
            )
            if plain is not None:
                scope.making.append(assignment(f"self.{attribute}", plain))
            elif shared is not None:
                scope.takes[shared.name] = None
                scope.making.append(assignment(f"self.{attribute}", identifier(shared.name)))
            else:
                scope.takes.update(dict.fromkeys(shared_in(described_op)))
                making = assignment(f"self.{attribute}", "None")
                self.later.append((making, described_op))
                scope.making.append(making)
            return f"self.{attribute}"

        shapes = [shape for _, shape in self.shapes[path]]
        flat = len(shapes[0]) == 3
        heads = self.reads[path][-1][1][1] if group is not None and group.role == "sum" else None

        def streams() -> str:
            scope.streams = scope.streams or isinstance(self.part, Program)
            return "streams" if isinstance(self.part, Program) else ""

        value = cut_value(step, self.name, self.reads[path]) if isinstance(step.op, CutOp) else None
        found = value or step_value(
            step, self.name, own, group, (self.known, self.shaken), heads if flat else None, streams
        )
        for statement in found:
            scope.running.append(statement if statement is not found[-1] else self._noted(statement, shapes))

    @staticmethod
    def _noted(statement: ast.stmt, shapes: Sequence[Shape | None]) -> ast.stmt:
        statement.comment = ", ".join(shape_note(shape) for shape in shapes)  # type: ignore[attr-defined]
        return statement

    # ---- classes ----

    def _class_name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.shaken.names:
            count += 1
            name = f"{wanted}{count}"
        self.shaken.names[name] = ("", name)
        return name

    def _class(
        self, scope: Scope, takes: str, first: list[ast.stmt], last: str, about: str
    ) -> tuple[str, tuple[str, ...]]:
        hints = {"streams": "dict[str, Any]", "inputs": "dict[str, Tensor]"}
        shared = tuple(scope.takes)
        arguments = ", ".join(f"{name}: {hints.get(name, 'Tensor')}" for name in takes.split(", "))
        given = "".join(f", {identifier(name)}: nn.Module" for name in shared)
        returns = "dict[str, Tensor]" if takes == "inputs" else "Tensor" if ", " not in last else "tuple[Tensor, ...]"
        for name in ("Tensor", "nn", "Any"):
            self.shaken.need(LAYERS, name)
        self.shaken.imports.add("from typing import ClassVar")
        code = f'class {scope.name}(nn.Module):\n    """{about}"""\n'
        code += "".join(f"    {line}\n" for line in key_table(scope.keys))
        code += f"    def __init__(self{given}) -> None:\n        super().__init__()\n"
        code += f"    def forward(self, {arguments}) -> {returns}:\n        {last}\n"
        node = ast.parse(code).body[0]
        assert isinstance(node, ast.ClassDef)
        init, forward = node.body[-2:]
        assert isinstance(init, ast.FunctionDef)
        assert isinstance(forward, ast.FunctionDef)
        init.body += scope.making
        forward.body = [*first, *scope.running, *forward.body]
        self.shaken.pieces[("", scope.name)] = node
        return scope.name, shared
