"""Parts that users register with upstream's decorators, as parts of the core: checked, measured and built like any."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, ClassVar, Union

import torch
from torch import nn

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Part
from variform.core.registry import parts, register, register_later
from variform.dialects.xformers.building import Key, checked, keys_of
from variform.dialects.xformers.utils import Item

FACTS = {"num_heads": "heads", "dim_model": "dim", "dim_head": "dim_head", "seq_len": "max_seq_len"}
"""Keys of upstream's whose value the surroundings know, by the core's name for it."""

TRIAL = {"heads": 4, "dim": 16, "dim_head": 4, "max_seq_len": 16, "causal": False}
"""The sizes of an instance that is made to read its flags, which upstream sets in constructors."""

NOT_ADOPTED: dict[str, str] = {}
"""Why a class that was registered with the dialect is no part of the core, by its name."""

OWN = "variform."
"""What the library's own classes of the dialect stand in: they have parts of the core already."""


class Adopted:
    """What the adapters of all kinds have in common: they hold an instance of the user's class as `module`."""

    adopted: ClassVar[type[nn.Module]]

    def make(self, arguments: dict[str, Any]) -> Any:
        """An instance, which is made once more when parameters are to be initialised."""
        self.arguments = dict(arguments)
        return type(self).adopted(**arguments)

    def reset_parameters(self) -> None:
        """The values of a new instance: a user's class need not say how its parameters begin."""
        module: nn.Module = getattr(self, "module")  # noqa: B009  a submodule of the adapter
        tensors = dict([*module.named_parameters(), *module.named_buffers()])
        if not tensors:
            return
        with torch.device(next(iter(tensors.values())).device):
            fresh = type(self).adopted(**self.arguments)
        with torch.no_grad():
            for name, value in [*fresh.named_parameters(), *fresh.named_buffers()]:
                tensors[name].copy_(value)


def adopt(name: str, item: Item, base: Callable[[Any], type[Part] | None]) -> None:
    """Register a part of the core for a class that was registered with the dialect, once parts are looked up.

    Args:
        name: what both are called; a name that the core has already gets the suffix `_xformers`.
        item: the class and its configuration.
        base: from an instance to the adapter it takes, or None where the core has no place for it.
    """
    if not item.constructor.__module__.startswith(OWN):
        register_later(lambda: _adopt(name, item, base))


def _adopt(name: str, item: Item, base: Callable[[Any], type[Part] | None]) -> None:
    keys = {key: found for key, found in keys_of(item).items() if key != "name" and found.passed}
    parameters = [p for p in (_parameter(item, key) for key in keys.values()) if p is not None]
    parameters.sort(key=lambda p: p.default is not p.empty)
    try:
        trial = _trial(item, parameters, keys)
        adapter = base(trial)  # reads its flags, which are not there where its constructor is a sketch
    except Exception as error:  # a user's constructor, with values that were guessed
        NOT_ADOPTED[name] = f"an instance with the smallest settings could not be made: {error}"
        return
    if adapter is None:
        return
    before = parts(adapter.kind).get((adapter.kind, name))
    taken = before is not None and not hasattr(before, "adopted")
    part = _part_class(adapter, item, parameters, keys, trial)
    register(f"{name}_xformers" if taken else name, override=True)(part)


def _part_class(
    adapter: type[Part], item: Item, parameters: list[inspect.Parameter], keys: Mapping[str, Key], trial: Any
) -> type[Part]:
    """A final part whose fields are the class's own keys."""

    def __init__(self: Any, **fields: Any) -> None:
        adapter.__init__(self, _arguments(fields, keys))

    init: Any = __init__
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    init.__signature__ = inspect.Signature([own, *parameters])
    init.__annotations__ = {p.name: p.annotation for p in parameters}
    body: dict[str, Any] = {
        "__init__": init,
        "__doc__": item.constructor.__doc__ or f"The part {item.constructor.__name__} of a user.",
        "__module__": item.constructor.__module__,
        "__qualname__": f"{item.constructor.__qualname__}.as_part",
        "adopted": item.constructor,
    }
    body["can"] = adapter.can_of(trial, "causal" in keys)
    made: type[Part] = type(item.constructor.__name__, (adapter,), body)
    item.constructor.as_part = made  # where a pickle finds it
    return made


def _trial(item: Item, parameters: list[inspect.Parameter], keys: Mapping[str, Key]) -> Any:
    with torch.random.fork_rng(devices=[]):
        return item.constructor(**_arguments({p.name: _guess(p) for p in parameters}, keys))


def _guess(parameter: inspect.Parameter) -> Any:
    if parameter.name in TRIAL:
        return TRIAL[parameter.name]
    if parameter.default is not parameter.empty:
        return parameter.default
    guesses: dict[Any, Any] = {int: 3, float: 0.5, bool: False, str: "sample"}
    if typing.get_origin(parameter.annotation) is typing.Literal:
        return typing.get_args(parameter.annotation)[0]
    return guesses.get(_plain(parameter.annotation))


def _arguments(fields: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    """The fields of the part by upstream's names for them; None keeps the constructor's default."""
    named = {fact: key for key, fact in FACTS.items()}
    found = {named.get(name, name): value for name, value in fields.items()}
    known = {key: value for key, value in found.items() if key in keys and (value is not None or keys[key].required)}
    return {key: checked(key, keys[key].annotation, value)[0] for key, value in known.items()}


def _parameter(item: Item, key: Key) -> inspect.Parameter | None:
    """A key as a field; None for keys whose values no file could hold, which keep their defaults."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    if key.name in FACTS:
        return inspect.Parameter(FACTS[key.name], kind, default=INHERIT, annotation=int)
    if key.name == "causal":
        return inspect.Parameter("causal", kind, default=inherit(False), annotation=bool)
    if key.name == "dropout":
        return inspect.Parameter("dropout", kind, default=0.0, annotation=float)
    plain, annotation = _plain(key.annotation), key.annotation
    if plain is None:
        return None
    if isinstance(plain, type) and issubclass(plain, Enum):
        annotation = typing.Literal[tuple(member.value for member in plain)]  # what a file holds
    if key.required:
        return inspect.Parameter(key.name, kind, annotation=annotation)
    own = inspect.signature(item.constructor.__init__).parameters.get(key.name)
    default = None if own is None else own.default
    default = default.value if isinstance(default, Enum) else default
    annotation = annotation if default is not None else annotation | None
    return inspect.Parameter(key.name, kind, default=default, annotation=annotation)


def _plain(annotation: Any) -> Any:
    """The simple type behind an annotation, or None."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _plain(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (Union, types.UnionType):
        options = [option for option in typing.get_args(annotation) if option is not type(None)]
        return _plain(options[0]) if len(options) == 1 else None
    simple = annotation in (int, float, bool, str) or (isinstance(annotation, type) and issubclass(annotation, Enum))
    return annotation if simple else None
