"""Watching a call from outside: told of what enters and leaves its parts, without hooks on modules."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from variform.parts.kinds import Streams


class Watch(Protocol):
    """Who is told, in the streams as `watch`. It changes nothing; compiled calls are told as they are traced.

    Those who tell: stacks, and the norms at their ends; sublayers; multi-head attentions; embeddings `prefixed`.
    """

    def enters(self, part: nn.Module, x: Tensor, streams: Streams) -> None:
        """A part begins, with the features x and the streams that it sees."""

    def leaves(self, part: nn.Module, x: Tensor) -> None:
        """A part ends, with the features x: an embedding before its dropout, registers with what they have added."""
