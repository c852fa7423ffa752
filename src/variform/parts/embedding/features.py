"""Embedding of inputs that are features already: positions and class tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.dims import Shape, shape_text
from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import ConfigError, Problem, ShapeError
from variform.parts.embedding.tokens import fitting
from variform.parts.kinds import Embedding, Norm, Output, Position, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("features")
class FeatureEmbedding(Embedding):
    """Continuous inputs, with optional class tokens and positions: x = drop(norm([c; x + added] + P[positions])).

    Inputs of another width (`dim_in`) are mapped first: x = W inputs (+ b). Class tokens stand in front and take the
    first positions; with them the part republishes `positions` and `valid`, and neither packed documents nor cached
    decoding are defined. The stream `added`, [B, L, dim], may be left out.

    Shapes:
        inputs: [B, L, dim] floats, or [B, L, dim_in] -> [B, class_tokens + L, dim]

    Args:
        dim: features.
        position: a position code that is added.
        norm: a norm on the sum.
        class_tokens: learned tokens in front, zero at first.
        dropout: probability of zeroing a feature, in training.
        dim_in: features of the inputs, which a linear map brings to `dim`; None takes them as they are.
        bias: the map has an offset.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"positions", "valid", "segments", "added"})

    def __init__(
        self,
        dim: Size = INHERIT,
        position: Position | None = None,
        norm: Norm | None = None,
        class_tokens: Annotated[int, Field(ge=0)] = 0,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        dim_in: Size | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.width = dim_in or dim
        self.project = None if dim_in is None else Linear(dim_in, dim, bias)
        self.position = position
        self.norm = norm
        self.class_token = nn.Parameter(torch.empty(class_tokens, dim)) if class_tokens else None
        self.dropout = dropout
        self.reset_parameters()

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Only a map has an offset."""
        if facts["bias"] and facts["dim_in"] is None:
            hint = "give dim_in, the width of the inputs"
            return [Problem("bias", "inputs that are taken as they are have no offset", True, hint)]
        return []

    @classmethod
    def takes(cls, args: Facts) -> str:
        """Features."""
        return "features"

    @classmethod
    def in_sizes(cls, args: Facts) -> tuple[int | str, ...]:
        """Those of features."""
        return ("B", "L", args["dim_in"] or args["dim"])

    @classmethod
    def out_shape(cls, args: Facts, inputs: Shape, streams: Mapping[str, Shape]) -> Shape:
        """The class tokens in front."""
        width = args["dim_in"] or args["dim"]
        if len(inputs) != 3 or inputs[2] != width:
            raise ShapeError(f"features are [B, L, {width}], not {shape_text(inputs)}")
        return (inputs[0], args["class_tokens"] + inputs[1], args["dim"])

    @classmethod
    def out_streams(cls, args: Facts, x: Shape, streams: Mapping[str, Shape]) -> dict[str, Shape]:
        """Positions and padding with the class tokens in front."""
        more, given = args["class_tokens"], {name: streams[name] for name in ("positions", "valid") if name in streams}
        return {name: (*shape[:-1], more + shape[-1]) for name, shape in given.items()} if more else {}

    def reset_parameters(self) -> None:
        """Class tokens at zero."""
        if self.class_token is not None:
            nn.init.zeros_(self.class_token)

    def example_inputs(self, batch: int, length: int | None = None) -> Tensor:
        """Zeros."""
        if length is None:
            raise ConfigError("the model has no max_seq_len: give length, the number of tokens")
        return torch.zeros(batch, length, self.width)

    def forward(self, inputs: Tensor, streams: Streams) -> Output:
        """Put the class tokens in front and add the positions."""
        if inputs.dim() != 3 or inputs.shape[-1] != self.width or not inputs.is_floating_point():
            raise ShapeError(
                f"features are floats of shape [batch, length, {self.width}], not {inputs.dtype} {list(inputs.shape)}"
            )
        x, published = inputs if self.project is None else self.project(inputs), {}
        if streams.get("added") is not None:
            x = x + fitting(streams["added"], x)
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(x.shape[0], -1, -1).to(x.dtype), x), 1)
            published = behind_class_tokens(streams, self.class_token.shape[0])
        if self.position is not None:
            positions = published["positions"] if published else streams.get("positions")
            x = x + self.position(positions, x.shape[1], x)
        if self.norm is not None:
            x = self.norm(x)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return (x, published) if published else x


def behind_class_tokens(streams: Streams, count: int) -> dict[str, Any]:
    """The streams `positions` and `valid` when `count` tokens that are always attended stand in front.

    Raises:
        ShapeError: packed documents or a decode state, for which this is not defined.
    """
    for name in ("segments", "cache"):
        if streams.get(name) is not None:
            raise ShapeError(f"class tokens belong to whole sequences: {name!r} cannot be used with them")
    positions, valid = streams.get("positions"), streams.get("valid")
    if positions is not None:
        front = torch.arange(count, device=positions.device).expand(*positions.shape[:-1], count)
        positions = torch.cat((front, positions + count), -1)
    return {"positions": positions, "valid": None if valid is None else F.pad(valid, (count, 0), value=True)}
