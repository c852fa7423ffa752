"""A branch that reads a multi-head attention over the inputs of all earlier steps."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT
from variform.core.part import Facts, use
from variform.core.registry import register
from variform.parts.entry.history import HistoryEntry
from variform.parts.kinds import Norm, Rotation, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("layer_pooling")
class LayerPooling(HistoryEntry):
    """Attends with several heads over the inputs h_1 ... h_k of this step and all before it (arXiv:2601.21582).

    y = W_o concat_head sum_l softmax_l(q . N_k(W_k h_l) / sqrt(D)) W_v h_l, where q = W_q u of a learned vector u, or
    of one made of the newest input, u = U N(h_k). A rotation turns queries and keys by their depth. `begin_history` has
    to stand at the beginning of the stack.

    Shapes:
        x: [B, L, dim] -> `views` times the same; the history: k - 1 of the same, then k

    Args:
        views: 1, or 3 for an attention, with a query each.
        norm: N, on the input that queries are made of; None for learned queries.
        key_norm: N_k, on each head's keys.
        rotation: turns queries and keys by the number of the step.
        stream: the name of the history.
        dim: features.
        heads: number of heads.
        dim_head: features of a head; dim / heads by default.
    """

    def __init__(
        self,
        views: Literal[1, 3] = 1,
        norm: Norm | None = use("rms_norm"),
        key_norm: Norm | None = None,
        rotation: Rotation | None = None,
        stream: str = "history",
        dim: Size = INHERIT,
        heads: Size = INHERIT,
        dim_head: Size | None = None,
    ) -> None:
        super().__init__()
        self.views_given = views
        self.heads = heads
        self.key_norm = key_norm
        self.rotation = rotation
        self.stream = stream
        size = heads * (dim_head or dim // heads)
        self.norm = norm
        self.of_input = None if norm is None else Linear(dim, views * dim, False)
        self.q, self.k, self.v = (Linear(dim, size, False) for _ in range(3))
        self.out = Linear(size, dim, False)
        self.queries = nn.Parameter(torch.empty(views, dim)) if norm is None else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Learned queries begin small."""
        if self.queries is not None:
            nn.init.normal_(self.queries, 0.0, 1e-2)

    @classmethod
    def derive(cls, facts: Facts) -> Facts:
        """The rotation sees the size of a head."""
        return {"dim_head": facts["dim_head"] or max(1, facts["dim"] // facts["heads"])}

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """A norm on keys works on one head's features."""
        return {"dim": facts["dim_head"] or facts["dim"] // facts["heads"]} if slot == "key_norm" else {}

    def forward(self, x: Tensor, streams: Streams) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Attend."""
        history = (*streams[self.stream], x)
        inputs, views = torch.stack(history, -2).flatten(0, 1), self.views_given
        if self.of_input is None or self.norm is None:
            assert self.queries is not None
            asked = self.queries.expand(inputs.shape[0], -1, -1)
        else:
            asked = self.of_input(self.norm(x)).view(inputs.shape[0], views, -1)
        q, k, v = self._split(self.q(asked)), self._split(self.k(inputs)), self._split(self.v(inputs))
        k = k if self.key_norm is None else self.key_norm(k)
        if self.rotation is not None:
            depth = torch.arange(len(history), device=x.device)
            own = torch.arange(len(history) - views, len(history), device=x.device).clamp(min=0)
            q, k = self.rotation(q, k, own, depth)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        y = self.out((weights @ v).transpose(1, 2).flatten(2))
        return y.view(*x.shape[:2], views, -1).unbind(2), {self.stream: history}

    def _split(self, x: Tensor) -> Tensor:
        """[N, L, H * D] to [N, H, L, D]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
