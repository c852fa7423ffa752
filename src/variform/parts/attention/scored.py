"""Softmax attention with changed scores: what is kept of tokens beside their keys, and the modifiers of a call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from variform.core.part import Can, Facts
from variform.core.spec import Spec, described
from variform.errors import Problem
from variform.ops.learned_scores import AddedScores, ObservedScores, Suppression
from variform.ops.scores import ScoreMod
from variform.parts.kinds import Attention, Scoring, Sides, State, Weighting


class Scorings(nn.ModuleList):
    """The scorings of an attention, and what they keep of each token while decoding."""

    @property
    def parts(self) -> list[Scoring]:
        """The scorings, in order."""
        return list(self)  # type: ignore[arg-type]

    @property
    def positioned(self) -> bool:
        """Whether one of them goes by positions."""
        return any(part.positioned for part in self.parts)

    @property
    def accumulates(self) -> bool:
        """Whether one of them keeps a sum over queries."""
        return any(part.accumulates for part in self.parts)

    @property
    def size(self) -> int:
        """Numbers kept of each token, of all query heads together."""
        return sum(part.kept_size for part in self.parts)

    def wider(self, k: Tensor, sides: Sides) -> Tensor:
        """Keys with what is kept of their tokens behind their features.

        Shapes: k [B, Hk, L, D] -> [B, Hk, L, D + size / Hk]
        """
        if self.size == 0:
            return k
        kept = [part.keep(sides) for part in self.parts]
        return torch.cat((k, *(_by_key_head(x, k.shape[1]).to(k.dtype) for x in kept if x is not None)), -1)

    def apart(self, k: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """The inverse of `wider`: keys, and what was kept of their tokens for each part."""
        if not self.size:
            return k, [None] * len(self.parts)
        heads, at = k.shape[1], k.shape[-1] - self.size // k.shape[1]
        keys, kept = k[..., :at], []
        for part in self.parts:
            size = part.kept_size // heads
            own = k[..., at : at + size] if size else None
            kept.append(None if own is None else _per_head(own, part))
            at += size
        return keys, kept

    def modifiers(self, q: Tensor, k: Tensor, sides: Sides, kept: Sequence[Tensor | None]) -> tuple[ScoreMod, ...]:
        """All modifiers of a call: scores that are added, scorings of products, biases, other scorings, and onlookers.

        Who looks on sees what all of them make of the scores.
        """
        if not self.parts:
            return sides.scores
        made = [part(q, k, sides, own) for part, own in zip(self.parts, kept, strict=True)]
        first = [one for part, one in zip(self.parts, made, strict=True) if part.first]
        rest = [one for part, one in zip(self.parts, made, strict=True) if not part.first]
        added = [one for one in sides.scores if type(one) is AddedScores]
        onlookers = [one for one in sides.scores if type(one) is ObservedScores]
        biases = [one for one in sides.scores if type(one) not in (AddedScores, ObservedScores)]
        return (*added, *first, *biases, *rest, *onlookers)

    def sums(self, state: State, kept: Sequence[Tensor | None], length: int) -> list[Tensor | None]:
        """What was kept, with the sum of the slots that are read for the part that goes on with it."""
        so_far = state["sum"][:, :length]
        return [so_far if part.accumulates else own for part, own in zip(self.parts, kept, strict=True)]


def summed(modifiers: Iterable[ScoreMod], state: State, before: State) -> State:
    """The state with the sums after a call whose modifiers have run."""
    for modifier in modifiers:
        if isinstance(modifier, Suppression):
            total = modifier.total[-1].to(before["sum"].dtype)
            return {**state, "sum": torch.cat((total, before["sum"][:, total.shape[1] :]), 1)}
    return state


def _by_key_head(x: Tensor, heads: int) -> Tensor:
    """[B, H, L, F] to [B, Hk, L, G * F], head h standing with key head h // G."""
    batch, _, length, features = x.shape
    return x.reshape(batch, heads, -1, length, features).transpose(2, 3).flatten(3)


def _per_head(own: Tensor, part: Scoring) -> Tensor:
    """The inverse, for a part that knows how many heads there are."""
    heads: int = part.heads  # type: ignore[assignment]
    batch, key_heads, length, _ = own.shape
    return own.reshape(batch, key_heads, length, heads // key_heads, -1).transpose(2, 3).flatten(1, 2)


def scored_abilities(can: Can, args: Facts) -> Can:
    """What an attention can do with the scorings and the weighting in its slots."""
    for spec in _specs(args):
        can = can & spec.part.abilities(spec.args)
    return can


def filled_abilities(attention: Attention) -> Can:
    """The same of an attention that is built."""
    can = attention.can
    for module in attention.modules():
        if isinstance(module, (Scoring, Weighting)):
            can = can & module.can
    return can


def scoring_problems(facts: Facts, *, keeps_all: bool) -> list[Problem]:
    """What is wrong with the scorings in the slot `scores`.

    Args:
        facts: of the attention.
        keeps_all: whether decoding keeps every key.
    """
    found, seen = [], 0
    for place, spec in enumerate(facts["scores"]):
        inner = described(spec)
        if not isinstance(inner, Spec) or not issubclass(inner.part, Scoring) or not inner.part.accumulates:
            continue
        seen += 1
        if not facts["causal"]:
            message = "what earlier queries hide needs an order of queries: causal attention"
            found.append(Problem(f"scores.{place}", message, inner.name))
        if seen > 1 or not keeps_all:
            why = "one sum is kept" if keeps_all else "the sum is kept for all keys, and a window drops old ones"
            found.append(Problem(f"scores.{place}", f"{inner.name!r} does not go with this: {why}", inner.name))
    return found


def queries_mixed(args: Facts) -> bool:
    """Whether a query's result depends on other queries."""
    return any(issubclass(s.part, Weighting) and s.part.queries_mixed(s.args) for s in _specs(args))


def _specs(args: Facts) -> list[Spec]:
    slots = [*(args.get("scores") or ()), args.get("weights")]
    return [spec for spec in map(described, slots) if isinstance(spec, Spec)]
