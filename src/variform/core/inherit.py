"""INHERIT: the default of a field whose value the surroundings provide."""

from __future__ import annotations

from typing import Any, ClassVar

_MISSING = object()


class Inherit:
    """A marker that stands for "take it from the surroundings".

    `INHERIT` fails when nothing around provides the field (unless the field may be None); `inherit(x)` falls back
    to `x`. There is one object per fallback, and it survives copy, deepcopy and pickle.
    """

    _known: ClassVar[dict[str, Inherit]] = {}
    fallback: Any

    def __new__(cls, fallback: Any = _MISSING) -> Inherit:
        key = "INHERIT" if fallback is _MISSING else f"inherit({fallback!r})"
        if key not in cls._known:
            marker = super().__new__(cls)
            marker.fallback = fallback
            cls._known[key] = marker
        return cls._known[key]

    @property
    def has_fallback(self) -> bool:
        """Whether a value stands in when nothing around provides one."""
        return self.fallback is not _MISSING

    def __repr__(self) -> str:
        return f"inherit({self.fallback!r})" if self.has_fallback else "INHERIT"

    def __bool__(self) -> bool:
        raise TypeError("INHERIT has no truth value: it is replaced by a real value when a spec is resolved")

    def __copy__(self) -> Inherit:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Inherit:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (Inherit, (self.fallback,)) if self.has_fallback else (Inherit, ())


INHERIT: Any = Inherit()
"""Take the value from the surroundings; an error when they have none."""


def inherit(fallback: Any) -> Any:
    """Take the value from the surroundings, or `fallback` when they have none."""
    return Inherit(fallback)
