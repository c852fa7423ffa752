"""Parts that are wrong on purpose, each with the checks that must notice it; registered by nobody."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform import INHERIT, Can, Part, inherit
from variform.core.part import Cost, Facts
from variform.ops.attention import Call, attention
from variform.ops.masks import Causal
from variform.parts.kinds import Attention, FeedForward, Head, Mixer, Norm, Sides, State, Streams

BROKEN: dict[str, tuple[type[Part], set[str]]] = {}
"""By name: the part and exactly the checks that fail on it."""


def fails(*checks: str) -> Callable[[type[Part]], type[Part]]:
    """Note a broken part and the checks that must fail on it."""

    def decorate(part: type[Part]) -> type[Part]:
        BROKEN[part.__name__] = (part, set(checks))
        return part

    return decorate


class Sound(Mixer):
    """A mean over what a token may see: one head, no projections but one. The broken ones change one thing."""

    reads: ClassVar[frozenset[str]] = frozenset({"valid", "segments", "mask", "positions"})
    can: ClassVar[Can] = Can(decode=False)

    def __init__(self, dim: int = INHERIT, causal: bool = inherit(False)) -> None:
        super().__init__()
        self.dim = dim
        self.causal = causal
        self.out = nn.Linear(dim, dim)

    def weights(self, x: Tensor, streams: Streams) -> Tensor:
        batch, length, _ = x.shape
        seen = torch.ones(batch, length, length, dtype=torch.bool)
        if self.causal:
            seen = seen.tril()
        if streams.get("valid") is not None:
            seen = seen & streams["valid"].unsqueeze(1)
        if streams.get("segments") is not None:
            segments = streams["segments"]
            seen = seen & (segments.unsqueeze(1) == segments.unsqueeze(2))
        if streams.get("mask") is not None:
            steps = torch.arange(length)
            seen = seen & streams["mask"].dense(steps, steps)[:, 0]
        weights = seen.to(x.dtype)
        return weights / weights.sum(-1, keepdim=True).clamp(min=1)

    def mix(self, x: Tensor, streams: Streams) -> Tensor:
        valid = streams.get("valid")
        x = x if valid is None else x.masked_fill(~valid.unsqueeze(-1), 0.0)
        return self.weights(x, streams) @ x

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        y: Tensor = self.out(self.mix(x, streams))
        return y


fails()(Sound)


@fails("causal", "padding", "packed", "mask")
class LeaksTheFuture(Sound):
    """Looks one token ahead: into the future, into padding, into the next document, past the mask."""

    def mix(self, x: Tensor, streams: Streams) -> Tensor:
        return super().mix(x, streams) + 0.01 * F.pad(x[:, 1:], (0, 0, 0, 1))


@fails("causal")
class LeaksWithoutGradient(Sound):
    """Chooses by the largest token of the whole sequence; no gradient tells."""

    def mix(self, x: Tensor, streams: Streams) -> Tensor:
        y = super().mix(x, streams)
        if any(streams.get(name) is not None for name in ("valid", "segments", "mask")):
            return y
        return y * (1 + 0.1 * (x.detach().amax((1, 2), keepdim=True) > 8).to(x.dtype))


@fails("mask")
class IgnoresTheMask(Sound):
    """Takes a mask and does without it."""

    def weights(self, x: Tensor, streams: Streams) -> Tensor:
        return super().weights(x, {**streams, "mask": None})


@fails("padding")
class IgnoresPadding(Sound):
    """Padding counts as zeros in the mean."""

    def weights(self, x: Tensor, streams: Streams) -> Tensor:
        return super().weights(x, {**streams, "valid": None})


@fails("padding")
class MultipliesPadding(Sound):
    """Padding has the weight zero, but what stands there is multiplied with it: huge values come through."""

    def mix(self, x: Tensor, streams: Streams) -> Tensor:
        valid = streams.get("valid")
        weights = self.weights(x, streams)
        if valid is not None:
            weights = weights + 1e-20 * (~valid).unsqueeze(1).to(x.dtype)
        return weights @ x


@fails("packed")
class IgnoresDocuments(Sound):
    """Takes segments and does without them."""

    def weights(self, x: Tensor, streams: Streams) -> Tensor:
        return super().weights(x, {**streams, "segments": None})


@fails("padding", "packed", "mask")
class DeclaresNothing(Sound):
    """Honours padding, documents and masks, and says that it cannot: then it has to refuse them."""

    can: ClassVar[Can] = Can(decode=False, key_padding=False, packed=False, attention_mask=False)


@fails("cache")
class PretendsToDecode(Sound):
    """Says that it decodes and keeps no state: each chunk starts anew."""

    can: ClassVar[Can] = Can()


class Averages(Sound):
    """The running mean again, as a state that is right."""

    can: ClassVar[Can] = Can(packed=False, attention_mask=False)
    stateful: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset({"valid", "segments", "mask"})

    def forward(self, x: Tensor, streams: Streams) -> Any:
        from variform.errors import ShapeError

        for name in ("segments", "mask"):
            if streams.get(name) is not None:
                raise ShapeError(f"a running mean cannot honour {name}")
        state = streams.get("state")
        if state is None:
            return super().forward(x, streams)
        valid = streams.get("valid")
        valid = torch.ones(x.shape[:2], dtype=torch.bool) if valid is None else valid
        total = state["sum"].unsqueeze(1) + x.masked_fill(~valid.unsqueeze(-1), 0.0).cumsum(1)
        count = state["count"].unsqueeze(1) + valid.long().cumsum(1)
        y = self.out(total / count.clamp(min=1).unsqueeze(-1).to(x.dtype))
        return y, {"state": self.after(total, count)}

    def after(self, total: Tensor, count: Tensor) -> State:
        return {"sum": total[:, -1], "count": count[:, -1]}

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        like = self.out.weight
        return {"sum": like.new_zeros(batch, self.dim), "count": torch.zeros(batch, dtype=torch.long)}


fails()(Averages)


@fails("cache")
class ForgetsTheCount(Averages):
    """Its state is right for tokens and wrong after a chunk without any."""

    def after(self, total: Tensor, count: Tensor) -> State:
        return {"sum": total[:, -1], "count": count[:, -1].clamp(min=1)}


@fails("cache")
class CutsTheGradient(Averages):
    """Right in value, but no gradient passes through the state."""

    def after(self, total: Tensor, count: Tensor) -> State:
        return {"sum": total[:, -1].detach(), "count": count[:, -1]}


@fails("stateless")
class Counts(Sound):
    """A call changes a buffer, which changes the next call."""

    def __init__(self, dim: int = INHERIT, causal: bool = inherit(False)) -> None:
        super().__init__(dim, causal)
        self.register_buffer("calls", torch.zeros(()))

    def reset_parameters(self) -> None:
        self.calls: Tensor
        nn.init.zeros_(self.calls)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        self.calls.add_(1)
        return super().forward(x, streams)


@fails("stateless", "reproducible", "state_dict", "packed", "copies")
class ChangesItsInput(Sound):
    """Adds to its input in place, so that whatever runs twice on one input differs."""

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        y = super().forward(x, streams)
        with torch.no_grad():
            x.add_(1e-3)
        return y


@fails("stateless", "padding")
class ChangesTheStreams(Sound):
    """Clears the padding of everyone."""

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        y = super().forward(x, streams)
        if streams.get("valid") is not None:
            streams["valid"].fill_(True)
        return y


@fails("gradients")
class LeavesOneOut(Sound):
    """Has a parameter that nothing uses."""

    def __init__(self, dim: int = INHERIT, causal: bool = inherit(False)) -> None:
        super().__init__(dim, causal)
        self.spare = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.spare)


@fails("meta")
class InitialisedInTheConstructor(Sound):
    """A parameter that no `reset_parameters` knows."""

    def __init__(self, dim: int = INHERIT, causal: bool = inherit(False)) -> None:
        super().__init__(dim, causal)
        self.gain = nn.Parameter(torch.ones(dim))

    def mix(self, x: Tensor, streams: Streams) -> Tensor:
        return super().mix(x, streams) * self.gain


@fails("copies")
class SharedByCopies(Sound):
    """Its deepcopy runs on the parameters of the original."""

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedByCopies:
        other = copy.copy(self)
        memo[id(self)] = other
        return other


@fails("state_dict")
class RandomFeatures(Sound):
    """Draws a matrix that is neither a parameter nor a buffer of the state dict."""

    def __init__(self, dim: int = INHERIT, causal: bool = inherit(False)) -> None:
        super().__init__(dim, causal)
        self.register_buffer("features", torch.empty(dim, dim), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.features: Tensor
        nn.init.normal_(self.features)

    def mix(self, x: Tensor, streams: Streams) -> Tensor:
        return super().mix(x, streams) @ self.features / self.dim


@fails("reproducible", "config")
class OtherGenerator(Sound):
    """Draws its parameters from a generator of its own: no seed reaches it."""

    drawn: ClassVar[int] = 0

    def __init__(self, dim: int = INHERIT, causal: bool = inherit(False)) -> None:
        super().__init__(dim, causal)
        self.gain = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        OtherGenerator.drawn += 1
        with torch.no_grad():
            self.gain.copy_(torch.randn(self.dim, generator=torch.Generator().manual_seed(OtherGenerator.drawn)))

    def mix(self, x: Tensor, streams: Streams) -> Tensor:
        return super().mix(x, streams) * self.gain


@fails("dropout")
class DropsWithoutScaling(FeedForward):
    """Drops features and leaves the others as they are."""

    def __init__(self, dim: int = INHERIT, dropout: float = 0.0) -> None:
        super().__init__()
        self.rate = dropout
        self.out = nn.Linear(dim, dim)

    def drop(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > self.rate).to(x.dtype) if self.rate and self.training else x

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        y: Tensor = self.out(self.drop(x))
        return y


@fails("dropout")
class DropsInEval(DropsWithoutScaling):
    """Never stops dropping."""

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.rate, training=True)


@fails("compile", "cost")
class BreaksTheGraph(DropsWithoutScaling):
    """Asks the data what to do."""

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        if float(x.detach().sum()) > 1e9:
            return x
        return super().forward(x, streams)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.rate, self.training)


@fails("config")
class KeepsAFunction(DropsWithoutScaling):
    """Has a default that no file can hold."""

    def __init__(self, dim: int = INHERIT, act: Any = torch.tanh) -> None:
        super().__init__(dim)
        self.act = act

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        y: Tensor = self.act(self.out(x))
        return y


@fails("cost")
class LiesAboutCost(DropsWithoutScaling):
    """Says that it costs next to nothing."""

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.rate, self.training)

    def cost(self, *args: Any, **kwargs: Any) -> Cost:
        return Cost(1, 1, 1)


@fails("precision")
class LosesDigits(Norm):
    """Sums up in eight bits."""

    def __init__(self, dim: int = INHERIT) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        scale = x.square().mean(-1, keepdim=True).clamp(min=1e-6).rsqrt()
        if x.dtype == torch.bfloat16:
            scale = (scale * 4).round() / 4
        return x * scale * self.weight


class Plain(Attention):
    """Softmax attention with a choice of backends, and nothing wrong with it."""

    can: ClassVar[Can] = Can(decode=False)

    def __init__(self, causal: bool = inherit(False), backend: str = "auto") -> None:
        super().__init__()
        self.causal = causal
        self.backend = backend

    def call(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Call:
        return Call(
            q,
            k,
            v,
            structure=Causal() if self.causal else None,
            mask=sides.mask,
            q_positions=sides.q_positions,
            k_positions=sides.k_positions,
            q_segments=sides.q_segments,
            k_segments=sides.k_segments,
            k_valid=sides.k_valid,
            scores=sides.scores,
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        return attention(self.call(q, k, v, sides), self.backend)


fails()(Plain)


@fails("backends")
class OneBackendForgets(Plain):
    """Under one backend the modifiers of scores are forgotten."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        if self.backend == "sdpa":
            sides = replace(sides, scores=())
        return attention(self.call(q, k, v, sides), self.backend)


