"""The library's own feedforwards behind upstream's interface."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import make_dataclass
from typing import Any, ClassVar

from torch import Tensor

from variform.core.build import build
from variform.core.fields import fields_of
from variform.core.part import Part
from variform.core.registry import parts
from variform.core.spec import Spec
from variform.dialects.xformers.building import Key, native_keys, superset_keys
from variform.dialects.xformers.components.activations import as_native
from variform.dialects.xformers.components.feedforward.base import Feedforward, FeedforwardConfig
from variform.dialects.xformers.errors import CallError
from variform.dialects.xformers.utils import Item
from variform.parts.kinds import FeedForward as NativePart


class NativeFeedforward(Feedforward):
    """A native feedforward.

    Args:
        spec: the native part.
        **facts: what the surroundings provide (`dim`).
    """

    stands_for: ClassVar[str] = ""
    """The registered name of the native part, which then is not offered a second time under its own name."""

    def __init__(self, spec: Spec, **facts: Any) -> None:
        super().__init__()
        self.native: NativePart = build(spec, **facts)
        self.takes_padding = "valid" in self.native.reads
        self.causal = type(self.native).abilities(dict(self.native.spec.args)).causal

    @property
    def spec(self) -> Spec:
        """The native part."""
        return self.native.spec

    def forward(self, inputs: Tensor, padding: Tensor | None = None) -> Tensor:
        """Transform each token."""
        out = self.native(inputs, {} if padding is None else {"valid": padding})
        if not isinstance(out, Tensor):
            raise CallError(
                f"the feedforward {self.native.name!r} publishes streams: it needs a native model around it"
            )
        return out


def superset_of(name: str, keys: Mapping[str, Key], given: Mapping[str, Any]) -> tuple[str, ...]:
    """The keywords of a native part's constructor that only other feedforwards know; those that nobody knows raise."""
    from variform.dialects.xformers.components.feedforward.registry import FEEDFORWARD_REGISTRY

    return superset_keys(FEEDFORWARD_REGISTRY, {key: value for key, value in given.items() if key not in keys}, name)


def native_items(taken: frozenset[str]) -> Mapping[str, Item]:
    """The library's own feedforwards that no class of the dialect stands for, under their native names."""
    return {name: _item(part) for (_, name), part in parts("feedforward").items() if name not in taken}


@functools.cache
def _item(part: type[Part]) -> Item:
    own = [f.name for f in fields_of(part)]

    def init(self: NativeFeedforward, **given: Any) -> None:
        facts = {"dim": given["dim_model"]} if "dim_model" in given else {}
        if "activation" in given:
            given["activation"] = as_native(given["activation"])
        dropped = superset_of(part.name, keys, given)
        NativeFeedforward.__init__(self, Spec(part, {k: v for k, v in given.items() if k in own}), **facts)
        self.dropped = dropped

    keys = {"dim_model": Key("dim_model", Any, False, True)} | native_keys(part)
    if "activation" in keys:  # names of either side
        keys["activation"] = Key("activation", str, keys["activation"].required, True)
    body: dict[str, Any] = {"__init__": init, "__doc__": part.__doc__, "stands_for": part.name}
    body["config_keys"] = {"name": Key("name", str, False, False), **keys}
    config = make_dataclass(f"{part.__name__}Config", [(name, Any, None) for name in own], bases=(FeedforwardConfig,))
    body |= {"__module__": __name__, "__qualname__": f"{_PREFIX}{part.name}"}
    return Item(type(part.__name__, (NativeFeedforward,), body), config)


_PREFIX = "native_"


def __getattr__(name: str) -> Any:
    """The classes made for native parts, by name, so that a pickled model finds them in another process."""
    item = native_items(frozenset()).get(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
    if item is None:
        raise AttributeError(name)
    return item.constructor
