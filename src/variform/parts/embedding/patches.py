"""Patch embedding of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.dims import Shape, shape_text
from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem, ShapeError, nearest_multiples
from variform.parts.kinds import Embedding, Norm, Position, Streams

Size = Annotated[int, Field(gt=0)]


@register("patches")
class PatchEmbedding(Embedding):
    """Non-overlapping square patches, each mapped to one vector (Dosovitskiy et al. 2020, arXiv:2010.11929).

    A learned class token may stand in front (position 0). It gives `max_seq_len`, the number of resulting tokens,
    to the parts after it and to its own position code.

    Shapes:
        images: [B, channels, image_size, image_size] -> [B, class_tokens + (image_size / patch_size)^2, dim]

    Args:
        image_size: pixels along one side.
        patch_size: pixels along one side of a patch; divides `image_size`.
        channels: colour channels.
        dim: features.
        class_tokens: learned tokens in front of the patches.
        position: a position code that is added.
        norm: a norm on the sum.
        dropout: probability of zeroing a feature, in training.
        bias: learn an offset in the patch map.
        patch_norm: a norm on the pixels of each patch, before the map.
        token_norm: a norm after the map, before tokens and positions are added.
    """

    def __init__(
        self,
        image_size: Size,
        patch_size: Size,
        channels: Size = 3,
        dim: Size = INHERIT,
        class_tokens: Annotated[int, Field(ge=0)] = 0,
        position: Position | None = None,
        norm: Norm | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        bias: bool = True,
        patch_norm: Norm | None = None,
        token_norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.patch_norm = patch_norm
        self.token_norm = token_norm
        self.expected = (channels, image_size, image_size)
        self.project = nn.Conv2d(channels, dim, patch_size, patch_size, bias=bias)
        self.class_token = nn.Parameter(torch.empty(class_tokens, dim)) if class_tokens else None
        self.position = position
        self.norm = norm
        self.dropout = dropout
        self.reset_parameters()

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Patches must tile the image."""
        image, patch = facts["image_size"], facts["patch_size"]
        if image % patch:
            hint = nearest_multiples(image, patch)
            return [Problem("image_size", f"must be a multiple of patch_size = {patch}", image, hint)]
        return []

    @classmethod
    def derive(cls, facts: Facts) -> Facts:
        """How many tokens an image becomes."""
        return {"max_seq_len": facts["class_tokens"] + (facts["image_size"] // facts["patch_size"]) ** 2}

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """A norm on pixels sees as many features as a patch has pixels in all channels."""
        return {"dim": facts["channels"] * facts["patch_size"] ** 2} if slot == "patch_norm" else {}

    @classmethod
    def gives(cls, facts: Facts) -> Facts:
        """Later parts see the number of tokens."""
        return cls.derive(facts)

    @classmethod
    def takes(cls, args: Facts) -> str:
        """Pixels."""
        return "features"

    @classmethod
    def in_sizes(cls, args: Facts) -> tuple[int | str, ...]:
        """Those of images."""
        return ("B", args["channels"], args["image_size"], args["image_size"])

    @classmethod
    def out_shape(cls, args: Facts, inputs: Shape, streams: Mapping[str, Shape]) -> Shape:
        """As many tokens as patches and class tokens."""
        size, channels = args["image_size"], args["channels"]
        if len(inputs) != 4 or inputs[1:] != (channels, size, size):
            raise ShapeError(f"images are [B, {channels}, {size}, {size}], not {shape_text(inputs)}")
        return (inputs[0], cls.derive(args)["max_seq_len"], args["dim"])

    def reset_parameters(self) -> None:
        """Small normal class tokens."""
        if self.class_token is not None:
            nn.init.normal_(self.class_token, 0.0, 0.02)

    def example_inputs(self, batch: int, length: int | None = None) -> Tensor:
        """Black images; their size is fixed."""
        return torch.zeros(batch, *self.expected)

    def forward(self, inputs: Tensor, streams: Streams) -> Tensor:
        """Cut into patches and embed."""
        if inputs.dim() != 4 or tuple(inputs.shape[1:]) != self.expected:
            raise ShapeError(
                f"images must have shape [batch, {', '.join(map(str, self.expected))}], not {list(inputs.shape)}"
            )
        if self.position is not None and streams.get("positions") is not None:
            raise ShapeError("the patches of an image have fixed positions: leave positions out")
        x = self._tokens(inputs)
        if self.token_norm is not None:
            x = self.token_norm(x)
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(x.shape[0], -1, -1).to(x.dtype), x), 1)
        if self.position is not None:
            x = x + self.position(None, x.shape[1], x)
        if self.norm is not None:
            x = self.norm(x)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return x

    def _tokens(self, images: Tensor) -> Tensor:
        if self.patch_norm is None:
            mapped: Tensor = self.project(images)
            return mapped.flatten(2).transpose(1, 2)
        size = self.project.kernel_size[0]
        pixels = F.unfold(images, size, stride=size).transpose(1, 2)
        return F.linear(self.patch_norm(pixels), self.project.weight.flatten(1), self.project.bias)
