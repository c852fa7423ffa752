"""Token shift: a part of each token's features is that of its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import ConfigError, Problem, ShapeError
from variform.parts.kinds import FeedForward, Layer, Mixer, Output, State, Streams, call
from variform.parts.op.shift import shift_features

Size = Annotated[int, Field(gt=0)]
INPUTS = ("key_input", "value_input")


@register("token_shift")
class TokenShift(Layer):
    """Runs a part on tokens some features of which are those of tokens before: y = body(shift(x)).

    The features are cut into amount + 1 equal pieces; piece i of a token is that of the token i places before it, zeros
    where there is none; features that are left over stay (as in RWKV, Peng et al. 2023, arXiv:2305.13048). In models
    that are not causal there are 2 amount + 1 pieces, from `amount` places further on to `amount` places before.
    Places are counted over the real tokens of a row, and end with a document. A mask of pairs is for what attends: it
    hides no neighbour here, and goes on to the body.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]; key_input, value_input: the same, shifted like x

    Args:
        body: the mixer, feedforward or layer that does the work.
        amount: how far the furthest piece is moved.
        causal: only from tokens before.
        inputs: how many inputs the body is given: 3 with a residual or an entry of three views, else 1.
        dim: features.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"valid", "segments"})
    stateful: ClassVar[bool] = True
    takes_views: ClassVar[bool] = True
    passes_masks: ClassVar[bool] = True

    def __init__(
        self,
        body: Mixer | FeedForward | Layer,
        amount: Size = 1,
        causal: bool = inherit(False),
        inputs: Annotated[int, Field(ge=1, le=3)] = 1,
        dim: Size = INHERIT,
    ) -> None:
        super().__init__()
        self.body = body
        self.causal = causal
        self.inputs = inputs
        self.dim = dim
        self.reach = amount
        amounts = range(0 if causal else -amount, amount + 1)
        size = dim // len(amounts)
        pieces = [(place * size, (place + 1) * size, -by) for place, by in enumerate(amounts)]
        self.pieces = (*pieces, (size * len(amounts), dim, 0)) if dim % len(amounts) else tuple(pieces)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Each piece has a feature."""
        count = facts["amount"] + 1 if facts["causal"] else 2 * facts["amount"] + 1
        if count <= facts["dim"]:
            return []
        return [Problem("amount", f"{count} pieces are cut, and there are {facts['dim']} features", facts["amount"])]

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Shift, then run."""
        names = [name for name in INPUTS if name in streams]
        inputs = (x, *(streams[name] for name in names))
        if len(inputs) != self.inputs:
            raise ShapeError(
                f"this token shift is made for {self.inputs} inputs, and is given {len(inputs)}: set inputs"
            )
        published: dict[str, Any] = {}
        states = streams.get("state")
        valid, segments = streams.get("valid"), streams.get("segments")
        if states is None and valid is None and segments is None:
            moved: Sequence[Tensor] = [shift_features(each, self.pieces) for each in inputs]
        else:
            old = None if states is None else states["before"]
            moved, new = self._among_others(torch.stack(inputs, -2), valid, segments, old)
            if new is not None:
                published["state"] = {"before": new}
        first, *others = moved
        y = call(self.body, first, {**streams, **dict(zip(names, others, strict=True))}, "body", published)
        return (y, published) if published else y

    def _among_others(
        self, x: Tensor, valid: Tensor | None, segments: Tensor | None, before: State | None
    ) -> tuple[Sequence[Tensor], State | None]:
        """The shifted inputs where tokens stand among padding, beside other documents or behind those of earlier calls.

        Shapes:
            x: [B, L, inputs, dim] -> `inputs` of [B, L, dim]
        """
        batch, length = x.shape[:2]
        ahead = 0 if self.causal else self.reach
        steps = torch.arange(length, device=x.device).expand(batch, length)
        count = steps + 1 if valid is None else valid.long().cumsum(1)
        rows = torch.arange(batch, device=x.device).unsqueeze(1)
        # The real tokens of a row side by side, behind the newest of those before; padding goes to a last place.
        blank = length + ahead + 1
        places = self.reach + (steps if valid is None else torch.where(valid, count - 1, blank - 1))
        own = segments if segments is not None else torch.zeros_like(steps)
        old_x = x.new_zeros(batch, self.reach, *x.shape[2:]) if before is None else before["x"].to(x.dtype)
        old = own.new_full((batch, self.reach), -1) if before is None else before["segments"]
        whole = torch.cat((old_x, x.new_zeros(batch, blank, *x.shape[2:])), 1).index_put((rows, places), x)
        documents = torch.cat((old, own.new_full((batch, blank), -1)), 1).index_put((rows, places), own)
        at = self.reach + (count - 1).clamp(min=0)
        parts = []
        for start, stop, by in self.pieces:
            same = documents[rows, at + by] == own
            parts.append(torch.where(same[..., None, None], whole[rows, at + by][..., start:stop], 0))
        moved = torch.cat(parts, -1).unbind(-2)
        if before is None:
            return moved, None
        newest = count[:, -1:] + torch.arange(self.reach, device=x.device)
        return moved, {"x": whole[rows, newest], "segments": documents[rows, newest]}

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """The newest tokens, none yet, and the body's own."""
        if not self.causal:
            raise ConfigError("cannot decode step by step: layer 'token_shift' looks ahead", hint="set causal=True")
        like = next(self.body.parameters(), torch.empty(0))
        zeros = like.new_zeros(batch, self.reach, self.inputs, self.dim)
        segments = torch.full((batch, self.reach), -1, dtype=torch.long, device=zeros.device)
        return {**super().init_state(batch, max_len, streams), "before": {"x": zeros, "segments": segments}}
