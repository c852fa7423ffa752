"""How the scores of a row become weights, where that is not a plain softmax."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from variform.errors import ConfigError, ShapeError
from variform.ops.learned_scores import mixed_heads, square

__all__ = [
    "CustomWeights",
    "GumbelWeights",
    "HardWeights",
    "InvertedWeights",
    "Normaliser",
    "ScaledWeights",
    "SigmoidWeights",
    "SignedWeights",
    "SinkWeights",
    "TalkingWeights",
    "TopKWeights",
    "softmax_or",
]


class Normaliser(ABC):
    """What makes weights of scores. Hidden pairs have a score of -inf and must get a weight of 0.

    Rows that attend to nothing are dealt with by the caller: their scores are given as 0, their weights are ignored.
    """

    @property
    def is_local(self) -> bool:
        """Whether a query's weights depend on its own scores alone."""
        return True

    @property
    def is_random(self) -> bool:
        """Whether weights are drawn, so that computing them again gives others."""
        return False

    def before(self, scores: Tensor) -> Tensor:
        """Scores as they are to be masked; by default as they are."""
        return scores

    def rivals(self, scores: Tensor) -> Tensor:
        """Masked scores with what competes with them in the softmax, in front; by default as they are.

        Shapes: `[B, H, Lq, Lk]` -> `[B, H, Lq, S + Lk]`.
        """
        return scores

    @abstractmethod
    def weights(self, scores: Tensor, bare: Tensor) -> Tensor:
        """The weights.

        Args:
            scores: masked.
            bare: before masks and before `before`.

        Shapes: `[B, H, Lq, Lk]`, each and the result.
        """

    def after(self, weights: Tensor, products: Tensor) -> Tensor:
        """What becomes of the weights after their dropout; `products` are the scores before any modifier."""
        return weights

    @property
    def goes_on(self) -> bool:
        """Whether `after` does something."""
        return False

    def magnitude(self) -> Normaliser:
        """The same of scores without signs."""
        return self

    def flops(self, batch: int, heads: int, q_len: int, k_len: int) -> int:
        """Floating-point operations of its products, a multiply-add counting 2."""
        return 0

    def check(self, heads: int) -> None:
        """Raise `ShapeError` when a tensor does not fit so many heads."""
        return None


def softmax_or(inner: Normaliser | None, scores: Tensor, bare: Tensor) -> Tensor:
    """The weights of a normaliser; of softmax where it is None."""
    return torch.softmax(scores, -1) if inner is None else inner.weights(scores, bare)


@dataclass(frozen=True, eq=False)
class SigmoidWeights(Normaliser):
    """Each score alone: P = sigmoid(S). Paper: https://arxiv.org/abs/2409.04431"""

    def weights(self, scores: Tensor, bare: Tensor) -> Tensor:
        return scores.sigmoid()


@dataclass(frozen=True, eq=False)
class TopKWeights(Normaliser):
    """Softmax over the `count` largest scores of a row, ties with the last included; all where there are fewer.

    Args:
        count: how many.
        straight_through: gradients as if softmax went over all.

    Papers: https://arxiv.org/abs/1912.11637, https://arxiv.org/abs/2505.22074 (straight through)
    """

    count: int
    straight_through: bool = False

    def weights(self, scores: Tensor, bare: Tensor) -> Tensor:
        count = min(self.count, scores.shape[-1])
        least = scores.detach().topk(count, -1).values[..., -1:]
        kept = torch.softmax(scores.masked_fill(scores < least, -torch.inf), -1)
        return _straight_through(kept, torch.softmax(scores, -1)) if self.straight_through else kept


@dataclass(frozen=True, eq=False)
class HardWeights(Normaliser):
    """All weight on the largest score, with the gradient of softmax. Paper: https://arxiv.org/abs/2410.01104"""

    def weights(self, scores: Tensor, bare: Tensor) -> Tensor:
        best = torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)
        return _straight_through(best, torch.softmax(scores, -1))


