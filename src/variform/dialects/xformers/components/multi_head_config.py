"""From a nested dict to `MultiHeadDispatch`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from variform.dialects.xformers.building import as_mapping, build_part, checked, hints_of, plan_part
from variform.dialects.xformers.components.attention import ATTENTION_REGISTRY, Attention
from variform.dialects.xformers.components.multi_head_dispatch import (
    MultiHeadDispatch,
    MultiHeadDispatchConfig,
    head_problems,
)
from variform.dialects.xformers.errors import Wrong, below, config_error
from variform.errors import did_you_mean


def build_multi_head_attention(multi_head_config: MultiHeadDispatchConfig | Mapping[str, Any]) -> MultiHeadDispatch:
    """Build multi-head attention from a configuration in which the attention may be described by a dict.

    Args:
        multi_head_config: a mapping with the keys of `MultiHeadDispatchConfig`, or one of those. Not changed.

    Raises:
        ConfigError: all problems of the configuration at once.
    """
    arguments, problems = plan_multi_head(multi_head_config)
    if problems:
        raise config_error(problems)
    attention = arguments["attention"]
    if not isinstance(attention, Attention):
        with below("attention"):
            attention = build_part(ATTENTION_REGISTRY, attention, _offers(arguments))
    dispatch = MultiHeadDispatch(**{**arguments, "attention": attention})
    dispatch.dropped = tuple(f"attention.{key}" for key in attention.dropped)
    return dispatch


def plan_multi_head(config: Any, dim_model: int | None = None) -> tuple[dict[str, Any], list[Wrong]]:
    """The constructor's arguments, the attention still as it was described, and all problems.

    Args:
        config: see `build_multi_head_attention`.
        dim_model: the features, where the configuration is silent.
    """
    given = as_mapping(config)
    if given is None:
        return {}, [Wrong("", "the configuration of multi-head attention is a dict", config, like=TypeError)]
    known = [f.name for f in fields(MultiHeadDispatchConfig)]
    problems = [
        Wrong(str(key), f"multi-head attention has no key {key!r}", hint=did_you_mean(str(key), known), like=TypeError)
        for key in given
        if key not in known
    ]
    arguments = {key: value for key, value in given.items() if key in known and value is not None}
    if dim_model is not None:
        arguments.setdefault("dim_model", dim_model)
    required = [n for n, p in inspect.signature(MultiHeadDispatch).parameters.items() if p.default is p.empty]
    for name in required:
        if name in known and name not in arguments:
            problems.append(Wrong(name, "multi-head attention needs this key", like=TypeError))
    problems += _checked(arguments)
    return arguments, problems


def _checked(arguments: dict[str, Any]) -> list[Wrong]:
    hints, problems = hints_of(MultiHeadDispatch.__init__), []
    for name, value in arguments.items():
        if name in ("attention", "bias"):
            continue
        arguments[name], wrong = checked(name, hints[name], value)
        if wrong is not None:
            problems.append(wrong)
    if isinstance(arguments.get("bias"), list):
        arguments["bias"] = tuple(arguments["bias"])
    sizes = {key: arguments[key] for key in ("dim_model", "dim_key", "dim_value") if key in arguments}
    if not problems and "num_heads" in arguments and "dim_model" in sizes:
        problems += head_problems(arguments["num_heads"], **sizes)
    attention = arguments.get("attention")
    if attention is not None and not isinstance(attention, Attention):
        _, wrong_keys = plan_part(ATTENTION_REGISTRY, attention, _offers(arguments))
        problems += [wrong.below("attention") for wrong in wrong_keys]
    return problems


def _offers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the attention may know of the multi-head attention around it."""
    dim, heads = arguments.get("dim_model"), arguments.get("num_heads")
    offers: dict[str, Any] = {"num_heads": heads, "dim_model": dim}
    if isinstance(dim, int) and isinstance(heads, int) and heads > 0:
        offers["dim_head"] = (arguments.get("dim_key") or dim) // heads
    return {key: value for key, value in offers.items() if value is not None}
