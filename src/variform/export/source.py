"""A model as one standalone PyTorch file."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from variform.core.build import build
from variform.core.codec import as_spec
from variform.core.part import Part
from variform.core.resolve import resolve
from variform.core.spec import Shared, Spec, shared_specs
from variform.errors import ConfigError
from variform.export.classes import Facts, prepare
from variform.export.construct import Construct, Fields
from variform.export.emit_program import ProgramWriter
from variform.export.frame import file_text
from variform.export.narrow import narrow, reached
from variform.export.prune import prune
from variform.export.shake import Shaken, Unsupported, unsupported
from variform.export.survey import SIDE_INPUTS, STANDINS, modules_by_class, parts_of, step_places, survey
from variform.parts.attention.around import AroundAttention
from variform.parts.attention.softmax import LocalAttention
from variform.parts.kinds import Attention, Embedding, KeyValues, Residual, StreamPart
from variform.parts.mixer.folded import FoldedMixer
from variform.parts.stream_ops.branch import BranchStart
from variform.stack.program import Program, ProgramModel


def to_file(model: Any, path: str | Path) -> Path:
    """Write a model as a standalone PyTorch file; see `to_source`.

    Args:
        model: a spec, what `build` takes, or a model that was built from a spec.
        path: where; ends in .py.

    Raises:
        ConfigError: a part has no standalone form, or the file cannot be written.
    """
    target = Path(path)
    if target.suffix != ".py":
        raise ConfigError("a standalone PyTorch file ends in .py", path="path", value=str(path))
    text = to_source(model)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {str(target)!r}: {error.strerror}") from None
    return target


def to_source(model: Any) -> str:
    """A model as the source of one file that imports nothing but torch and the standard library.

    It computes what the model computes: bit for bit in float32 on the same kernels. Weights of the model load with
    the file's own `load_weights`.

    Args:
        model: a spec, what `build` takes, or a model that was built from a spec.

    Raises:
        ConfigError: all parts that have no standalone form, with the reasons.
    """
    module = model if isinstance(model, nn.Module) else build(resolve(as_spec(model)), device="meta")
    assert isinstance(module, Part)
    return _Writer(module).text()


class _Writer:
    """Writes one model."""

    def __init__(self, model: Part) -> None:
        self.model = model
        self.spec = model.spec
        self.facts: Mapping[Any, Facts] = modules_by_class(model)
        self.known = survey(model, self.spec)
        self.shaken = self._shake()
        if any(self._publishes(spec) for spec in parts_of(self.spec).values()):
            self.known = replace(self.known, publishes=True, names={**self.known.names, "PUBLISHES": True})
            self.shaken = self._shake()

    def text(self) -> str:
        """The file."""
        roots = [assignment for assignment, _ in self.later]
        prune(self.shaken.pieces, self.facts)
        narrow(self.shaken.pieces, roots, self.known)
        prune(self.shaken.pieces, self.facts)
        construct = Construct(self._fields, self._called, self._program, shared_specs(self.spec))
        self.construct = construct
        for assignment, part in self.later:
            assignment.value = construct.of(part)
        value = construct.of(self.spec)
        making = [*construct.before, ast.Return(value)]
        reached(self.shaken.pieces, [*making, ast.Name("load_weights", ast.Load())])
        inputs = [name for name in SIDE_INPUTS if name not in self.known.absent]
        return file_text(self.model, self.shaken, making, _takes(inputs), _about(self.spec))

    def _shake(self) -> Shaken:
        shaken = Shaken(functools.partial(prepare, facts=self.facts, known=self.known), STANDINS)
        self.later: list[tuple[ast.Assign, Spec]] = []
        self.programs: dict[Spec, tuple[str, tuple[str, ...]]] = {}
        problems: list[tuple[str, str]] = []
        for path, spec in parts_of(self.spec).items():
            try:
                if spec.part in (Program, ProgramModel):
                    if spec not in self.programs:
                        part = next(m for m in self.model.modules() if isinstance(m, Part) and m.spec == spec)
                        writer = ProgramWriter(part, shaken, self.known, self.later)  # type: ignore[arg-type]
                        self.programs[spec] = writer.write()
                        problems += [(f"{path}.{at}" if path else at, reason) for at, reason in writer.problems]
                else:
                    _check_left(spec)
                    _check_attention(spec)
                    _check_executor(spec)
                    shaken.need(spec.part.__module__, spec.part.__qualname__)
            except Unsupported as error:
                problems.append((path, f"{spec.kind} {spec.name!r}: {error}"))
        if problems:
            raise unsupported(_placed(problems, step_places(self.spec)))
        shaken.need("variform.export.loading", "load_weights")
        return shaken

    def _program(self, spec: Spec) -> ast.expr | None:
        if spec not in self.programs:
            return None
        name, shared = self.programs[spec]
        return ast.Call(ast.Name(name, ast.Load()), [self.construct.of(Shared(item)) for item in shared], [])

    def _definition(self, spec: Spec) -> ast.ClassDef:
        place = (spec.part.__module__, spec.part.__qualname__)
        node = self.shaken.pieces[STANDINS.get(place, place)]
        assert isinstance(node, ast.ClassDef)
        return node

    def _called(self, spec: Spec) -> str:
        return self._definition(spec).name

    def _fields(self, spec: Spec) -> Fields:
        for item in self._definition(spec).body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                args = item.args.args[1:]
                defaults = [None] * (len(args) - len(item.args.defaults)) + list(item.args.defaults)
                return {arg.arg: default for arg, default in zip(args, defaults, strict=True)}
        return {}

    def _publishes(self, spec: Spec) -> bool:
        """Whether the folded code still gives something beside its main result."""
        if not issubclass(spec.part, (StreamPart, Embedding)) or issubclass(spec.part, Program):
            return False
        forward = _method(self._definition(spec).body, "forward")
        results = [node.value for node in ast.walk(forward) if isinstance(node, ast.Return)]
        return any(isinstance(inner, ast.Tuple) for value in results for inner in _results(value))


def _check_attention(spec: Spec) -> None:
    backend = spec.get("backend")
    if issubclass(spec.part, Attention) and backend not in (None, "auto", "sdpa"):
        raise Unsupported(f"the backend {backend!r} is asked for by name, and a file has torch's fused attention alone")
    if issubclass(spec.part, Attention) and (spec.get("scores") or spec.get("weights") is not None):
        raise Unsupported("its changes of scores and weights are left to the library")
    if issubclass(spec.part, LocalAttention) and spec.get("memory") is not None:
        raise Unsupported("a window beside a memory is left to the library")


_LEFT: dict[type[Part], str] = {
    BranchStart: "how weights begin is left to the library",
    FoldedMixer: "sequences that are folded are left to the library",
    KeyValues: "maps that make keys and values apart are left to the library",
    AroundAttention: "attentions around attentions are left to the library",
}
"""Parts, or kinds of them, that standalone files do not have, and why."""


def _check_left(spec: Spec) -> None:
    for part, reason in _LEFT.items():
        if issubclass(spec.part, part):
            raise Unsupported(reason)
    if issubclass(spec.part, Residual) and spec.part.reads:
        raise Unsupported(f"a file hands no residual the streams that this one reads: {', '.join(spec.part.reads)}")


def _check_executor(spec: Spec) -> None:
    if spec.get("executor") == "reversible":
        raise Unsupported("reversible layers are a function of their own in autograd, which a file has not")


def _placed(problems: list[tuple[str, str]], steps: dict[str, str]) -> list[tuple[str, str]]:
    """Problems of parts within steps of programs, with the step's block and line in words."""
    found = []
    for path, reason in problems:
        step = max((step for step in steps if f"{path}.".startswith(f"{step}.")), key=len, default=None)
        found.append((path, reason if step is None else f"{steps[step]}: {reason}"))
    return found


def _about(spec: Spec) -> str:
    size = ", ".join(f"{name}={spec.get(name)}" for name in ("dim", "heads") if isinstance(spec.get(name), int))
    return f"A {spec.name.replace('_', ' ')} in plain PyTorch" + (f" ({size})." if size else ".")


def _takes(inputs: list[str]) -> str:
    text = (
        "Written by variform; it needs torch alone. `make_model()` builds the model, `load_weights(model, path)` reads "
    )
    text += "weights that variform saved."
    return text + (f" Side inputs: {', '.join(f'`{name}`' for name in inputs)}." if inputs else "")


def _method(body: Iterable[ast.stmt], name: str) -> ast.FunctionDef:
    return next(item for item in body if isinstance(item, ast.FunctionDef) and item.name == name)


def _results(value: ast.expr | None) -> list[ast.expr]:
    if isinstance(value, ast.IfExp):
        return [*_results(value.body), *_results(value.orelse)]
    return [] if value is None else [value]
