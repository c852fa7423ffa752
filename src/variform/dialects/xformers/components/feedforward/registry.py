"""Which feedforwards there are, and how one is built from a dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from variform.dialects.xformers.building import build_part
from variform.dialects.xformers.components.feedforward.adopted import adopt_feedforward
from variform.dialects.xformers.components.feedforward.base import Feedforward, FeedforwardConfig
from variform.dialects.xformers.components.feedforward.native import native_items
from variform.dialects.xformers.utils import Item, Registry, get_registry_decorator


def _natives() -> Mapping[str, Item]:
    own = FEEDFORWARD_REGISTRY.own()
    return native_items(frozenset(getattr(item.constructor, "stands_for", "") for item in own.values()) | set(own))


FEEDFORWARD_REGISTRY = Registry("feedforward", ("dim_model", "dropout", "activation"), _natives)

register_feedforward = get_registry_decorator(FEEDFORWARD_REGISTRY, Feedforward, FeedforwardConfig, adopt_feedforward)
"""Register a `Feedforward` subclass under a name, with the dataclass that describes its configuration."""


def build_feedforward(config: Mapping[str, Any] | FeedforwardConfig, **offers: Any) -> Any:
    """Build the feedforward that a configuration names; supersets are treated as in `build_attention`.

    Args:
        config: a mapping with the key `name`, or a configuration dataclass. Not changed.
        **offers: values of the surroundings (`dim_model`), used where the configuration is silent.

    Raises:
        ConfigError: all problems at once; also a `KeyError` for an unknown name, a `TypeError` for a missing key.
    """
    return build_part(FEEDFORWARD_REGISTRY, config, offers)
