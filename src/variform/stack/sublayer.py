"""One residual step, and a layer made of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Facts, use
from variform.core.registry import register
from variform.core.spec import described
from variform.errors import Problem
from variform.ops.reversible import Draws
from variform.parts.kinds import (
    Entry,
    FeedForward,
    Layer,
    Mixer,
    MultiResidual,
    Norm,
    Output,
    Residual,
    State,
    Streams,
    call,
    join,
)
from variform.parts.views import view_problems
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


def innermost(body: nn.Module) -> nn.Module:
    """What does the work in a step, without the parts around it."""
    while isinstance(inner := getattr(body, "body", None), nn.Module):
        body = inner
    return body


@register("sublayer")
class Sublayer(Layer):
    """One residual step: x <- out_norm(residual(x, drop(branch_norm(body(norm(x)))))).

    Every placement of norms is a filling of its slots:
    pre-norm `norm`; post-norm `out_norm`; sandwich `norm` and `branch_norm`; DeepNorm `out_norm` and
    `residual: deepnorm`. An empty slot costs nothing; without `residual` the branch is added.

    The stream `injected`, where there is one, is added to what the branch reads, before the norm (in-attention
    conditioning, arXiv:2105.04090; input injection, arXiv:1909.01377): the residual stream itself does not get it.
    Of the stream `token_gains`, where an embedding `deep` tells it, a step with a feedforward takes the first, and
    multiplies its branch by it.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]; injected: [B, L, dim] or [B, 1, dim]

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
        entry: what the branch reads, of x and of earlier steps; None reads x.
    """

    residual_writes: ClassVar[int] = 1
    reads: ClassVar[frozenset[str]] = frozenset({"injected", "token_gains"})

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
        entry: Entry | None = None,
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
        self.entry = entry

    @property
    def feeds(self) -> bool:
        """Whether the body is a feedforward."""
        return isinstance(innermost(self.body), FeedForward)

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Whether the body mixes the tokens of its own sequence."""
        return any(isinstance(m, Mixer) and "context" not in m.reads for m in self.body.modules())

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """Several residual streams end at the branch, which is one."""
        return {"residual_streams": None} if slot == "body" else {}

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """A branch has the features that it joins; a body that is handed views for keys and values must read them."""
        residual, entry, body = (described(facts[name]) for name in ("residual", "entry", "body"))
        found, given = [], body.part.features_out(body.args)
        if given not in (None, facts.get("dim", given)):
            message = f"the branch joins a stream of {facts['dim']} features"
            at = "body.dim_out" if "dim_out" in body.args else "body"
            found.append(Problem(at, message, given, "leave out how many features go out"))
        mixes = residual is not None and issubclass(residual.part, MultiResidual)
        views = residual.part.views(residual.args) if mixes else 1
        if entry is not None and views > 1:
            found.append(Problem("entry", f"the residual {residual.name!r} hands over views of its own already"))
        elif entry is not None:
            views = entry.part.views(entry.args)
        return found if views == 1 else found + view_problems(body, "body")

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Take the step."""
        watch = streams.get("watch")
        if watch is not None:
            watch.enters(self, x, streams)
        published: dict[str, Any] = {}
        onto, twin = x, streams.get("twin")
        if twin is not None:
            onto, x, streams = twin.turn(x, streams, published)
        condition = streams.get("condition")
        own: dict[str, Any] = self._modules  # attributes of a module are looked up by a slow Python function
        norm, residual = own.get("norm"), own.get("residual")
        multi = residual if isinstance(residual, MultiResidual) else None
        others: Sequence[Tensor] = ()
        if multi is not None:
            (x, *others), joined, gains = multi.open(x)
        if own.get("entry") is not None or streams.get("injected") is not None:
            x, *others = self._entered(x, others, streams, published)
        if others:
            streams = _apart(norm, others, condition, streams)
        branch = call(own["body"], x if norm is None else norm(x, condition), streams, "body", published)
        factors = streams.get("token_gains")
        if factors and self.feeds:
            branch, published["token_gains"] = branch * factors[0], factors[1:]
        if self.branch_norm is not None:
            branch = self.branch_norm(branch, condition)
        if self.training and (self.dropout or self.drop_path):
            branch = self._drop(branch)
        if residual is None:
            y = onto + branch
        elif multi is not None:
            y = multi(joined, branch, gains=gains)
        else:
            y = join(residual, onto, branch, streams, "residual", published)
        if self.out_norm is not None:
            y = self.out_norm(y, condition) if multi is None else normed_each(self.out_norm, y, condition)
        if self.training and self.layer_drop:
            # The step is computed either way: every parameter keeps a gradient and a compiled graph stays whole.
            y = torch.where(torch.rand((), device=x.device) < self.layer_drop, onto, y)
        return (y, published) if published else y

    def _entered(
        self, x: Tensor, others: Sequence[Tensor], streams: Streams, published: dict[str, Any]
    ) -> Sequence[Tensor]:
        """What the branch reads: one view, or three."""
        views: Sequence[Tensor] = (x, *others)
        if self.entry is not None:
            views, new = self.entry(x, streams)
            published.update(new)
        injected = streams.get("injected")
        return views if injected is None else [view + injected for view in views]

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """That of the body, and of a residual that keeps one."""
        state = super().init_state(batch, max_len, streams)
        if self.residual is not None and self.residual.stateful:
            state["residual"] = self.residual.init_state(batch, max_len, streams)
        return state

    def _drop(self, branch: Tensor) -> Tensor:
        if self.dropout:
            branch = F.dropout(branch, self.dropout)
        if self.drop_path:
            keep = 1.0 - self.drop_path
            shape = (branch.shape[0],) + (1,) * (branch.dim() - 1)
            branch = branch * branch.new_empty(shape).bernoulli_(keep).div_(keep)
        return branch


def _apart(norm: Norm | None, others: Sequence[Tensor], condition: Tensor | None, streams: Streams) -> Streams:
    """The streams that a body sees, with the normed input of its keys and that of its values among them."""
    keys, values = others if norm is None else (norm(other, condition) for other in others)
    return {**streams, "key_input": keys, "value_input": values}


def normed_each(norm: Norm, x: Tensor, condition: Tensor | None) -> Tensor:
    """Norm every one of several residual streams, [B, L, S, dim]; the condition is that of the token."""
    if condition is None:
        return norm(x)
    batch, length, count, dim = x.shape
    rows = norm(x.transpose(1, 2).reshape(-1, length, dim), condition.repeat_interleave(count, 0))
    return rows.view(batch, count, length, dim).transpose(1, 2)


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
