"""Which attentions there are, and how one is built from a dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from variform.dialects.xformers.building import build_part
from variform.dialects.xformers.components.attention.adopted import adopt_attention
from variform.dialects.xformers.components.attention.base import Attention, AttentionConfig
from variform.dialects.xformers.components.attention.mixing import mixer_items
from variform.dialects.xformers.components.attention.native import native_items
from variform.dialects.xformers.utils import Item, Registry, get_registry_decorator

SURROUNDINGS = ("dropout", "seq_len", "num_heads", "dim_model", "dim_head", "dim_features")


def _natives() -> Mapping[str, Item]:
    own = ATTENTION_REGISTRY.own()
    taken = frozenset(getattr(item.constructor, "stands_for", "") for item in own.values()) | set(own)
    taken -= {"softmax"}  # scaled_dot_product has upstream's keys alone: scores, weights and memories have this name
    return {**mixer_items(taken), **native_items(taken)}


ATTENTION_REGISTRY = Registry("attention", SURROUNDINGS, _natives)

register_attention = get_registry_decorator(ATTENTION_REGISTRY, Attention, AttentionConfig, adopt_attention)
"""Register an `Attention` subclass under a name, with the dataclass that describes its configuration."""


def build_attention(config: Mapping[str, Any] | AttentionConfig, **offers: Any) -> Any:
    """Build the attention that a configuration names.

    The configuration may be a superset, as sweeps pass it: keys that another registered attention knows are dropped
    and listed in `.dropped` of the result. A key nobody knows is an error, and `causal` is never dropped.

    Args:
        config: a mapping with the key `name`, or a configuration dataclass. Not changed.
        **offers: values of the surroundings (`num_heads`, `dim_model`), used where the configuration is silent.

    Raises:
        ConfigError: all problems at once; also a `KeyError` for an unknown name, a `TypeError` for a missing key.
    """
    return build_part(ATTENTION_REGISTRY, config, offers)
