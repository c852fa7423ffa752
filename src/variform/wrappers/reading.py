"""Reading a growing sequence: cached as long as it fits, a window read anew beyond."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from variform.parts.kinds import State

Whole = Callable[..., Tensor]
"""From all inputs, one or several of [B, L, ...], to the outputs [..., L, n]."""


class Chunked(Protocol):
    """What reads chunks with a decode state, as a model of the core does."""

    def init_state(self, batch: int, max_len: int, **streams: Any) -> State:
        """An empty decode state."""

    def __call__(self, *inputs: Tensor, state: State) -> Any:
        """The outputs of a chunk, and the new state."""


class Reading:
    """Reads chunk after chunk and answers with the outputs of the newest inputs.

    With a model that can decode, each chunk is read once and the rest is cached; otherwise, and beyond the window,
    the last `window` inputs are read anew each time. What is read is then what a fresh model would be given.

    Args:
        whole: runs a model over a whole sequence.
        window: the most inputs that are read at once; None for no limit.
        cached: a model that reads chunks, as `model(chunk, state=state)`; None to read everything anew.
        room: the most inputs that will come, which is what the cache is made for.
        streams: what a new decode state keeps: a context, its mask.
    """

    def __init__(
        self,
        whole: Whole,
        window: int | None = None,
        cached: Chunked | None = None,
        room: int = 0,
        streams: Mapping[str, Any] | None = None,
    ) -> None:
        self.whole = whole
        self.window = window
        self.cached = cached
        self.room = room if window is None else min(room, window)
        self.streams = {name: value for name, value in (streams or {}).items() if value is not None}
        self.state: State | None = None
        self.inputs: tuple[Tensor, ...] | None = None

    def read(self, *new: Tensor) -> Tensor:
        """The outputs at the newest inputs, [..., n, features], or as many of them as the window holds."""
        before = self.inputs
        self.inputs = new if before is None else tuple(torch.cat(pair, 1) for pair in zip(before, new, strict=True))
        rows, count = new[0].shape[:2]
        if self.cached is None or self.inputs[0].shape[1] > self.room:
            seen = self.inputs if self.window is None else [one[:, -self.window :] for one in self.inputs]
            return self.whole(*seen)[..., -count:, :]
        if self.state is None:
            self.state = self.cached.init_state(rows, self.room, **self.streams)
        out, self.state = self.cached(*new, state=self.state)
        answer: Tensor = out
        return answer
