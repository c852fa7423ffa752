"""The constructor call of a model: one nested expression, with equal layers in a loop."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from variform.core.spec import Shared, Spec
from variform.export.reduce import constant

Fields = Mapping[str, ast.expr | None]
"""The parameters of a constructor as it is written, with their defaults."""


class Construct:
    """Writes the construction of parts.

    Args:
        fields: for a part's class, the parameters that its constructor has in the file.
        called: for a spec, the name of its class in the file.
        special: writes the construction of parts that have one of their own; None for all others.
        parts: the descriptions of shared parts by name.
    """

    def __init__(
        self,
        fields: Callable[[Spec], Fields],
        called: Callable[[Spec], str],
        special: Callable[[Spec], ast.expr | None],
        parts: Mapping[str, Spec],
    ) -> None:
        self.fields = fields
        self.called = called
        self.special = special
        self.parts = parts
        self.before: list[ast.stmt] = []
        self.shared: dict[str, str] = {}

    def of(self, value: Any) -> ast.expr:
        """A field's value."""
        if isinstance(value, Shared):
            return self._shared(value)
        if isinstance(value, Spec):
            own = self.special(value)
            return self._part(value) if own is None else own
        if isinstance(value, (tuple, list)) and any(isinstance(item, (Spec, Shared)) for item in value):
            return self._several(value)
        return constant(value)

    def _part(self, spec: Spec) -> ast.expr:
        given: list[ast.keyword] = []
        for name, default in self.fields(spec).items():
            value = spec[name]
            if default is None or ast.dump(constant_or_none(value)) != ast.dump(default):
                given.append(ast.keyword(name, self.of(value)))
        return ast.Call(ast.Name(self.called(spec), ast.Load()), [], given)

    def _shared(self, shared: Shared) -> ast.expr:
        if shared.name not in self.shared:
            value = self.of(self.parts[shared.name])
            name = self.shared[shared.name] = identifier(shared.name)
            self.before.append(ast.Assign([ast.Name(name, ast.Store())], value))
        return ast.Name(self.shared[shared.name], ast.Load())

    def _several(self, items: Sequence[Any]) -> ast.expr:
        runs: list[tuple[Any, int]] = []
        for item in items:
            if runs and runs[-1][0] == item and isinstance(item, Spec):
                runs[-1] = (item, runs[-1][1] + 1)
            else:
                runs.append((item, 1))
        written = [(self._run(item, count), count) for item, count in runs]
        match written:
            case [(ast.GeneratorExp() as only, count)] if count > 1:
                return ast.ListComp(only.elt, only.generators)
        return ast.List([ast.Starred(value) if count > 1 else value for value, count in written], ast.Load())

    def _run(self, item: Any, count: int) -> ast.expr:
        value = self.of(item)
        if count == 1:
            return value
        steps = ast.Call(ast.Name("range", ast.Load()), [ast.Constant(count)], [])
        return ast.GeneratorExp(value, [ast.comprehension(ast.Name("_", ast.Store()), steps, [], 0)])


def constant_or_none(value: Any) -> ast.expr:
    """A plain value as syntax; a name that no default is, for parts."""
    if isinstance(value, (Spec, Shared)) or (isinstance(value, tuple) and any(map(_is_description, value))):
        return ast.Name("part", ast.Load())
    return constant(value)


def _is_description(value: Any) -> bool:
    return isinstance(value, (Spec, Shared))


def identifier(name: str) -> str:
    """A name as a variable."""
    found = re.sub(r"\W+", "_", name).strip("_") or "shared"
    return f"shared_{found}" if found[0].isdigit() or keyword.iskeyword(found) else found
