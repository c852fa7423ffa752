"""Learned tokens that pass through a stack beside the real ones."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Can
from variform.core.registry import register
from variform.errors import ConfigError, ShapeError
from variform.parts.kinds import Output, Stack, State, Streams, call

Size = Annotated[int, Field(gt=0)]


@register("registers")
class RegisterStack(Stack):
    """Runs a stack on [tokens; x] and gives x's part back: y = stack([M; x])[M:], with learned tokens M.

    Memory tokens (Burtsev et al. 2020, arXiv:2006.11527), or registers of a vision transformer (Darcet et al. 2023,
    arXiv:2309.16588). They are always attended. In front they take the positions 0..count-1 and the others move on, so
    that every token of a causal model sees them; behind they take the last ones.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        stack: what runs.
        count: how many tokens are added.
        side: "front" or "back" of the others.
        dim: features.
        std: standard deviation of the initial tokens.

    Raises:
        ShapeError: segments or a mask of pairs are given, which say nothing about the added tokens.
        ConfigError: a decode state is asked for; decode without one.
    """

    can: ClassVar[Can] = Can(attention_mask=False, packed=False, decode=False)
    reads: ClassVar[frozenset[str]] = frozenset({"positions", "valid"})

    def __init__(
        self,
        stack: Stack,
        count: Size,
        side: Literal["front", "back"] = "front",
        dim: Size = INHERIT,
        std: Annotated[float, Field(ge=0)] = 0.02,
    ) -> None:
        super().__init__()
        self.stack = stack
        self.count = count
        self.front = side == "front"
        self.std = std
        self.tokens = nn.Parameter(torch.empty(count, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal tokens."""
        nn.init.normal_(self.tokens, 0.0, self.std)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Add the tokens, run the stack, cut them off."""
        condition = streams.get("condition")
        if condition is not None and condition.dim() == 3 and condition.shape[1] != 1:
            raise ShapeError("a condition by token says nothing about added tokens: give one a row, [batch, features]")
        for name in ("segments", "mask"):
            if streams.get(name) is not None:
                raise ShapeError(f"{name} cannot be combined with added tokens: it says nothing about them")
        injected = streams.get("injected")
        if injected is not None and injected.shape[1] > 1:
            raise ShapeError("injected cannot be combined with added tokens, unless it is one row [B, 1, dim] for all")
        length, tokens = x.shape[1], self.tokens.to(x.dtype).expand(x.shape[0], -1, -1)
        published: dict[str, Any] = {}
        whole = torch.cat((tokens, x) if self.front else (x, tokens), 1)
        whole = call(self.stack, whole, self._widened(streams), "stack", published)
        y = whole[:, self.count :] if self.front else whole[:, :length]
        return (y, published) if published else y

    def _widened(self, streams: Streams) -> Streams:
        positions, valid = streams.get("positions"), streams.get("valid")
        pads = (self.count, 0) if self.front else (0, self.count)
        if positions is not None:
            added = torch.arange(self.count, device=positions.device).expand(*positions.shape[:-1], self.count)
            if self.front:
                positions = torch.cat((added, positions + self.count), -1)
            else:
                positions = torch.cat((positions, positions.amax(-1, keepdim=True) + 1 + added), -1)
        valid = None if valid is None else F.pad(valid, pads, value=True)
        return {**streams, "positions": positions, "valid": valid}

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """There is none."""
        raise ConfigError("a stack with added tokens cannot decode step by step", hint="decode without a cache")
