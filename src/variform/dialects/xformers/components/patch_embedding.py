"""Patch embeddings: from images, or the tokens of a square, to fewer tokens with other features."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, get_type_hints

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.xformers.building import as_mapping, checked
from variform.dialects.xformers.errors import CallError, Wrong, config_error
from variform.errors import did_you_mean
from variform.parts.embedding.grid import ConvPatches, GridLayer, PatchMerging, PoolPatches

Size = Annotated[int, Field(gt=0)]


class PoolType(StrEnum):
    """How patches become tokens: a convolution, means, largest values, or Swin's patch merging."""

    Conv2D = "CONV_2D"
    AvgPool2D = "AVG_POOL_2D"
    MaxPool2D = "MAX_POOL_2D"
    PatchMerging = "PATCH_MERGING"


@dataclass
class PatchEmbeddingConfig:
    """The configuration of a patch embedding.

    Args:
        in_channels: features in.
        out_channels: features out.
        kernel_size: side of a patch.
        stride: places from one patch to the next.
        padding: places of zeros around the image.
        pool_type: how a patch becomes a token.
    """

    in_channels: Size
    out_channels: Size
    kernel_size: Size
    stride: Size
    padding: Annotated[int, Field(ge=0)] = 0
    pool_type: PoolType = PoolType.Conv2D


class ConditionalReshape(nn.Module):
    """Tokens of a square [B, H H, C] as an image [B, C, H, H]; images stay as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """Reshape.

        Raises:
            CallError: the tokens make no square.
        """
        if x.dim() != 3:
            return x
        side = math.isqrt(x.shape[1])
        if side * side != x.shape[1]:
            raise CallError(f"a patch embedding lays tokens out as a square, and there are {x.shape[1]}")
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], side, side)


class PatchToSequence(nn.Module):
    """An image [B, C, H, W] as tokens [B, H W, C], row by row."""

    def forward(self, x: Tensor) -> Tensor:
        """Reshape."""
        return x.flatten(2).transpose(1, 2).contiguous()


class Reduce(nn.Module):
    """One of the library's layers on grids, applied to images [B, C, H, W].

    Args:
        spec: the layer.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.native: GridLayer = build(spec)

    def forward(self, x: Tensor) -> Tensor:
        """Reduce."""
        return self.native.reduce(x)


class PatchEmbedding(nn.Sequential):
    """Three steps: lay out as an image, reduce, line up as tokens; made by `build_patch_embedding`.

    Shapes:
        x: [B, H H, in_channels], or [B, in_channels, H, W] -> [B, H' W', out_channels],
           H' = (H + 2 padding - kernel_size) // stride + 1, W' likewise

    Args:
        config: the configuration.

    Raises:
        ConfigError: settings that contradict one another.
    """

    def __init__(self, config: PatchEmbeddingConfig) -> None:
        spec = native_spec(config)
        reduce: nn.Module = Reduce(spec)
        if config.pool_type == PoolType.Conv2D:
            sizes = (config.in_channels, config.out_channels, config.kernel_size, config.stride, config.padding)
            reduce = nn.Conv2d(*sizes)
        steps = (ConditionalReshape(), reduce, PatchToSequence())
        super().__init__(OrderedDict((str(place), step) for place, step in enumerate(steps)))
        self.config = config
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        """Embed."""
        channels = x.shape[2] if x.dim() == 3 else x.shape[1]
        if x.dim() not in (3, 4) or channels != self.config.in_channels or not torch.is_floating_point(x):
            c = self.config.in_channels
            raise CallError(
                f"a patch embedding takes tokens [batch, length, {c}] or images [batch, {c}, height, width], "
                f"not {x.dtype} {list(x.shape)}"
            )
        for step in self:
            x = step(x)
        return x


def build_patch_embedding(config: Mapping[str, Any] | PatchEmbeddingConfig) -> PatchEmbedding:
    """Build a patch embedding.

    Args:
        config: a mapping with the fields of `PatchEmbeddingConfig`, or an instance. Not changed.

    Raises:
        ConfigError: all problems at once; also a `TypeError` for a missing or unknown key.
    """
    read, problems = read_patch_embedding(config)
    if read is None or problems:
        raise config_error(problems)
    return PatchEmbedding(read)


def read_patch_embedding(config: Any) -> tuple[PatchEmbeddingConfig | None, list[Wrong]]:
    """A checked copy of a configuration, or all that is wrong with it."""
    given = as_mapping(config)
    if given is None:
        return None, [Wrong("", "a patch embedding is described by a dict with keys", config, like=TypeError)]
    hints = get_type_hints(PatchEmbeddingConfig, include_extras=True)
    problems = [
        Wrong(
            str(key), f"a patch embedding has no key {key!r}", hint=did_you_mean(str(key), list(hints)), like=TypeError
        )
        for key in given
        if key not in hints
    ]
    values: dict[str, Any] = {}
    for f in fields(PatchEmbeddingConfig):
        value = given.get(f.name, f.default)
        if f.name not in given and f.name in ("in_channels", "out_channels", "kernel_size", "stride"):
            problems.append(Wrong(f.name, "this key is needed", like=TypeError))
            continue
        values[f.name], wrong = checked(f.name, hints[f.name], value)
        problems += [] if wrong is None else [wrong]
    if problems:
        return None, problems
    read = PatchEmbeddingConfig(**values)
    return read, _contradictions(read)


def native_spec(config: PatchEmbeddingConfig) -> Spec:
    """The layer of the library that computes the same from tokens of a square."""
    dims = {"dim": config.in_channels, "out": config.out_channels}
    if config.pool_type == PoolType.PatchMerging:
        return PatchMerging.spec(factor=config.kernel_size, **dims)
    window = {"kernel": config.kernel_size, "stride": config.stride, "padding": config.padding}
    if config.pool_type == PoolType.Conv2D:
        return ConvPatches.spec(**window, **dims)
    return PoolPatches.spec(how="max" if config.pool_type == PoolType.MaxPool2D else "mean", **window, **dims)


def _contradictions(config: PatchEmbeddingConfig) -> list[Wrong]:
    if config.pool_type == PoolType.PatchMerging:
        problems = []
        if config.stride != config.kernel_size:
            message = f"patch merging joins separate patches: kernel_size = {config.kernel_size} is the stride too"
            problems.append(Wrong("stride", message, config.stride))
        if config.padding:
            message = "patch merging fills up the image by itself"
            problems.append(Wrong("padding", message, config.padding, hint="leave it out"))
        return problems
    if config.pool_type != PoolType.Conv2D and 2 * config.padding > config.kernel_size:
        return [Wrong("padding", f"at most half of kernel_size = {config.kernel_size}", config.padding)]
    return []
