"""`FeedForward` by itself, and schedules of keywords over layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.x_transformers.errors import KeywordError
from variform.dialects.x_transformers.feedforward import FEEDFORWARD, FeedForwardDraft
from variform.dialects.x_transformers.table import apply_all, problems_of, raise_any
from variform.errors import ConfigError
from variform.parts.kinds import FeedForward as NativeFeedForward


class FeedForward(nn.Module):
    """A feedforward by itself, described by upstream's keywords.

    What is built is a feedforward of the core, `native`; `spec` is its full description.

    Shapes:
        x: [B, L, dim] -> [B, L, dim_out]

    Args:
        dim: features in.
        **keywords: see `variform.dialects.x_transformers.feedforward.FEEDFORWARD`.

    Raises:
        KeywordError: unknown keywords, and values that do not fit; all at once.
    """

    def __init__(self, dim: int, **keywords: Any) -> None:
        super().__init__()
        raise_any(problems_of(type(self).__name__, FEEDFORWARD, keywords, FEEDFORWARD))
        draft = FeedForwardDraft(dim, prefix="")
        apply_all(draft, FEEDFORWARD, keywords)
        raise_any(draft.check())
        try:
            self.native: NativeFeedForward = build(draft.body(), dim=dim)
        except ConfigError as error:
            raise KeywordError(error.problems) from None
        self.drop = nn.Dropout(draft.sublayer_dropout)

    @property
    def spec(self) -> Spec:
        """The full description of the feedforward, the dropout of its result aside."""
        return self.native.spec

    def forward(self, x: Tensor, deep_embed: Tensor | None = None) -> Tensor:
        """Transform each token; `deep_embed` [B, L, dim_out] is multiplied with the result."""
        y = self.native(x, {})
        assert isinstance(y, Tensor)
        dropped: Tensor = self.drop(y)
        return dropped if deep_embed is None else dropped * deep_embed


Schedule = Callable[[float, float, float], float]


def layer_schedule(start: float, end: float, depth: int, schedule: str | Schedule = "cosine") -> tuple[float, ...]:
    """A value for each layer, from `start` to `end`: for keywords that take a tuple, one value a layer.

    Args:
        start: of the first layer.
        end: of the last.
        depth: layers, at least two.
        schedule: "linear", "cosine" (start + (end - start) (1 - cos(pi t)) / 2), or a function of start, end and the
            place t in [0, 1].

    Raises:
        KeywordError: another schedule, or too few layers.
    """
    if depth < 2:
        raise KeywordError("a schedule needs two layers at least", path="depth", value=depth)
    known: dict[str, Schedule] = {
        "linear": lambda a, b, t: a + (b - a) * t,
        "cosine": lambda a, b, t: a + (b - a) * 0.5 * (1 - math.cos(math.pi * t)),
    }
    if isinstance(schedule, str) and schedule not in known:
        raise KeywordError("a schedule is 'linear', 'cosine' or a function", path="schedule", value=schedule)
    chosen = known[schedule] if isinstance(schedule, str) else schedule
    return tuple(chosen(start, end, layer / (depth - 1)) for layer in range(depth))