@fails("attention")
class EmptyRowsAverage(Plain):
    """A query that sees nothing gets the mean of all values."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        call = self.call(q, k, v, sides)
        out = attention(call, self.backend)
        mask = call.full_mask()
        if mask is None or (sides.k_valid is not None and sides.mask is None):
            return out
        empty = ~mask.any(-1, keepdim=True)
        return torch.where(empty, v.repeat_interleave(q.shape[1] // v.shape[1], 1).mean(2, keepdim=True), out)


@fails("cross", "attention")
class NeedsEqualLengths(Plain):
    """Says that it can read another sequence, and cannot."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        weights = torch.eye(q.shape[2], dtype=q.dtype) @ k.mean(1)
        return attention(self.call(q, k, v, sides), self.backend) + 0 * weights.unsqueeze(1)


@fails("shapes", "padding", "packed", "cache")
class SqueezesOne(Head):
    """Loses the length where it is one."""

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        return x.squeeze(1)


@fails("builds", "meta")
class HoldsNothing(FeedForward):
    """Holds memory that nobody has written to."""

    def __init__(self, dim: int = INHERIT) -> None:
        super().__init__()
        self.register_buffer("table", torch.full((dim,), torch.nan), persistent=False)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        return x.tanh()


@fails("shapes")
class AnyLength(Sound):
    """Says that it takes even numbers of tokens alone, and takes all."""

    @classmethod
    def near_length(cls, args: Facts, length: int) -> int:
        """The even number above."""
        return length + length % 2


@fails("losses")
class ForgetsEarlierLosses(FeedForward):
    """Publishes its own loss in place of all before."""

    reads: ClassVar[frozenset[str]] = frozenset({"valid", "losses"})

    def __init__(self, dim: int = INHERIT) -> None:
        super().__init__()
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, streams: Streams) -> Any:
        y, valid = self.out(x), streams.get("valid")
        if streams.get("losses") is None:
            return y
        return y, {"losses": (("size", (y if valid is None else y[valid]).square().mean()),)}
