"""The configuration of a whole model: stacks of blocks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from variform.dialects.xformers.building import checked
from variform.dialects.xformers.components import ResidualNormStyle
from variform.dialects.xformers.errors import Wrong, config_error, wrongs
from variform.dialects.xformers.factory.block_configs import (
    BlockType,
    LayerPosition,
    xFormerBlockConfig,
    xFormerDecoderConfig,
    xFormerEncoderConfig,
)
from variform.dialects.xformers.factory.weight_init import xFormerWeightInit
from variform.errors import ConfigError, did_you_mean

Stacks = list[xFormerBlockConfig] | dict[str, xFormerBlockConfig]


@dataclass
class xFormerStackConfig:
    """A block's configuration with what makes a stack of it.

    Args:
        block_config: the block.
        num_layers: how many blocks follow one another.
        reversible: the sequence of layers is reversible; see `xFormerBlockConfig`.
    """

    block_config: xFormerEncoderConfig | xFormerDecoderConfig
    num_layers: int
    reversible: bool


@dataclass(init=False)
class xFormerConfig:
    """The configuration of a whole model.

    Args:
        stack_configs: descriptions of stacks of encoder and decoder blocks, in a list or by name; each a dict with
            `block_type`, or a configuration object. Not changed, and may be used again.
        tie_embedding_weights: encoder and decoder share their position embedding, token vectors included.
        weight_init: the scheme of the initial weights.

    Raises:
        ConfigError: every mistake in every stack, with its path.
    """

    stack_configs: Stacks
    tie_embedding_weights: bool
    weight_init: xFormerWeightInit

    def __init__(
        self,
        stack_configs: Any,
        tie_embedding_weights: bool = False,
        weight_init: xFormerWeightInit | str = xFormerWeightInit.ViT,
        **unknown: Any,
    ) -> None:
        self.stack_configs, problems = read_stacks(stack_configs)
        problems += unknown_settings(unknown)
        for name, annotation, value in (
            ("tie_embedding_weights", bool, tie_embedding_weights),
            ("weight_init", xFormerWeightInit, weight_init),
        ):
            value, wrong = checked(name, annotation, value)
            problems += [] if wrong is None else [wrong]
            setattr(self, name, value)
        if problems:
            raise config_error(problems)


def read_stacks(described: Any) -> tuple[Stacks, list[Wrong]]:
    """Configuration objects from what describes stacks: one, a list of them, or a dict of them by name."""
    by_name = isinstance(described, Mapping) and "block_type" not in described
    if isinstance(described, xFormerBlockConfig | xFormerStackConfig | Mapping) and not by_name:
        described = [described]
    if not (by_name or isinstance(described, Sequence)) or isinstance(described, str) or len(described) == 0:
        return [], [Wrong("stack_configs", "expected a list or a dict of stacks", described, like=TypeError)]
    items = list(described.items()) if by_name else list(enumerate(described))
    problems: list[Wrong] = []
    found: dict[Any, xFormerBlockConfig] = {}
    for key, stack in items:
        config = _read(stack, f"stack_configs.{key}", problems)
        if config is not None:
            found[key] = config
    if not problems:
        problems += _contradictions(found)
    found = _in_their_places(found)
    return (found if by_name else list(found.values())), problems


def unknown_settings(given: Mapping[str, Any]) -> list[Wrong]:
    """Keywords that a model does not have."""
    known = ("stack_configs", "tie_embedding_weights", "weight_init")
    return [
        Wrong(key, f"a model has no setting {key!r}", value, did_you_mean(key, known), like=TypeError)
        for key, value in given.items()
    ]


def each_stack(stacks: Stacks) -> Iterator[tuple[str, xFormerBlockConfig]]:
    """The stacks with their paths."""
    for key, stack in stacks.items() if isinstance(stacks, dict) else enumerate(stacks):
        yield f"stack_configs.{key}", stack


def _read(stack: Any, path: str, problems: list[Wrong]) -> xFormerBlockConfig | None:
    more: dict[str, Any] = {}
    if isinstance(stack, xFormerStackConfig):
        more = {"num_layers": stack.num_layers, "reversible": stack.reversible}
        stack = stack.block_config
    elif isinstance(stack, Mapping) and "block_config" in stack:
        more = {str(key): value for key, value in stack.items() if key != "block_config"}
        stack = stack["block_config"]
    if isinstance(stack, xFormerBlockConfig):
        if not more:
            return stack
        stack = {name: getattr(stack, name) for name in stack.known_keys()}
    if not isinstance(stack, Mapping):
        problems.append(Wrong(path, "a stack is described by a dict", stack, like=TypeError))
        return None
    kinds: dict[Any, type[xFormerBlockConfig]] = {"encoder": xFormerEncoderConfig, "decoder": xFormerDecoderConfig}
    kind = stack.get("block_type")
    if kind not in kinds:
        if kind is None:
            problem = Wrong(f"{path}.block_type", "this key is needed", hint="'encoder' or 'decoder'", like=KeyError)
        else:
            hint = did_you_mean(str(kind), kinds)
            problem = Wrong(f"{path}.block_type", "not one of the kinds of blocks", kind, hint, like=KeyError)
        problems.append(problem)
        return None
    try:
        return kinds[kind](**{**{str(key): value for key, value in stack.items()}, **more})
    except ConfigError as error:
        problems += wrongs(error, path)
        return None


def _in_their_places(stacks: Mapping[Any, xFormerBlockConfig]) -> dict[Any, xFormerBlockConfig]:
    """Copies of the configurations that know which stacks are the first and the last of their kind."""
    places: dict[BlockType, list[Any]] = {}
    for key, stack in stacks.items():
        places.setdefault(stack.block_type, []).append(key)
    placed = {}
    for key, stack in stacks.items():
        alike = places[stack.block_type]
        placed[key] = copy.copy(stack)
        placed[key].layer_position = LayerPosition(first=key == alike[0], last=key == alike[-1])
    return placed


def _contradictions(stacks: Mapping[Any, xFormerBlockConfig]) -> list[Wrong]:
    """Settings that all stacks, or all of one kind, must have in common."""
    problems = []
    first = next(iter(stacks.values()))
    deep = first.residual_norm_style == ResidualNormStyle.DeepNorm
    for key, stack in stacks.items():
        if (stack.residual_norm_style == ResidualNormStyle.DeepNorm) != deep:
            message, path = "all layers need to have the same deepnorm setting", f"stack_configs.{key}"
            style = stack.residual_norm_style.value
            problems.append(Wrong(f"{path}.residual_norm_style", message, style, like=AssertionError))
    return problems + _mixed(stacks) + _sizes(stacks)


def _mixed(stacks: Mapping[Any, xFormerBlockConfig]) -> list[Wrong]:
    """The blocks of one side that are reversible beside others that are not."""
    first: dict[BlockType, bool] = {}
    return [
        Wrong(
            f"stack_configs.{key}.reversible",
            f"all {stack.block_type.value} layers are reversible, or none",
            stack.reversible,
            like=AssertionError,
        )
        for key, stack in stacks.items()
        if first.setdefault(stack.block_type, stack.reversible) != stack.reversible
    ]


def _sizes(stacks: Mapping[Any, xFormerBlockConfig]) -> list[Wrong]:
    """Features that one block hands to another that expects others."""
    problems: list[Wrong] = []
    sizes: dict[BlockType, int] = {}
    for key, stack in stacks.items():
        path, size = f"stack_configs.{key}", sizes.get(stack.block_type, stack.dim_model)
        patches = getattr(stack, "patch_embedding_config", None)
        before = f"the {stack.block_type.value} layers before have dim_model = {size}"
        if patches is not None and stack.block_type in sizes and patches["in_channels"] != size:
            problems.append(Wrong(f"{path}.patch_embedding_config.in_channels", before, patches["in_channels"]))
        elif patches is None and size != stack.dim_model:
            hint = "a patch_embedding_config may change it" if isinstance(stack, xFormerEncoderConfig) else ""
            problems.append(Wrong(f"{path}.dim_model", before, stack.dim_model, hint))
        sizes[stack.block_type] = stack.dim_model
    memory = sizes.get(BlockType.Encoder)
    for key, stack in stacks.items():
        if not isinstance(stack, xFormerDecoderConfig) or stack.multi_head_config_cross is None:
            continue
        if memory is not None and stack.dim_model != memory:
            message = f"the encoder that it attends to has dim_model = {memory}"
            problems.append(Wrong(f"stack_configs.{key}.dim_model", message, stack.dim_model))
    return problems
