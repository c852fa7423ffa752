"""Images as the tokens that a patch layer makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from variform.core.dims import Shape, shape_text
from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.core.spec import Spec, described
from variform.errors import Problem, ShapeError
from variform.parts.kinds import Embedding, Layer, Output, Streams, call

Size = Annotated[int, Field(gt=0)]


@register("image")
class ImageEmbedding(Embedding):
    """Pixels as the places of a grid, which a layer turns into patches: convolution, pooling, merging.

    Shapes:
        images: [B, channels, H, W], or their pixels [B, H W, channels] -> [B, L, dim]

    Args:
        patches: from pixels to tokens (`conv_patches`, `pool_patches`, `patch_merging`).
        height: pixels from top to bottom.
        width: pixels across; `height` by default.
        channels: colour channels.
        embedding: what is done with the tokens (`features`: positions, norm, and class tokens, which need positions of
            their own: give the size of their table); None for nothing.
        dim: features.
    """

    def __init__(
        self,
        patches: Layer,
        height: Size,
        width: Size | None = None,
        channels: Size = 3,
        embedding: Embedding | None = None,
        dim: Size = INHERIT,
    ) -> None:
        super().__init__()
        self.patches = patches
        self.embedding = embedding
        self.expected = (channels, height, width or height)

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The patch layer sees pixels."""
        return _pixels(facts) if slot == "patches" else {}

    @classmethod
    def check(cls, facts: Facts) -> Iterable[Problem]:
        """The patches have the model's features."""
        made = _made(facts).get("dim", facts["channels"])
        if made != facts["dim"]:
            yield Problem("patches", f"gives {made} features, and dim = {facts['dim']}", hint="set its `out`")

    @classmethod
    def gives(cls, facts: Facts) -> Facts:
        """Later parts see the number of tokens, and of their rows where all tokens are places."""
        longest, inner = _made(facts).get("max_seq_len"), described(facts.get("embedding"))
        if longest is None:
            return {}
        if not isinstance(inner, Spec):
            return {name: value for name, value in _made(facts).items() if name != "dim"}
        return {"max_seq_len": longest + (inner.get("class_tokens") or 0)}

    @classmethod
    def takes(cls, args: Facts) -> str:
        """Pixels."""
        return "features"

    @classmethod
    def in_sizes(cls, args: Facts) -> tuple[int | str, ...]:
        """Those of images."""
        return ("B", args["channels"], args["height"], args["width"] or args["height"])

    @classmethod
    def out_shape(cls, args: Facts, inputs: Shape, streams: Mapping[str, Shape]) -> Shape:
        """As many tokens as the patch layer makes."""
        expected = cls.in_sizes(args)[1:]
        if inputs[1:] != expected:
            raise ShapeError(f"images are [B, {', '.join(map(str, expected))}], not {shape_text(inputs)}")
        return (inputs[0], cls.gives(args)["max_seq_len"], args["dim"])

    def example_inputs(self, batch: int, length: int | None = None) -> Tensor:
        """Black images; their size is fixed."""
        return torch.zeros(batch, *self.expected)

    def forward(self, inputs: Tensor, streams: Streams) -> Output:
        """Cut into patches, then embed."""
        channels, height, width = self.expected
        if tuple(inputs.shape[1:]) == self.expected:
            inputs = inputs.flatten(2).transpose(1, 2)
        elif tuple(inputs.shape[1:]) != (height * width, channels):
            wanted = ", ".join(map(str, self.expected))
            raise ShapeError(f"images must have shape [batch, {wanted}], not {list(inputs.shape)}")
        published: dict[str, Any] = {}
        x = call(self.patches, inputs, streams, "patches", published)
        if self.embedding is None:
            return (x, published) if published else x
        out = self.embedding(x, {**streams, **published})
        return (out[0], {**published, **out[1]}) if isinstance(out, tuple) else (out, published)


def _pixels(facts: Facts) -> dict[str, Any]:
    height, width = facts["height"], facts["width"] or facts["height"]
    return {"dim": facts["channels"], "height": height, "max_seq_len": height * width}


def _made(facts: Facts) -> Facts:
    layer = described(facts["patches"])
    return layer.part.gives({**_pixels(facts), **dict(layer.args)}) if isinstance(layer, Spec) else {}
