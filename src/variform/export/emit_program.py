"""Programs as classes: one line of code a step, its shapes behind it, and a class for blocks that are repeated."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from variform.core.dims import Shape
from variform.core.spec import Shared, Spec, shared_specs
from variform.export.construct import identifier
from variform.export.known import Known
from variform.export.program_text import (
    TAKEN,
    assignment,
    holds_shared_line,
    key_table,
    runs,
    shape_note,
    shared_in,
    torch_module,
    variable,
    x_first,
)
from variform.export.scope import Scope
from variform.export.shake import LAYERS, Shaken, Unsupported
from variform.export.steps import Fused, cut_value, fused_groups, step_value
from variform.parts.op.cutting import CutOp
from variform.parts.op.tokenwise import LinearOp
from variform.stack.execute import ModuleList
from variform.stack.lines import Block, Stage, Step
from variform.stack.program import Program, ProgramModel, _layer_values, _model_values
from variform.stack.trace import trace_lines
from variform.stack.values import SIZE, tells_size


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
        self.rows = {row.path: row for row in trace_lines(self.spec["lines"], values).rows}
        self.inputs = {name: value.shape for name, value in values.items()}
        self.names: dict[str, str] = {}
        self.written: dict[Any, tuple[str, tuple[str, ...], bool]] = {}
        self.places: dict[str, tuple[int, str]] = {}
        self.problems: list[tuple[str, str]] = []

    def write(self) -> tuple[str, tuple[str, ...]]:
        """Write the program's class; its name, and the names of the shared modules that it is given."""
        scope = Scope(self._class_name("Program"))
        self._lines(scope, self.part.lines, self.part.stages, self.spec["lines"], "lines", "lines")
        if isinstance(self.part, ProgramModel):
            first = [self._taken(name) for name in self.inputs if name in self.part.needed]
            pairs = ", ".join(f'"{name}": {self.name(name)}' for name in self.part.outputs)
            return self._class(scope, "inputs", first, f"return {{{pairs}}}", self._about())
        first = [assignment(self.name(name), f'streams["{name}"]') for name in self.part.declared]
        return self._class(scope, "x, streams", first, f"return {self.name(self.part.output)}", self._about())

    def _taken(self, name: str) -> ast.stmt:
        """The statement that takes an input, or a named size, off what is given."""
        if not tells_size(name):
            return self._noted(assignment(self.name(name), f'inputs["{name}"]'), [self.inputs[name]])
        for other, shape in self.inputs.items():
            for place, size in enumerate(shape or ()):
                if str(size) == name.removeprefix(SIZE) and not tells_size(other):
                    return assignment(self.name(name), f'inputs["{other}"].shape[{place}]')
        raise Unsupported(f"it uses the size {name.removeprefix(SIZE)!r}, which is no input's own")

    def _about(self) -> str:
        if isinstance(self.part, ProgramModel):
            shapes = {name: shape for name, shape in self.inputs.items() if not tells_size(name)}
            given = ", ".join(f"{name} {shape_note(shape)}" for name, shape in shapes.items())
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
            where, key = f"{path}.{start}", f"{keys}.{lines.order[start]}"
            try:
                line = self._description(scope, specs[start], key)
                module, stage = modules[start], stages[start]
                if isinstance(module, Step):
                    self._step(scope, module, line, where, f"{key}.op", groups.get(start))
                    continue
                assert isinstance(module, Block)
                if not len(module.lines):  # left out here by its condition
                    continue
                if end - start > 1 or self._recomputes():
                    self._repeated(scope, module, stage, line, (where, keys, start, end, lines.order))
                else:
                    before = len(scope.running)
                    self._lines(scope, module.lines, stage.inner, line["lines"], f"{where}.lines", f"{key}.lines")
                    if len(scope.running) > before and line["label"]:
                        scope.running[before].lead = line["label"]  # type: ignore[attr-defined]
            except Unsupported as error:
                self.problems.append((f"{where}.op" if where in self.rows else where, str(error)))

    def _description(self, scope: Scope, line: Any, key: str) -> Spec:
        """The description of a line. One that stands several times is one set of modules, in one class alone."""
        if not isinstance(line, Shared):
            return line  # type: ignore[no-any-return]
        if self.places.setdefault(line.name, (id(scope), key)) != (id(scope), key):
            raise Unsupported(f"the line shared as {line.name!r} stands in several blocks; a file holds it in one")
        return self.shared[line.name]

    def _recomputes(self) -> bool:
        return getattr(self.part, "executor", "plain") == "checkpoint"

    def _repeated(self, scope: Scope, block: Block, stage: Stage, spec: Spec, where: Any) -> None:
        path, keys, start, end, order = where
        count, key = end - start, f"{keys}.{order[start]}"
        attribute, is_again = scope.kept(key), (spec.canonical_key(), stage.takes, stage.gives) in self.written
        if attribute is not None and not is_again:
            raise Unsupported("a block that is shared gives different names at its places")
        if attribute is None and (count > 1 or is_again) and holds_shared_line(spec):
            raise Unsupported("a line that is shared stands in a block that is repeated; a file holds it in one")
        name, shared, reads = self._block(block, stage, spec, path)
        scope.streams = scope.streams or reads
        scope.takes.update(dict.fromkeys(shared))
        called = f"{name}({', '.join(map(identifier, shared))})"
        takes, gives = (", ".join(map(self.name, x_first(names))) for names in (stage.takes, stage.gives))
        takes += ", streams" if reads else ""
        run = f"checkpoint(%s, {takes}, use_reentrant=False)" if self._recomputes() else f"%s({takes})"
        if self._recomputes():
            self.shaken.need(LAYERS, "checkpoint")
        if count > 1:
            attribute = scope.module_name("blocks")
            made = f"nn.ModuleList([{called} for _ in range({count})])"
            scope.making.append(assignment(f"self.{attribute}", made))
            scope.running += ast.parse(f"for block in self.{attribute}:\n    {gives} = {run % 'block'}").body
            scope.keys += [(f"{attribute}.{i - start}", f"{keys}.{order[i]}") for i in range(start, end)]
            return
        if attribute is None:
            attribute = scope.module_name("block")
            scope.making.append(assignment(f"self.{attribute}", called))
            scope.keys.append((attribute, key))
        scope.running.append(assignment(gives, run % f"self.{attribute}"))

    def _block(self, block: Block, stage: Stage, spec: Spec, path: str) -> tuple[str, tuple[str, ...], bool]:
        """The class of a block: its name, the shared modules that it is given, whether it reads the model's streams."""
        known = (spec.canonical_key(), stage.takes, stage.gives)
        if known not in self.written:
            title = variable(spec["label"].replace("#", "").title().replace(" ", ""))
            inner = Scope(self._class_name(title or "Block"))
            self._lines(inner, block.lines, stage.inner, spec["lines"], f"{path}.lines", "lines")
            takes, gives = (", ".join(map(self.name, x_first(names))) for names in (stage.takes, stage.gives))
            takes += ", streams" if inner.streams else ""
            about = f"{spec['label'] or 'A block'} of the program."
            self.written[known] = (*self._class(inner, takes, [], f"return {gives}", about), inner.streams)
        return self.written[known]

    def _step(self, scope: Scope, step: Step, line: Spec, path: str, key: str, group: Fused | None) -> None:
        def own() -> str:
            return f"self.{self._module(scope, step, line, key)}"

        shapes = [shape for _, shape in self.rows[path].writes]
        flat = len(shapes[0]) == 3
        heads = self.rows[path].reads[-1][1][1] if group is not None and group.role == "sum" else None

        def streams() -> str:
            scope.streams = scope.streams or isinstance(self.part, Program)
            return "streams" if isinstance(self.part, Program) else ""

        value = cut_value(step, self.name, self.rows[path].reads) if isinstance(step.op, CutOp) else None
        found = value or step_value(
            step, self.name, own, group, (self.known, self.shaken), heads if flat else None, streams
        )
        for statement in found:
            scope.running.append(statement if statement is not found[-1] else self._noted(statement, shapes))

    def _module(self, scope: Scope, step: Step, line: Spec, key: str) -> str:
        """The attribute that holds a step's part; made anew unless the step runs again."""
        shared = line["op"] if isinstance(line["op"], Shared) else None
        op = line["op"] if shared is None else self.shared[shared.name]
        plain = torch_module(op) if shared is None else None
        key = f"{key}.project" if plain is not None and op.part is LinearOp else key
        found = scope.kept(key)
        if found is not None:
            return found
        if plain is None:
            self.shaken.need(op.part.__module__, op.part.__qualname__)
        is_new = step.into[0] not in (*step.takes, "x")
        attribute = scope.module_name(variable(step.into[0] if is_new else line["label"] or op.name))
        scope.keys.append((attribute, key))
        making = assignment(f"self.{attribute}", plain or ("None" if shared is None else identifier(shared.name)))
        scope.making.append(making)
        if shared is not None:
            scope.takes[shared.name] = None
        elif plain is None:
            scope.takes.update(dict.fromkeys(shared_in(op)))
            self.later.append((making, op))
        return attribute

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
        hints.update({self.name(name): "int" for name in self.inputs if tells_size(name)})
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
