"""Registries of parts by name, in the form upstream had: `name -> Item(constructor, config)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from variform.dialects.xformers.errors import ConfigKeyError, Wrong, config_error
from variform.errors import did_you_mean

C = TypeVar("C", bound=type)


class Item(NamedTuple):
    """A registered part: its class, and the dataclass that describes its configuration."""

    constructor: Any
    config: Any


class Registry(Mapping[str, Item]):
    """Parts of one kind by name: those registered with the dialect, then what the library itself offers.

    Args:
        kind: what the parts are, for messages.
        surroundings: keys that describe where a part stands (`num_heads`), which any configuration may have.
        natives: the library's own parts of this kind that no registered one stands for.
    """

    def __init__(
        self, kind: str, surroundings: Iterable[str] = (), natives: Callable[[], Mapping[str, Item]] = dict
    ) -> None:
        self.kind = kind
        self.surroundings = frozenset({"name", *surroundings})
        self._own: dict[str, Item] = {}
        self._natives = natives

    def own(self) -> Mapping[str, Item]:
        """The parts registered with the dialect."""
        return dict(self._own)

    def add(self, name: str, item: Item) -> None:
        """Register a part.

        Raises:
            ConfigError: the name is taken by another class.
        """
        taken = self._own.get(name)
        if taken is not None and not _is_reload(taken.constructor, item.constructor):
            raise config_error([Wrong("name", f"cannot register duplicate item ({name}): the name is taken")])
        self._own[name] = item

    def remove(self, name: str) -> None:
        """Forget a part that was registered (tests and notebooks)."""
        self._own.pop(name, None)

    def __getitem__(self, name: str) -> Item:
        item = self._own.get(name) or self._natives().get(name)
        if item is None:
            raise ConfigKeyError(f"there is no {self.kind} {name!r}", path="name", hint=did_you_mean(str(name), self))
        return item

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (name for name in self._natives() if name not in self._own)

    def everything(self) -> Mapping[str, Item]:
        """All parts at once."""
        return {**self._natives(), **self._own}

    def __len__(self) -> int:
        return len({*self._own, *self._natives()})

    def __repr__(self) -> str:
        return f"<{self.kind} registry: {', '.join(self)}>"


def get_registry_decorator(
    registry: Registry,
    reference_class: type,
    default_config: Any,
    announce: Callable[[str, Item], object] | None = None,
) -> Callable[..., Callable[[C], C]]:
    """The decorator that registers subclasses of `reference_class` under a name with a configuration dataclass.

    Args:
        registry: where they are found.
        reference_class: what they extend.
        default_config: the configuration of those that name none.
        announce: told of each class that is registered.
    """

    def register_item(name: str, config: Any = default_config) -> Callable[[C], C]:
        if not is_dataclass(config):
            raise config_error([Wrong("config", "a dataclass describes the configuration", config)])

        def register_cls(cls: C) -> C:
            if not issubclass(cls, reference_class):
                message = f"item ({name}: {getattr(cls, '__name__', cls)}) must extend {reference_class.__name__}"
                raise config_error([Wrong("", message)])
            registry.add(name, Item(cls, config))
            if announce is not None:
                announce(name, Item(cls, config))
            return cls

        return register_cls

    return register_item


def same_tensor(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are one, or copies as `torch.jit.trace` makes of a tensor that is passed several times."""
    if first is second:
        return True
    alike = (first.shape, first.dtype, first.device) == (second.shape, second.dtype, second.device)
    return alike and not first.is_meta and torch.equal(first, second)


def generate_matching_config(superset: Mapping[str, Any], config_class: Any) -> Any:
    """An instance of `config_class` from those keys of `superset` that it has; the missing ones are None."""
    return config_class(**{f.name: superset.get(f.name) for f in fields(config_class)})


def _is_reload(taken: Any, new: Any) -> bool:
    """The same class, defined again by running its module or notebook cell once more."""
    same = (taken.__module__, taken.__qualname__) == (new.__module__, new.__qualname__)
    return taken is new or (same and "<locals>" not in new.__qualname__)
