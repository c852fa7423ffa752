"""Configurations of hierarchical models: stages with fewer tokens and more features each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from variform.dialects.xformers.components import NormalizationType, ResidualNormStyle
from variform.dialects.xformers.components.patch_embedding import PoolType
from variform.dialects.xformers.errors import Wrong, config_error
from variform.errors import nearest_divisors


@dataclass
class BasicLayerConfig:
    """One stage.

    Args:
        embedding: features.
        attention_mechanism: the name of an attention, or a dict with the name and more of its keys.
        patch_size: side of the patches that become a token.
        stride: places from one patch to the next.
        padding: places of zeros around the image.
        seq_len: tokens of the stage, a square number.
        feedforward: the name of a feedforward, or a dict with the name and more of its keys.
        normalization: "layernorm" or "skip".
        repeat_layer: how many layers.
        patch_embedding: how patches become tokens: "CONV_2D", "AVG_POOL_2D", "MAX_POOL_2D" or "PATCH_MERGING" (Swin's).
    """

    embedding: int
    attention_mechanism: str | Mapping[str, Any]
    patch_size: int
    stride: int
    padding: int
    seq_len: int
    feedforward: str | Mapping[str, Any]
    normalization: NormalizationType | str = NormalizationType.LayerNorm
    repeat_layer: int = 1
    patch_embedding: PoolType | str = PoolType.Conv2D


def get_hierarchical_configuration(
    layer_base_configs: Sequence[BasicLayerConfig],
    residual_norm_style: ResidualNormStyle | str = ResidualNormStyle.Pre,
    use_rotary_embeddings: bool = True,
    mlp_multiplier: int = 4,
    in_channels: int = 3,
    dim_head: int | None = None,
) -> list[dict[str, Any]]:
    """The stacks of a hierarchical model (Yu et al. 2021, arXiv:2111.11418), one for each stage, for `xFormerConfig`.

    Each stage begins with a patch embedding; the first has learned positions. Dropouts are 0 unless the descriptions
    of attention and feedforward say otherwise.

    Args:
        layer_base_configs: the stages.
        residual_norm_style: "pre", "post" or "deepnorm".
        use_rotary_embeddings: rotate queries and keys by their positions.
        mlp_multiplier: inner features of the feedforwards as a multiple of the stage's.
        in_channels: features of the input, the image's channels.
        dim_head: features of a head; None for one head.

    Raises:
        ConfigError: `dim_head` does not divide a stage's features; also an `AssertionError`.
    """
    problems: list[Wrong] = []
    stacks: list[dict[str, Any]] = []
    for index, stage in enumerate(layer_base_configs):
        if dim_head is not None and stage.embedding % dim_head:
            hint, path = nearest_divisors(stage.embedding, dim_head), f"layer_base_configs.{index}.embedding"
            message = f"dim_head = {dim_head} must divide it"
            problems.append(Wrong(path, message, stage.embedding, hint, like=AssertionError))
        stack = _stack(stage, residual_norm_style, use_rotary_embeddings, mlp_multiplier, in_channels, dim_head)
        if index == 0:
            positions = {"name": "learnable", "seq_len": stage.seq_len, "add_class_token": False}
            stack["position_encoding_config"] = positions
        stacks.append(stack)
        in_channels = stage.embedding
    if problems:
        raise config_error(problems)
    return stacks


def _stack(
    stage: BasicLayerConfig, style: str, rotary: bool, multiplier: int, in_channels: int, dim_head: int | None
) -> dict[str, Any]:
    patches: dict[str, Any] = {
        "in_channels": in_channels,
        "kernel_size": stage.patch_size,
        "stride": stage.stride,
        "padding": stage.padding,
        "pool_type": str(stage.patch_embedding),
    }
    feedforward = {"dropout": 0.0, "activation": "gelu", "hidden_layer_multiplier": multiplier}
    return {
        "block_type": "encoder",
        "num_layers": stage.repeat_layer,
        "dim_model": stage.embedding,
        "residual_norm_style": str(style),
        "normalization": str(stage.normalization),
        "multi_head_config": {
            "num_heads": 1 if dim_head is None else stage.embedding // dim_head,
            "use_rotary_embeddings": rotary,
            "attention": {"dropout": 0.0, "seq_len": stage.seq_len, **_named(stage.attention_mechanism)},
        },
        "feedforward_config": {**feedforward, **_named(stage.feedforward)},
        "patch_embedding_config": patches,
    }


def _named(part: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"name": part} if isinstance(part, str) else dict(part)
