"""The registry: parts by (kind, name), and presets (functions that return a spec) by name."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from variform.core.fields import check_type
from variform.core.part import Part
from variform.errors import ConfigError, Problem, did_you_mean

if TYPE_CHECKING:
    from variform.core.spec import Spec

P = TypeVar("P", bound=Part)
_parts: dict[tuple[str, str], type[Part]] = {}
_presets: dict[str, Callable[..., Spec]] = {}
_pending: list[Callable[[], object]] = []


def register(name: str, *, override: bool = False) -> Callable[[type[P]], type[P]]:
    """Register a part class under `name` within its kind; its kind comes from its abstract base.

    Args:
        name: what configs call it; unique within the kind.
        override: replace a part registered before under the same name.

    Raises:
        ConfigError: the class has no kind, or the name is taken.
    """

    def decorate(part: type[P]) -> type[P]:
        if not getattr(part, "kind", ""):
            raise ConfigError(
                f"cannot register {getattr(part, '__name__', part)!r}: it is not a subclass of a kind",
                hint="derive it from one of: " + ", ".join(sorted(k.__name__ for k in kinds().values())),
            )
        if getattr(part.forward, "__isabstractmethod__", False):
            raise ConfigError(f"cannot register {part.__name__!r}: it has no forward")
        key = (part.kind, name)
        taken = _parts.get(key)
        if taken is not None and taken is not part and not override and not _is_reload(taken, part):
            raise ConfigError(
                f"a {part.kind} named {name!r} is already registered ({taken.__module__}.{taken.__qualname__})",
                hint="choose another name, or pass override=True",
            )
        part.name = name
        _parts[key] = part
        return part

    return decorate


def register_later(registration: Callable[[], object]) -> None:
    """Run a registration when parts are next looked up: for classes that are announced before they are complete."""
    _pending.append(registration)


def _settle() -> None:
    while _pending:
        _pending.pop(0)()


def unregister(kind: str, name: str) -> None:
    """Forget a part (tests and notebooks)."""
    _settle()
    _parts.pop((kind, name), None)


def parts(kind: str | None = None) -> dict[tuple[str, str], type[Part]]:
    """All registered parts, or those of one kind, sorted by kind and name."""
    if kind is not None and kind not in kinds():
        raise ConfigError(f"there is no kind {kind!r}", hint=did_you_mean(kind, kinds()))
    _settle()
    return {key: part for key, part in sorted(_parts.items()) if kind is None or key[0] == kind}


def kinds() -> dict[str, type[Part]]:
    """The abstract part classes by the name of their kind."""
    return {cls.kind: cls for cls in _kind_classes(Part)}


def lookup(name: str, allowed: tuple[str, ...] = ()) -> type[Part]:
    """Find a part by `name` or `kind/name`, among the allowed kinds (all, when none is given).

    Raises:
        ConfigError: unknown or ambiguous, with the nearest names.
    """
    _settle()
    kind, _, short = name.rpartition("/")
    searched = (kind,) if kind else (allowed or tuple(kinds()))
    if kind and allowed and kind not in allowed:
        raise ConfigError(f"a {kind} does not fit here; the slot takes {' or '.join(allowed)}")
    found = [_parts[key] for key in ((k, short) for k in searched) if key in _parts]
    if len(found) == 1 or (found and allowed and found[0].kind == "op"):  # a step of a program means the op
        return found[0]
    if found:
        options = " or ".join(repr(f"{part.kind}/{short}") for part in found)
        raise ConfigError(f"{name!r} is ambiguous", hint=f"write {options}")
    known = [n for k, n in _parts if k in searched]
    what = " or ".join(searched) if len(searched) <= 3 else "part"
    raise ConfigError(f"there is no {what} named {short!r}", hint=_elsewhere(short) or did_you_mean(short, known))


def preset(function: Callable[..., Spec]) -> Callable[..., Spec]:
    """Register a function that returns a spec, so that configs can name it: `preset: gpt`."""

    label = f"the preset {function.__name__!r}"
    signature = inspect.signature(function)
    types = typing.get_type_hints(function, include_extras=True)

    @functools.wraps(function)
    def checked(*args: object, **kwargs: object) -> Spec:
        known = list(signature.parameters)
        problems = [
            Problem(key, f"{label} has no field {key!r}", hint=did_you_mean(key, known))
            for key in kwargs
            if key not in known
        ]
        try:
            bound = signature.bind_partial(*args, **{key: value for key, value in kwargs.items() if key in known})
        except TypeError as error:
            raise ConfigError(f"{label}: {error}") from None
        for name, parameter in signature.parameters.items():
            if name in bound.arguments:
                value, message = check_type(types[name], bound.arguments[name])
                bound.arguments[name] = value
                if message is not None:
                    problems.append(Problem(name, message, value))
            elif parameter.default is parameter.empty:
                problems.append(Problem(name, f"{label} needs this field"))
        if problems:
            raise ConfigError(problems)
        return function(*bound.args, **bound.kwargs)

    _presets[function.__name__] = checked
    return checked


def presets() -> dict[str, Callable[..., Spec]]:
    """All registered presets by name."""
    return dict(sorted(_presets.items()))


def _kind_classes(base: type[Part]) -> Iterator[type[Part]]:
    for cls in base.__subclasses__():
        if cls.__dict__.get("kind"):
            yield cls
        yield from _kind_classes(cls)


def _is_reload(old: type[Part], new: type[Part]) -> bool:
    """The same class again, from a module that was reloaded or a cell that was run twice."""
    return (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)


def _elsewhere(short: str) -> str:
    others = sorted(k for k, n in _parts if n == short)
    return f"{short!r} is registered as {' and '.join(others)}" if others else ""
