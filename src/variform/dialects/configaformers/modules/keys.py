"""What a module's dict may hold: keys with types, defaults and limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from variform.core.spec import Spec
from variform.errors import Problem, did_you_mean

REQUIRED = object()
Settings = Mapping[str, Any]
Parsed = tuple[Spec, tuple[str, ...], tuple[str, ...]]
"""The step that a module is: op, names read, names written."""


@dataclass(frozen=True)
class Key:
    """One key of a module's dict.

    Args:
        default: its value when left out, or `REQUIRED`.
        types: what it may be; bools are no integers.
        choices: what a string may be (case does not matter); any but an empty one when there are none.
        smallest: the smallest number allowed.
        below: what a number must be less than.
        check: a further rule: (what is wrong, a hint), or None.
    """

    default: Any = None
    types: tuple[type, ...] = (str,)
    choices: tuple[str, ...] = ()
    smallest: int | None = None
    below: int | None = None
    check: Callable[[Any], tuple[str, str] | None] | None = None

    def problem(self, value: Any) -> tuple[str, str] | None:
        """What is wrong with a value, and a hint; None when nothing is."""
        wanted = " or ".join(t.__name__ for t in self.types)
        if not isinstance(value, self.types) or (isinstance(value, bool) and bool not in self.types):
            return f"must be {wanted}", ""
        if isinstance(value, (str, list, tuple)) and not value:
            return "must not be empty" if isinstance(value, str) else "needs at least one item", ""
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if self.choices and (not isinstance(item, str) or item.lower() not in self.choices):
                return f"must be one of {', '.join(self.choices)}", did_you_mean(str(item), self.choices)
        if isinstance(value, (int, float)):
            if self.smallest is not None and not value >= self.smallest:
                return f"must be at least {self.smallest}", ""
            if self.below is not None and not value < self.below:
                return f"must be less than {self.below}", ""
        return None if self.check is None else self.check(value)


@dataclass(frozen=True)
class ModuleType:
    """A module type.

    Args:
        keys: what its dict may hold beside `type`.
        step: the step it is: op, names read, names written.
        aliases: other spellings of keys.
        fields: which key stands behind a field of the op, for messages.
        check: rules over several keys; sees the keys that were given.
    """

    keys: Mapping[str, Key]
    step: Callable[[Settings], Parsed]
    aliases: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Settings], list[Problem]] | None = None


X = {"input_name": Key("x"), "output_name": Key("x")}
"""The keys of most modules: one stream in, one out."""

SIZE = Key(REQUIRED, (int,), smallest=1)


def one_to_one(s: Settings, op: Spec) -> Parsed:
    """A step from `input_name` to `output_name`."""
    return op, (s["input_name"],), (s["output_name"],)