@dataclass(frozen=True, eq=False)
class GumbelWeights(Normaliser):
    """Softmax of scores with Gumbel noise, in evaluation too: P = softmax((S + G) / temperature).

    Args:
        temperature: of the softmax.
        hard: all weight on the largest one, with the gradient of the soft weights.
        drawn: the noise of the call, so that its weights can be told again.

    Paper: https://arxiv.org/abs/1611.01144
    """

    temperature: float = 1.0
    hard: bool = True
    drawn: list[Tensor] = field(default_factory=list)

    @property
    def is_random(self) -> bool:
        return True

    def weights(self, scores: Tensor, bare: Tensor) -> Tensor:
        if not self.drawn:
            self.drawn.append(-torch.empty_like(scores).exponential_().log())
        soft = torch.softmax((scores + self.drawn[0]) / self.temperature, -1)
        if not self.hard:
            return soft
        best = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        return _straight_through(best, soft)


class _Around(Normaliser):
    """A change of the weights of another normaliser."""

    inner: Normaliser | None

    @property
    def is_local(self) -> bool:
        return self.inner is None or self.inner.is_local

    @property
    def is_random(self) -> bool:
        return self.inner is not None and self.inner.is_random

    @property
    def goes_on(self) -> bool:
        return self.inner is not None and self.inner.goes_on

    def before(self, scores: Tensor) -> Tensor:
        return scores if self.inner is None else self.inner.before(scores)

    def rivals(self, scores: Tensor) -> Tensor:
        return scores if self.inner is None else self.inner.rivals(scores)

    def weights(self, scores: Tensor, bare: Tensor) -> Tensor:
        return softmax_or(self.inner, scores, bare)

    def after(self, weights: Tensor, products: Tensor) -> Tensor:
        return weights if self.inner is None else self.inner.after(weights, products)

    def flops(self, batch: int, heads: int, q_len: int, k_len: int) -> int:
        return 0 if self.inner is None else self.inner.flops(batch, heads, q_len, k_len)

    def check(self, heads: int) -> None:
        if self.inner is not None:
            self.inner.check(heads)


class _Mixing(_Around):
    """One that multiplies with a matrix of heads to heads.

    Shapes: weight `[H, H]`.
    """

    weight: Tensor

    @property
    def goes_on(self) -> bool:
        return True

    def flops(self, batch: int, heads: int, q_len: int, k_len: int) -> int:
        return super().flops(batch, heads, q_len, k_len) + 2 * batch * heads * heads * q_len * k_len

    def check(self, heads: int) -> None:
        square(f"{type(self).__name__}(weight)", self.weight, heads)
        super().check(heads)


@dataclass(frozen=True, eq=False)
class SignedWeights(_Around):
    """Negative weights (cog attention): P = sign(S) softmax(|S|). Source: https://openreview.net/forum?id=ezRrwwbxd0

    Errors: `ConfigError` where the weights inside are changed after their dropout, when they would have signs already.
    """

    inner: Normaliser | None = None

    def __post_init__(self) -> None:
        if self.inner is not None and self.inner.goes_on:
            raise ConfigError(f"SignedWeights({type(self.inner).__name__}): signs come first; put them inside it")

    def before(self, scores: Tensor) -> Tensor:
        return super().before(scores.abs())

    def rivals(self, scores: Tensor) -> Tensor:
        return scores if self.inner is None else self.inner.magnitude().rivals(scores)

    def weights(self, scores: Tensor, bare: Tensor) -> Tensor:
        inner = None if self.inner is None else self.inner.magnitude()
        return softmax_or(inner, scores, bare.abs()) * bare.sign()


