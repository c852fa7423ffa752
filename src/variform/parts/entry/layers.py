"""Branches that read the inputs of all earlier steps: weighted by the token, or attended."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import use
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.activation import ACTIVATIONS, Activation
from variform.parts.entry.history import HistoryEntry
from variform.parts.kinds import Norm, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]
Views = Literal[1, 3]


@register("layer_mixture")
class LayerMixture(HistoryEntry):
    """Reads a mixture of the inputs h_1 ... h_k of this step and all before it.

    y = sum_l w_l(x) h_l with weights w = softmax(W N(x) + b) of the newest, h_k = x.
    Dynamic LIMe (Gerasimov et al. 2025, arXiv:2502.09245). With three views an attention's queries, keys and values
    each have weights of their own. `begin_history` has to stand at the beginning of the stack, and each of its steps
    before this one has such an entry.

    Shapes:
        x: [B, L, dim] -> `views` times the same; the history: k - 1 of the same, then k

    Args:
        count: k, how many inputs there are, that of this step included.
        views: 1, or 3 for an attention.
        weights: "softmax", or "relu" for weights that do not add up to one.
        norm: N, on what the weights are made of.
        stream: the name of the history.
        dim: features.

    Raises:
        ShapeError: the history has another length.
    """

    def __init__(
        self,
        count: Size,
        views: Views = 1,
        weights: Literal["softmax", "relu"] = "softmax",
        norm: Norm | None = use("rms_norm"),
        stream: str = "history",
        dim: Size = INHERIT,
    ) -> None:
        super().__init__()
        self.count = count
        self.views_given = views
        self.softmax = weights == "softmax"
        self.norm = norm
        self.stream = stream
        self.mix = Linear(dim, views * count)

    def forward(self, x: Tensor, streams: Streams) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Mix."""
        history = (*streams[self.stream], x)
        if len(history) != self.count:
            raise ShapeError(f"this step is made for {self.count} inputs of steps, and the history has {len(history)}")
        scores = self.mix(x if self.norm is None else self.norm(x))
        scores = scores.view(*x.shape[:-1], self.views_given, self.count)
        weights = scores.softmax(-1) if self.softmax else scores.relu()
        return (weights @ torch.stack(history, -2)).unbind(-2), {self.stream: history}


@register("layer_attention")
class LayerAttention(HistoryEntry):
    """Attends over the inputs h_1 ... h_k of this step and all before it, with a query made of the newest, h_k = x.

    q = N_q(x + U act(D N(x))), keys N_k(h_l), weights softmax_l(q . N_k(h_l) / sqrt(dim)), and the h_l themselves are
    the values. D and U have a low rank, and U begins at zero. Attention over depth (arXiv:2601.21582,
    arXiv:2603.15031). `begin_history` has to stand at the beginning of the stack.

    Shapes:
        x: [B, L, dim] -> `views` times the same; the history: k - 1 of the same, then k

    Args:
        views: 1, or 3 for an attention, with a query each.
        rank: of the change of the query.
        activation: act, between D and U.
        norm: N, on what the change of the query is made of.
        query_norm: N_q, on the query.
        key_norm: N_k, on the keys.
        stream: the name of the history.
        dim: features.
    """

    def __init__(
        self,
        views: Views = 1,
        rank: Size = 64,
        activation: Activation = "none",
        norm: Norm = use("rms_norm"),
        query_norm: Norm = use("rms_norm"),
        key_norm: Norm = use("rms_norm"),
        stream: str = "history",
        dim: Size = INHERIT,
    ) -> None:
        super().__init__()
        self.views_given = views
        self.act = ACTIVATIONS[activation]
        self.norm = norm
        self.query_norm = query_norm
        self.key_norm = key_norm
        self.stream = stream
        self.scale = 1 / math.sqrt(dim)
        self.down = Linear(dim, rank, False)
        self.up = nn.Parameter(torch.empty(dim * views, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The query begins as the newest input."""
        nn.init.zeros_(self.up)

    def forward(self, x: Tensor, streams: Streams) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Attend."""
        history = (*streams[self.stream], x)
        inputs = torch.stack(history, -2)
        change = F.linear(self.act(self.down(self.norm(x))), self.up)
        query = self.query_norm(x.unsqueeze(-2) + change.view(*x.shape[:-1], self.views_given, -1))
        weights = (query @ self.key_norm(inputs).transpose(-1, -2) * self.scale).softmax(-1)
        return (weights @ inputs).unbind(-2), {self.stream: history}
