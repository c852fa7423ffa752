"""One residual step, and a layer made of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Facts, use
from variform.core.registry import register
from variform.ops.reversible import Draws
from variform.parts.kinds import FeedForward, Layer, Mixer, Norm, Output, Residual, Streams, call
from variform.stack.execute import ModuleList, given_by, list_state, run_in_order

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class Twin:
    """The second stream of the reversible executor, in the streams as `twin`: a sublayer adds its branch of `x` to it,
    and the two change places.

    Args:
        other: the second stream; None asks a sublayer for its branch alone.
        dtype: that the branches compute in.
        draws: told before each sublayer.
    """

    other: Tensor | None
    dtype: torch.dtype
    draws: Draws | None = None

    def turn(self, x: Tensor, streams: Streams, published: dict[str, Any]) -> tuple[Tensor, Tensor, Streams]:
        """A sublayer begins: what its branch joins, what the branch is of, and the streams that its parts see."""
        if self.draws is not None:
            self.draws.note()
        inner = {name: stream for name, stream in streams.items() if name != "twin"}
        if self.other is None:
            return x.new_zeros((), dtype=self.dtype), x.to(self.dtype), inner
        published["twin"] = Twin(x, self.dtype, self.draws)
        return self.other, x.to(self.dtype), inner


@register("sublayer")
class Sublayer(Layer):
    """One residual step: x <- out_norm(residual(x, drop(branch_norm(body(norm(x)))))).

    Every placement of norms is a filling of its slots:
    pre-norm `norm`; post-norm `out_norm`; sandwich `norm` and `branch_norm`; DeepNorm `out_norm` and
    `residual: deepnorm`. An empty slot costs nothing; without `residual` the branch is added.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        body: the mixer, feedforward or layer that does the work.
        norm: before the body (pre-norm); None for none.
        branch_norm: after the body, before it joins the stream.
        out_norm: after joining (post-norm).
        residual: how the branch joins; None adds it.
        dropout: probability of zeroing a feature of the branch, in training.
        drop_path: probability of dropping the whole branch of a row, in training (stochastic depth, Huang et al.
            2016, arXiv:1603.09382); the kept rows are scaled by 1 / (1 - drop_path).
        layer_drop: probability of leaving the whole step out for all rows, in training (LayerDrop, Fan et al. 2019,
            arXiv:1909.11556); nothing is scaled.
    """

    residual_writes: ClassVar[int] = 1

    def __init__(
        self,
        body: Mixer | FeedForward | Layer,
        norm: Norm | None = use("layer_norm"),
        branch_norm: Norm | None = None,
        out_norm: Norm | None = None,
        residual: Residual | None = None,
        dropout: Rate = 0.0,
        drop_path: Rate = 0.0,
        layer_drop: Rate = 0.0,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.body = body
        self.branch_norm = branch_norm
        self.residual = residual
        self.out_norm = out_norm
        self.dropout = dropout
        self.drop_path = drop_path
        self.layer_drop = layer_drop

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Take the step."""
        published: dict[str, Any] = {}
        onto, twin = x, streams.get("twin")
        if twin is not None:
            onto, x, streams = twin.turn(x, streams, published)
        condition = streams.get("condition")
        own: dict[str, Any] = self._modules  # attributes of a module are looked up by a slow Python function
        norm = own.get("norm")
        branch = call(own["body"], x if norm is None else norm(x, condition), streams, "body", published)
        if self.branch_norm is not None:
            branch = self.branch_norm(branch, condition)
        if self.training and (self.dropout or self.drop_path):
            branch = self._drop(branch)
        y = onto + branch if self.residual is None else self.residual(onto, branch)
        if self.out_norm is not None:
            y = self.out_norm(y, condition)
        if self.training and self.layer_drop:
            # The step is computed either way: every parameter keeps a gradient and a compiled graph stays whole.
            y = torch.where(torch.rand((), device=x.device) < self.layer_drop, onto, y)
        return (y, published) if published else y

    def _drop(self, branch: Tensor) -> Tensor:
        if self.dropout:
            branch = F.dropout(branch, self.dropout)
        if self.drop_path:
            keep = 1.0 - self.drop_path
            shape = (branch.shape[0],) + (1,) * (branch.dim() - 1)
            branch = branch * branch.new_empty(shape).bernoulli_(keep).div_(keep)
        return branch


@register("layer")
class TransformerLayer(Layer):
    """A layer: sublayers in order; what one publishes, the later ones may read.

    `dim` and `heads`, when given, hold for this layer's sublayers instead of the model's.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        sublayers: residual steps, or layers again.
        dim: features, for the children.
        heads: number of heads, for the children.
    """

    def __init__(self, sublayers: Sequence[Layer], dim: Size | None = INHERIT, heads: Size | None = INHERIT) -> None:
        super().__init__()
        self.sublayers = ModuleList(sublayers)

    @classmethod
    def gives(cls, facts: Facts) -> Facts:
        """What the sublayers give."""
        return given_by(facts["sublayers"], facts)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Run the sublayers."""
        return run_in_order(self.sublayers, x, streams, "sublayers")

    def init_state(self, batch: int, max_len: int, streams: Streams) -> dict[str, Any]:
        """One branch a sublayer, by place."""
        return list_state(self.sublayers, "sublayers", batch, max_len, streams)
