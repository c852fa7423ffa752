"""Dropout of whole tokens of a context."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.kinds import Layer, Mixer, Output, Streams, call


@register("context_dropout")
class ContextDropout(Layer):
    """Runs a part that, in training, reads a random share of the context's tokens.

    Of n real tokens of a row (1 - rate) n are kept, one at least, in their order; each layer and each call draws anew
    from the whole context (Perceiver AR, Hawthorne et al. 2022, arXiv:2202.07765). In evaluation all of it is read.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]; context: [B, Lc, dim_context], context_mask: [B, Lc] bool or None

    Args:
        body: the mixer or layer that reads the context.
        rate: the share of tokens that are left out.

    Raises:
        ShapeError: in training, a context mask of pairs, whose columns cannot be left out row by row.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"context", "context_mask"})

    def __init__(self, body: Mixer | Layer, rate: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> None:
        super().__init__()
        self.body = body
        self.rate = rate

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Leave tokens out and run."""
        published: dict[str, Any] = {}
        context = streams.get("context")
        if self.training and self.rate and streams.get("context_positions") is not None:
            raise ShapeError("tokens of a context whose positions are told cannot be dropped in training")
        if self.training and self.rate and isinstance(context, Tensor) and streams.get("state") is None:
            streams = {**streams, **self._kept(context, streams.get("context_mask"))}
        y = call(self.body, x, streams, "body", published)
        return (y, published) if published else y

    def _kept(self, context: Tensor, mask: Any) -> dict[str, Tensor]:
        if mask is not None and not isinstance(mask, Tensor):
            raise ShapeError("context_mask must be a bool tensor where tokens of the context are dropped")
        batch, length = context.shape[:2]
        most = max(1, int((1 - self.rate) * length))
        draws = torch.rand(batch, length, device=context.device)
        if mask is not None:
            draws = draws.masked_fill(~mask, -1.0)  # real tokens come first
        chosen = draws.topk(most, 1).indices.sort(1).values
        rows = torch.arange(batch, device=context.device).unsqueeze(1)
        if mask is None:
            return {"context": context[rows, chosen]}
        real = mask.sum(1)
        wanted = ((1 - self.rate) * real).ceil().clamp(min=1, max=most)
        rank = draws.argsort(1, descending=True).argsort(1)
        kept = mask & (rank < wanted.unsqueeze(1))
        return {"context": context[rows, chosen], "context_mask": kept[rows, chosen]}
