"""What expressions in a program may name: its sizes, and in blocks the number of the repeat."""

from __future__ import annotations

import numbers
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from variform.core.fields import Field, check_type, field_map
from variform.core.registry import lookup
from variform.dialects.configaformers import expressions
from variform.dialects.configaformers.expressions import Number
from variform.errors import ConfigError, Problem, join_path

INDEX = "i"
COUNT = "n"


@dataclass
class Scope:
    """The numbers that expressions may name at one place.

    Args:
        names: the sizes; in blocks also `i`, which repeat this is (from 0), and `n`, how many there are.
        used: the names met so far.
        told: names of sizes in the shapes of inputs, which only a call tells.
    """

    names: Mapping[str, Number] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    told: frozenset[str] = frozenset()

    def repeat(self, index: int, count: int) -> Scope:
        """The scope of one repeat of a block, which takes note of its own names."""
        return Scope({**self.names, INDEX: index, COUNT: count}, told=self.told)

    def integer(self, text: str) -> int:
        """An expression that must be an integer; see `expressions.evaluate` for what is refused."""
        self._known(text)
        return expressions.integer(text, self.names)

    def condition(self, value: Any) -> bool:
        """A condition: true, false, or an expression that is one of them."""
        if isinstance(value, bool):
            return value
        if not isinstance(value, str):
            raise ConfigError("must be true, false, or an expression such as 'i % 2 == 0'", value=value)
        self._known(value)
        return expressions.condition(value, self.names)

    def number(self, text: str, wanted: frozenset[type]) -> Number:
        """An expression for a key that takes numbers of the wanted types."""
        if wanted == {int}:
            return self.integer(text)
        self._known(text)
        value = expressions.evaluate(text, self.names)
        if bool in wanted and isinstance(value, bool):
            return value
        if float in wanted and not isinstance(value, bool):
            return value if int in wanted and isinstance(value, int) else float(value)
        if bool in wanted and int not in wanted:
            return self.condition(text)
        return self.integer(text)

    def size(self, value: int | str) -> int | str:
        """A size of a shape: known names are replaced, others stay symbols."""
        if not isinstance(value, str):
            return value
        self._note(value)
        return expressions.substitute(value, self.names)

    def filled(self, value: Any, wanted: frozenset[type]) -> Any:
        """A value with its expressions evaluated, also within lists and mappings."""
        if isinstance(value, str):
            return self.number(value, wanted)
        if isinstance(value, Mapping):
            return {key: self.filled(item, wanted) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.filled(item, wanted) for item in value)
        return value

    def field(self, value: Any, of: Field, path: str, problems: list[Problem]) -> Any:
        """The value of a part's field, plain data with expressions in the places of numbers.

        Args:
            value: what was given.
            of: the field.
            path: its place, for problems.
            problems: where they go.
        """
        if of.is_slot:
            return self.slot(value, of.kind_names(), path, problems)
        wanted = _numbers(of.annotation)
        if not wanted or not has_text(value) or check_type(of.annotation, value)[1] is None:
            return value
        try:
            return self.filled(value, wanted)
        except ConfigError as error:
            problems += [problem.below(path) for problem in error.problems]
            return value

    def slot(self, value: Any, kinds: tuple[str, ...], path: str, problems: list[Problem]) -> Any:
        """The same for a part, or a list of parts, in plain form."""
        if isinstance(value, (list, tuple)):
            return [self.slot(item, kinds, f"{path}.{place}", problems) for place, item in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        if "of" in value:
            inner = {**value, "of": self.slot(value["of"], kinds, join_path(path, "of"), problems)}
            return inner if "repeat" not in value else {**inner, "repeat": self._count(value, path, problems)}
        try:
            known = field_map(lookup(str(value.get("part")), kinds))
        except ConfigError:  # the codec reports what is no part
            return value
        return {
            key: self.field(item, known[key], join_path(path, str(key)), problems) if key in known else item
            for key, item in value.items()
        }

    def _count(self, value: Mapping[str, Any], path: str, problems: list[Problem]) -> Any:
        try:
            return self.filled(value["repeat"], frozenset({int}))
        except ConfigError as error:
            problems += [problem.below(join_path(path, "repeat")) for problem in error.problems]
            return 1

    def _note(self, text: str) -> None:
        self.used |= expressions.names_in(text)

    def _known(self, text: str) -> None:
        """Take note of the names of an expression that must be a number now.

        Raises:
            ConfigError: it is no expression, or names a size that only a call tells.
        """
        self._note(text)
        for name in sorted(expressions.names_in(text) & self.told - set(self.names)):
            raise ConfigError(
                f"{name!r} in {text!r} is a size of the inputs, which only a call tells, and a number is due",
                hint=f"to fix it, name it in sizes: sizes={{{name!r}: 1024}}",
            )


def read_sizes(sizes: Any) -> tuple[dict[str, Number], list[Problem]]:
    """The sizes of a program by name; each may be an expression of those before it."""
    if sizes is None:
        return {}, []
    if not isinstance(sizes, Mapping):
        return {}, [Problem("sizes", "must be a dict of numbers by name", sizes)]
    found: dict[str, Number] = {}
    problems: list[Problem] = []
    for name, given in sizes.items():
        path, value = f"sizes.{name}", plain(given)
        if not isinstance(name, str) or not name.isidentifier():
            problems.append(Problem(path, "a size has the form of a name: letters, digits and _", name))
        elif name in (INDEX, COUNT):
            problems.append(Problem(path, f"{name!r} is taken: i is the number of the repeat, n how many there are"))
        elif isinstance(value, str):
            try:
                if _in_order(value, name, list(sizes), found):
                    found[name] = expressions.evaluate(value, found)
            except ConfigError as error:
                problems += [problem.below(path) for problem in error.problems]
        elif isinstance(value, (int, float)):
            found[name] = value
        else:
            problems.append(Problem(path, "must be a number or an expression of the sizes before it", value))
    return found, problems


def _in_order(text: str, name: str, order: list[Any], found: Mapping[str, Number]) -> bool:
    """Whether all that the size of this name is computed from is there; not so where an earlier one is wrong.

    Raises:
        ConfigError: it names itself, or one that comes after it.
    """
    missing = [other for other in order if other in expressions.names_in(text) and other not in found]
    for other in missing:
        if other == name:
            raise ConfigError(f"{name!r} is computed from itself: {text!r}")
        if order.index(other) > order.index(name):
            raise ConfigError(
                f"{text!r} names {other!r}, which comes after it",
                hint=f"sizes are computed in order: put {other!r} first",
            )
    return not missing


def plain(value: Any) -> Any:
    """A value with the numbers of other libraries as numbers of Python, also within lists and mappings."""
    if isinstance(value, (str, int)):
        return value
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return {key: plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def has_text(value: Any) -> bool:
    """Whether there is text in a value, also within lists and mappings."""
    if isinstance(value, Mapping):
        return any(map(has_text, value.values()))
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and any(map(has_text, value)))


def _numbers(annotation: Any) -> frozenset[type]:
    """The types of numbers that a field's annotation allows somewhere."""
    origin = typing.get_origin(annotation)
    if annotation in (int, float, bool):
        return frozenset({annotation})
    if origin is typing.Annotated:
        return _numbers(typing.get_args(annotation)[0])
    if origin is typing.Literal or origin is None:
        return frozenset()
    inner = typing.get_args(annotation)
    if origin in (Union, types.UnionType) or isinstance(origin, type):
        return frozenset().union(*(_numbers(item) for item in inner))
    return frozenset()