@dataclass(frozen=True, eq=False)
class SinkWeights(_Around):
    """One more score a head that takes weight and has no value: P = softmax([s_h, S]) without its first column.

    Shapes: sink `[H]`. Source: gpt-oss, https://arxiv.org/abs/2508.10925
    """

    sink: Tensor
    inner: Normaliser | None = None

    def rivals(self, scores: Tensor) -> Tensor:
        sink = self._column(scores)
        return super().rivals(torch.cat((sink if self.inner is None else self.inner.before(sink), scores), -1))

    def weights(self, scores: Tensor, bare: Tensor) -> Tensor:
        sink = self._column(scores)
        if self.inner is None:
            return torch.softmax(torch.cat((sink, scores), -1), -1)[..., 1:]
        wide = torch.cat((self.inner.before(sink), scores), -1)
        return self.inner.weights(wide, torch.cat((sink, bare), -1))[..., 1:]

    def _column(self, scores: Tensor) -> Tensor:
        return self.sink.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)

    def magnitude(self) -> Normaliser:
        return replace(self, sink=self.sink.abs())

    def check(self, heads: int) -> None:
        if tuple(self.sink.shape) != (heads,):
            raise ShapeError(f"SinkWeights(sink): [{heads}] expected, one a head; got {list(self.sink.shape)}")
        super().check(heads)


@dataclass(frozen=True, eq=False)
class InvertedWeights(Normaliser):
    """Keys choose among queries: softmax over the queries of each key, then every query's weights sum to one.

    Args:
        queries: bool `[B, Lq]`, queries that are chosen among; None for all.

    Source: https://openreview.net/forum?id=WgQZNoQ5AB
    """

    queries: Tensor | None = None

    @property
    def is_local(self) -> bool:
        return False

    def weights(self, scores: Tensor, bare: Tensor) -> Tensor:
        hidden = scores == -torch.inf
        chosen = bare if self.queries is None else bare.masked_fill(~self.queries[:, None, :, None], -torch.inf)
        none = (chosen == -torch.inf).all(-2, keepdim=True)
        shares = torch.softmax(chosen.masked_fill(none, 0.0), -2).masked_fill(hidden | none, 0.0)
        return shares / shares.sum(-1, keepdim=True).clamp(min=1e-8)


@dataclass(frozen=True, eq=False)
class CustomWeights(Normaliser):
    """Any function of scores `[B, H, Lq, Lk]`; hidden pairs get no weight whatever it answers."""

    function: Callable[[Tensor], Tensor]

    @property
    def is_local(self) -> bool:
        return False

    def weights(self, scores: Tensor, bare: Tensor) -> Tensor:
        hidden = scores == -torch.inf
        found = self.function(scores.masked_fill(hidden, torch.finfo(scores.dtype).min))
        if found.shape != scores.shape:
            raise ShapeError(f"the attention function gave {list(found.shape)} for scores {list(scores.shape)}")
        return found.masked_fill(hidden, 0.0)


@dataclass(frozen=True, eq=False)
class TalkingWeights(_Mixing):
    """Heads mix their weights (talking heads): P_h = sum_g weight[h, g] P_g.

    Shapes: weight `[H, H]`. Paper: https://arxiv.org/abs/2003.02436
    """

    weight: Tensor
    inner: Normaliser | None = None

    def after(self, weights: Tensor, products: Tensor) -> Tensor:
        return mixed_heads(super().after(weights, products), self.weight)


@dataclass(frozen=True, eq=False)
class ScaledWeights(_Mixing):
    """Weights are scaled by what heads mix of the products of queries and keys: P_h *= sum_g weight[h, g] (q k)_g.

    A head in which scores that were added hide a pair, by -inf, has no part in the sum.

    Shapes: weight `[H, H]`.
    """

    weight: Tensor
    inner: Normaliser | None = None

    def after(self, weights: Tensor, products: Tensor) -> Tensor:
        told = products.masked_fill(products == -torch.inf, 0.0)
        return super().after(weights, products) * mixed_heads(told, self.weight)


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The first's values with the second's gradients."""
    return hard.detach() + (soft - soft.detach())
