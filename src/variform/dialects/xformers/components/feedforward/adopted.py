"""Feedforwards that users register with upstream's decorator, as parts of the core."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from variform.core.part import Can
from variform.dialects.xformers.adopting import Adopted, adopt
from variform.dialects.xformers.utils import Item
from variform.parts.kinds import FeedForward, Streams


def adopt_feedforward(name: str, item: Item) -> None:
    """Let a feedforward of the dialect be a part of the core as well."""
    adopt(name, item, lambda trial: AdoptedFeedforward)


class AdoptedFeedforward(Adopted, FeedForward):
    """A feedforward of a user."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.module = self.make(arguments)

    @classmethod
    def can_of(cls, trial: Any, causal: bool) -> Can:
        """One that needs a square length mixes tokens; any other treats each on its own.

        Args:
            trial: an instance.
            causal: whether it has that key, which says nothing here.
        """
        mixes = bool(trial.requires_squared_context)
        return Can(False, False, True, False, True, False, False) if mixes else Can()

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Transform each token."""
        return self.module(x)  # type: ignore[no-any-return]
