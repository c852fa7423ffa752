"""Segments that remember: what attentions read of the tokens before a segment (Transformer-XL).

Dai et al. 2019, arXiv:1901.02860: keys and values are made of [m; x], the input m of the same step in earlier segments
before the input x of this one, and m is a constant in training. Queries and outputs are those of x alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from variform.errors import ShapeError
from variform.ops.masks.widened import widened_bias, widened_mask

OF_OTHERS = frozenset({"injected", "added", "context", "prefix", "skips", "token_gains"})
"""Streams that may have the shape of a segment's features and say nothing of keys, or say it of memories too."""


class Memories(NamedTuple):
    """What a model remembers of earlier segments; `Memories(limit=512)` is the beginning.

    Args:
        limit: the most tokens that are remembered.
        shift: each step remembers the inputs of the one that runs so many later, and the last ones those of the first
            (ERNIE-Doc's enhanced recurrence, Ding et al. 2020, arXiv:2012.15688); 0 for its own.
        features: [B, M, dim], the inputs of each step that mixes tokens, in the order in which they run.
        valid: [B, M] bool, False at what is not to be remembered; None for all; a tuple has one for each step.
        compact: padding is forgotten first, and takes no place; False keeps tokens where they stood.
    """

    limit: int
    shift: int = 0
    features: tuple[Tensor, ...] = ()
    valid: Tensor | tuple[Tensor | None, ...] | None = None
    compact: bool = True

    @property
    def length(self) -> int:
        """M, how many tokens are remembered."""
        return self.features[0].shape[1] if self.features else 0

    def joined(self, inputs: tuple[Tensor, ...], valid: Tensor | None) -> Memories:
        """With a segment behind: the newest `limit` valid tokens of each row.

        Shapes:
            inputs: [B, L, dim] each; valid: [B, L]

        Args:
            inputs: of the segment's steps.
            valid: False at the segment's padding.
        """
        if not self.limit:
            return self
        olds = self.features or (None,) * len(inputs)
        if isinstance(self.valid, tuple):
            steps = [self._newest(*step, valid) for step in zip(olds, self.valid, inputs, strict=True)]
            return self._replace(features=tuple(x for x, _ in steps), valid=tuple(kept for _, kept in steps))
        steps = [self._newest(old, self.valid, new, valid) for old, new in zip(olds, inputs, strict=True)]
        return self._replace(features=tuple(x for x, _ in steps), valid=steps[0][1])

    def _newest(
        self, old: Tensor | None, old_valid: Tensor | None, new: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What one step remembers, and which of it is valid."""
        valid = joined_valid(self.length, old_valid, new.shape[1], valid)
        whole = new if old is None else torch.cat((old.to(new.dtype), new), 1)
        if valid is not None and self.compact:  # real tokens to the right, so that none is forgotten for padding's sake
            order = valid.to(torch.uint8).argsort(dim=1, stable=True)
            valid = valid.gather(1, order)
            whole = whole.gather(1, order.view(*order.shape, *[1] * (whole.dim() - 2)).expand_as(whole))
        return whole[:, -self.limit :], None if valid is None else valid[:, -self.limit :]

    def detached(self) -> Memories:
        """The same as constants."""
        return self._replace(features=tuple(x.detach() for x in self.features))

    @property
    def recalled(self) -> tuple[Tensor, ...]:
        """What each step is given, in the order in which they run."""
        return (*self.features[self.shift :], *self.features[: self.shift])

    @property
    def recalled_valid(self) -> Tensor | tuple[Tensor | None, ...] | None:
        """The same of what is valid: it goes with the features."""
        if not isinstance(self.valid, tuple):
            return self.valid
        return (*self.valid[self.shift :], *self.valid[: self.shift])


class Recall(NamedTuple):
    """Memories on their way through a model, in the streams as `memories`: each step takes the first of those left.

    Args:
        old: those of the steps that have not run yet.
        new: the inputs of those that have.
        new_valid: [B, L] bool, False at padding of those inputs, which may hold added tokens; None for none.
        length: M, how many tokens are remembered.
        valid: [B, M] bool, False at what is not to be remembered; a tuple has one for each step that has not run.
        shift: how much the positions of the segment move on, so that none is negative.
    """

    old: tuple[Tensor, ...]
    new: tuple[Tensor, ...]
    length: int
    valid: Tensor | tuple[Tensor | None, ...] | None
    shift: int
    new_valid: Tensor | None = None

    @property
    def own_valid(self) -> Tensor | None:
        """What is valid for the next step."""
        return self.valid[0] if isinstance(self.valid, tuple) else self.valid

    @property
    def begun(self) -> Tensor | int:
        """[B, 1], how many places of the next step's memories there are before the first that is valid."""
        valid = self.own_valid
        return 0 if valid is None else (valid.long().cumsum(1) == 0).sum(1, keepdim=True)

    def opened(self, x: Tensor, streams: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The tokens of a step with those remembered in front, and the streams of both.

        Shapes:
            x: [B, L, ..] -> [B, M + L, ..]

        Raises:
            ShapeError: memories that do not fit, or a stream of the segment's tokens alone.
        """
        inner = {name: stream for name, stream in streams.items() if name != "memories"}
        if streams.get("twin") is not None:
            raise ShapeError("reversible layers keep no memories; take another executor")
        if not self.length:
            return x, inner
        if not self.old:
            raise ShapeError(f"there are memories for {len(self.new)} steps, and more steps mix tokens")
        memory = self.old[0]
        if memory.shape != (x.shape[0], self.length, *x.shape[2:]):
            wanted = [x.shape[0], self.length, *x.shape[2:]]
            raise ShapeError(f"the memory of this step is {wanted}, not {list(memory.shape)}")
        injected = inner.get("injected")
        if injected is not None and injected.shape == x.shape:  # what was injected is not remembered
            inner["injected"] = torch.cat((injected.new_zeros(memory.shape), injected), 1)
        for name, stream in inner.items():
            if name not in OF_OTHERS and any(
                isinstance(t, Tensor) and t.shape == x.shape for t in (stream if type(stream) is tuple else (stream,))
            ):
                raise ShapeError(f"the stream {name!r} is of this segment's tokens alone: run without memories")
        valid, length = inner.get("valid"), x.shape[1]
        positions = inner.get("positions")
        inner["valid"] = joined_valid(self.length, self.own_valid, length, valid)
        if self.shift:  # else a decode state has told
            inner["recalled"] = self.shift - self.begun
        if positions is not None:
            inner["positions"] = self._positions(positions, valid)
        elif self.own_valid is not None:
            inner["positions"] = (torch.arange(self.length + length, device=x.device) - self.begun).clamp(min=0)
        order = F.pad(torch.arange(length, device=x.device), (self.length, 0), value=-1)
        if inner.get("mask") is not None:
            inner["mask"] = widened_mask(inner["mask"], order, length, positions)
        if inner.get("bias") is not None:
            inner["bias"] = widened_bias(inner["bias"], order, length)
        return torch.cat((memory.to(x.dtype), x), 1), inner

    def _positions(self, positions: Tensor, valid: Tensor | None) -> Tensor:
        """Those of memories and tokens: the first that is remembered stands at 0, the last before the first token.

        Shapes:
            positions: [L] or [B, L]; valid: [B, L] -> [M + L] or [B, M + L]
        """
        count = torch.arange(self.length, device=positions.device)
        if not self.shift:  # a decode state counts them all
            ahead = (count - self.begun).clamp(min=0)
        else:
            positions = positions + self.shift - self.begun
            real = positions if valid is None else positions.masked_fill(~valid, torch.iinfo(positions.dtype).max)
            first = real.amin(-1, keepdim=True).clamp(max=positions.amax(-1, keepdim=True))
            ahead = (first - self.length + count).clamp(min=0)
        if ahead.dim() != positions.dim():
            rows = max(ahead.shape[:-1], positions.shape[:-1], key=len)
            ahead, positions = ahead.expand(*rows, -1), positions.expand(*rows, -1)
        return torch.cat((ahead, positions), -1)

    def after(self, x: Tensor, x_valid: Tensor | None) -> Recall:
        """What is left for the steps behind one whose input was `x`, of which so much was valid."""
        valid = self.valid[1:] if isinstance(self.valid, tuple) else self.valid
        return self._replace(old=self.old[1:], new=(*self.new, x), valid=valid, new_valid=x_valid)


def joined_valid(ahead: int, ahead_valid: Tensor | None, length: int, valid: Tensor | None) -> Tensor | None:
    """The validity of remembered tokens and those of a segment behind them; None where all are.

    Shapes:
        ahead_valid: [B, M]; valid: [B, L] -> [B, M + L]
    """
    known = valid if ahead_valid is None else ahead_valid
    if known is None or (ahead_valid is None and not ahead):
        return valid
    if ahead_valid is None:
        ahead_valid = known.new_ones(known.shape[0], ahead)
    if valid is None:
        valid = known.new_ones(known.shape[0], length)
    return torch.cat((ahead_valid, valid), 1)
