"""Learned tokens that come again and again among the real ones."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.parts.kinds import Output, Stack, State, Streams, call
from variform.stack.registers import pairs_among, refuse_pairs

Size = Annotated[int, Field(gt=0)]


@register("interspersed")
class InterspersedStack(Stack):
    """Runs a stack on [M; x_0 .. x_{m-1}; M; x_m .. x_{2m-1}; ...] and gives x's part back, with learned tokens M.

    Memory tokens (Burtsev et al. 2020, arXiv:2006.11527) before every m-th token, so that in a causal model what comes
    later can read what an earlier memory made of the tokens before it. Groups are counted over the real tokens of a
    row; memories are always attended, whatever a mask of pairs of tokens says, take positions of their own, and use up
    nothing of a decode state's room.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        stack: what runs.
        count: how many tokens M is.
        every: how many tokens stand between one M and the next.
        dim: features.
        std: standard deviation of the initial tokens.

    Raises:
        ShapeError: segments are given, which say nothing about the added tokens, or pairs together with a decode state.
    """

    can: ClassVar[Can] = Can(packed=False)
    reads: ClassVar[frozenset[str]] = frozenset({"positions", "valid"})
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        stack: Stack,
        count: Size,
        every: Size,
        dim: Size = INHERIT,
        std: Annotated[float, Field(ge=0)] = 0.02,
    ) -> None:
        super().__init__()
        self.stack = stack
        self.count = count
        self.every = every
        self.std = std
        self.tokens = nn.Parameter(torch.empty(count, dim))
        self.reset_parameters()

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The stack's sequences are longer than the model's."""
        longest = facts.get("max_seq_len")
        return (
            {}
            if slot != "stack" or longest is None
            else {"max_seq_len": longest + facts["count"] * -(-longest // facts["every"])}
        )

    def reset_parameters(self) -> None:
        """Normal tokens."""
        nn.init.normal_(self.tokens, 0.0, self.std)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Put the tokens in, run the stack, take them out."""
        refuse_pairs(streams)
        cache, valid = streams.get("cache"), streams.get("valid")
        published: dict[str, Any] = {}
        even = valid is None if cache is None else cache["start"] is not None
        if even:
            start = 0 if cache is None else cache["start"]
            x, kept, inner = self._even(x, streams, start)
        else:
            x, kept, inner = self._ragged(x, streams)
        y = call(self.stack, x, {**streams, **inner}, "stack", published)[:, kept]
        if cache is not None:
            published["state"]["room"] = streams["state"]["room"]
        return (y, published) if published else y

    def _even(self, x: Tensor, streams: Streams, start: int) -> tuple[Tensor, Any, dict[str, Any]]:
        """All rows are at token `start`: tokens are put in where groups begin, and nowhere else."""
        count, length = self.count, x.shape[1]
        places: list[int] = []
        tokens: list[int] = []  # of each place, the token at or behind it
        for token in range(length):
            if (start + token) % self.every == 0:
                places += range(count)
                tokens += [token] * count
            places.append(count + token)
            tokens.append(token)
        order, of = (torch.tensor(entries, device=x.device) for entries in (places, tokens))
        kept = torch.tensor([place for place, source in enumerate(places) if source >= count], device=x.device)
        memory = self.tokens.to(x.dtype).expand(x.shape[0], -1, -1)
        wide = torch.cat((memory, x), 1).index_select(1, order)
        positions = streams.get("positions")
        inner: dict[str, Any] = {"positions": None, "valid": None}
        inner |= pairs_among(streams, torch.where(order < count, -1, of), length)
        if positions is not None:
            own = positions[..., of] + count * ((start + of) // self.every + 1)
            ahead = torch.where(order < count, count - order, 0)
            inner["positions"] = own - ahead
        cache = streams.get("cache")
        if cache is not None:
            first = start + count * -(-start // self.every)
            inner["cache"] = self._cache(cache, first, None)
        return wide, kept, inner

    def _ragged(self, x: Tensor, streams: Streams) -> tuple[Tensor, Any, dict[str, Any]]:
        """Rows are at different tokens: room is left before each token, and used where a group begins in its row."""
        count, cache, valid = self.count, streams.get("cache"), streams.get("valid")
        batch, length = x.shape[:2]
        real = torch.ones_like(x[..., 0], dtype=torch.bool) if valid is None else valid
        index = (real.long().cumsum(1) - 1).clamp(min=0) if cache is None else cache["slots"]
        group = index // self.every
        begins = real & (index % self.every == 0)
        memory = self.tokens.to(x.dtype).expand(batch, length, -1, -1)
        wide = torch.cat((memory, x.unsqueeze(2)), 2).flatten(1, 2)
        steps = torch.arange(count + 1, device=x.device)
        used = torch.where(steps < count, begins.unsqueeze(-1), real.unsqueeze(-1)).flatten(1)
        positions = streams.get("positions")
        if positions is None:
            positions = torch.arange(length, device=x.device)
        own = positions.expand(batch, length) + count * (group + 1)
        places = (own.unsqueeze(-1) - count + steps).flatten(1).clamp(min=0)
        inner: dict[str, Any] = {"positions": places, "valid": used}
        token = torch.arange(length, device=x.device).unsqueeze(-1)
        inner |= pairs_among(streams, torch.where(steps < count, -1, token).flatten(), length)
        if cache is not None:
            place = (index + count * (group + 1)).unsqueeze(-1) - count + steps
            slots = torch.where(used, place.flatten(1), self._room(streams["state"]["room"]))
            inner["cache"] = self._cache(cache, None, slots)
        return wide, slice(count, None, count + 1), inner

    def _room(self, tokens: int) -> int:
        """The places that so many tokens need, memories among them."""
        return tokens + self.count * -(-tokens // self.every)

    def _cache(self, cache: Any, start: int | None, slots: Tensor | None) -> dict[str, Any]:
        """The plan of the whole sequence: which token stands at or behind each place, or which memory before it."""
        count, attended = self.count, cache["length"]
        length = self._room(attended)
        positions, valid = cache["positions"], cache["valid"]
        places = torch.arange(length, device=positions.device)
        group, rest = places // (self.every + count), places % (self.every + count)
        token = group * self.every + (rest - count).clamp(min=0)
        own = positions[..., token] + count * group + torch.where(rest < count, rest, count)
        return {
            **cache,
            "start": start,
            "slots": slots,
            "length": length,
            "positions": own,
            "valid": None if valid is None else valid[:, token],
        }

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """The stack's own, with room for the added tokens."""
        return {"stack": self.stack.init_state(batch, self._room(max_len), streams), "room": max_len}
