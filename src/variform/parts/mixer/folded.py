"""Mixers over every n-th token."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.core.spec import Spec, described
from variform.errors import Problem, ShapeError
from variform.ops.align import Aligned, align, restore
from variform.parts.grid import refuse_unable
from variform.parts.kinds import Mixer, Output, State, Streams, holds_state

PLACES = frozenset({"positions", "cache"})
"""Streams of the whole sequence that say where the tokens of a call stand in it."""


@register("folded")
class FoldedMixer(Mixer):
    """Runs a mixer over each of n interleaved sequences: tokens 0, n, 2n, ..., tokens 1, n + 1, ..., and so on.

    A mixer over columns of a grid whose rows have n points, say. Tokens are counted without padding.

    Shapes:
        x: [B, L, dim] -> as the mixer's

    Args:
        every: n.
        mixer: what runs over each of the sequences.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"valid"})
    can: ClassVar[Can] = Can(attention_mask=False, packed=False, cross=False)

    def __init__(self, every: Annotated[int, Field(gt=0)], mixer: Mixer = use("gru")) -> None:
        super().__init__()
        self.every = every
        self.mixer = mixer

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What the mixer can do of what makes sense here.

        Decoding brings padding with it, and a state that knows by itself how far it has come: the plan of a cache is
        that of the whole sequence.
        """
        mixer = described(args.get("mixer"))
        if not isinstance(mixer, Spec):
            return cls.can
        can = cls.can & mixer.part.abilities(mixer.args)
        placed = any(not spec.part.reads_streams(spec.args).isdisjoint(PLACES) for _, spec in mixer.walk())
        return replace(can, decode=can.decode and can.key_padding and not placed)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """What a mixer publishes is of each sequence alone, and nobody could read it."""
        mixer = described(facts["mixer"])
        told = sorted({name for _, spec in mixer.walk() for name in spec.part.publishes(spec.args)})
        message = f"it publishes {', '.join(told)}, of folded sequences, which no other part could read"
        return [Problem("mixer", message, mixer.name, "take a mixer that publishes nothing")] if told else []

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Fold, run, unfold."""
        refuse_unable(self, streams)
        valid, state = streams.get("valid"), streams.get("state")
        if state is not None:
            return self._step(x, valid, state)
        aligned: Aligned | None = None
        if valid is not None:
            x, aligned = align(x, valid)
        batch, length, every = x.shape[0], x.shape[1], self.every
        missing = -length % every
        folded = F.pad(x, (0, 0, 0, missing)).view(batch, -1, every, x.shape[2]).transpose(1, 2).flatten(0, 1)
        real = None
        if aligned is not None:
            real = F.pad(aligned.real, (0, missing)).view(batch, -1, every).transpose(1, 2).flatten(0, 1)
        elif missing:
            steps = torch.arange(length + missing, device=x.device).view(-1, every)
            real = (steps < length).T.repeat(batch, 1) if self._knows_padding else None
        y = self._run(folded, {"valid": real})
        y = y.view(batch, every, -1, y.shape[2]).transpose(1, 2).flatten(1, 2)[:, :length]
        return y if aligned is None else restore(y, aligned)

    @property
    def _knows_padding(self) -> bool:
        return "valid" in self.mixer.reads

    def _run(self, x: Tensor, streams: Streams) -> Tensor:
        return self._alone(self.mixer(x, streams))[0]

    def _alone(self, out: Output) -> tuple[Tensor, dict[str, Any]]:
        """What the mixer gave: features, and nothing else but a state.

        Raises:
            ShapeError: it publishes streams, which are of the folded sequences.
        """
        y, told = out if isinstance(out, tuple) else (out, {})
        if told.keys() - {"state"}:
            raise ShapeError(f"the mixer publishes {', '.join(told)}, of folded sequences: take one that does not")
        return y, told

    def _step(self, x: Tensor, valid: Tensor | None, state: State) -> Output:
        """Each sequence reads the chunk, in which the tokens of the others are padding."""
        batch, length, every = x.shape[0], x.shape[1], self.every
        real = x.new_ones(batch, length, dtype=torch.bool) if valid is None else valid
        order = state["seen"][:, None] + real.long().cumsum(1) - 1
        mine = (order % every)[:, None] == torch.arange(every, device=x.device)[:, None]
        mine = (mine & real[:, None]).flatten(0, 1)
        streams = {"valid": mine, "state": state["mixer"]}
        y, new = self._alone(self.mixer(x.repeat_interleave(every, 0), streams))
        y = y.masked_fill(~mine[..., None], 0).view(batch, every, length, -1).sum(1)
        return y, {"state": {"seen": state["seen"] + real.sum(1), "mixer": new.get("state", state["mixer"])}}

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """That of the mixer for each sequence, and how many tokens each row has seen."""
        device = next(self.parameters()).device
        seen = torch.zeros(batch, dtype=torch.long, device=device)
        return {"seen": seen, "mixer": self.mixer.init_state(batch * self.every, max_len, {})}

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether the mixer keeps state."""
        return holds_state(self.mixer)
