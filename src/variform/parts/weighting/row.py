"""Weights of a row by its own scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import ConfigError, Problem, ShapeError, did_you_mean
from variform.ops.weightings import (
    CustomWeights,
    GumbelWeights,
    HardWeights,
    InvertedWeights,
    Normaliser,
    SigmoidWeights,
    TopKWeights,
)
from variform.parts.kinds import Sides, Weighting

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {}
"""Functions of scores by the names that configurations know them by."""


def register_attention_function(name: str, function: Callable[[Tensor], Tensor]) -> None:
    """Give a function from scores [B, H, Lq, Lk] to weights a name, for `custom` weighting and for files.

    Raises:
        ConfigError: the name is another function's.
    """
    if FUNCTIONS.get(name, function) is not function:
        raise ConfigError(f"an attention function named {name!r} is already registered")
    FUNCTIONS[name] = function


@register("sigmoid")
class SigmoidWeighting(Weighting):
    """Each score alone (Ramapuram et al. 2024, arXiv:2409.04431): P = sigmoid(S), without their bias of -log L."""

    def forward(self, sides: Sides) -> Normaliser:
        """The normaliser."""
        return SigmoidWeights()


@register("top_k")
class TopKWeighting(Weighting):
    """Explicit sparse attention (Zhao et al. 2019, arXiv:1912.11637): softmax over the largest scores of a row.

    Args:
        count: how many, ties with the last included; rows with fewer keys attend to all.
        straight_through: gradients as if softmax went over all (arXiv:2505.22074).
    """

    def __init__(self, count: Annotated[int, Field(gt=0)] = 8, straight_through: bool = False) -> None:
        super().__init__()
        self.count = count
        self.straight_through = straight_through

    def forward(self, sides: Sides) -> Normaliser:
        """The normaliser."""
        return TopKWeights(self.count, self.straight_through)


@register("hard")
class HardWeighting(Weighting):
    """All weight on the largest score, with the gradient of softmax (straight through; arXiv:2410.01104)."""

    def forward(self, sides: Sides) -> Normaliser:
        """The normaliser."""
        return HardWeights()


@register("gumbel")
class GumbelWeighting(Weighting):
    """Keys are drawn (Gumbel softmax, Jang et al. 2016, arXiv:1611.01144), in evaluation too.

    Args:
        temperature: of the softmax of scores with noise.
        hard: all weight on the key drawn, with the gradient of the soft weights.
    """

    def __init__(self, temperature: Annotated[float, Field(gt=0)] = 1.0, hard: bool = True) -> None:
        super().__init__()
        self.temperature = temperature
        self.hard = hard

    def forward(self, sides: Sides) -> Normaliser:
        """The normaliser."""
        return GumbelWeights(self.temperature, self.hard)


@register("inverted")
class InvertedWeighting(Weighting):
    """Keys choose among queries, as slots do (https://openreview.net/forum?id=WgQZNoQ5AB).

    Softmax over the queries of each key, then every query's weights are divided by their sum. Padded queries are not
    chosen. A query's result depends on the others, so it is neither causal nor decoded.
    """

    can: ClassVar[Can] = Can(causal=False, attention_mask=False, packed=False, decode=False)
    mixes_queries: ClassVar[bool] = True

    def forward(self, sides: Sides) -> Normaliser:
        """The normaliser for these queries."""
        valid = sides.q_valid
        if valid is None and sides.streams is not None:
            valid = sides.streams.get("valid")
        return InvertedWeights(valid)


@register("custom")
class CustomWeighting(Weighting):
    """Weights by a function of one's own, from scores [B, H, Lq, Lk] with hidden pairs at the least number.

    Args:
        function: a name given by `register_attention_function`, or the function itself, which no file can hold. It is
            to treat each row alone where the attention is causal.
    """

    def __init__(self, function: str | Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The name is known."""
        name = facts["function"]
        if isinstance(name, str) and name not in FUNCTIONS:
            hint = did_you_mean(name, FUNCTIONS) or "register_attention_function(name, function) gives one"
            return [Problem("function", "there is no attention function of this name", name, hint)]
        return []

    def forward(self, sides: Sides) -> Normaliser:
        """The normaliser."""
        if not isinstance(self.function, str):
            return CustomWeights(self.function)
        if self.function not in FUNCTIONS:
            raise ShapeError(f"there is no attention function {self.function!r} in this process: register it")
        return CustomWeights(FUNCTIONS[self.function])
