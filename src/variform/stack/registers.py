"""Learned tokens that pass through a stack beside the real ones."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import ConfigError, Problem, ShapeError
from variform.ops.masks.widened import widened_bias, widened_mask
from variform.parts.kinds import Output, Stack, State, Streams, call

Size = Annotated[int, Field(gt=0)]


@register("registers")
class RegisterStack(Stack):
    """Runs a stack on [tokens; x] and gives x's part back: y = stack([M; x])[M:], with learned tokens M.

    Memory tokens (Burtsev et al. 2020, arXiv:2006.11527), or registers of a vision transformer (Darcet et al. 2023,
    arXiv:2309.16588). They are always attended: masks and biases of pairs are of x's tokens, or, if they are as large
    as [tokens; x], of both. In front they take the positions 0..count-1 and the others move on, so that every token of
    a causal model sees them; behind they take the last ones. In decoding those in front are read with the first chunk,
    and use up nothing of the state's room.

    With `keep="added"` the result is the added tokens' part, y = stack([M; x])[:M]: class tokens, which answer for the
    whole sequence (BERT, Devlin et al. 2018, arXiv:1810.04805).

    Shapes:
        x: [B, L, dim] -> [B, L, dim], or [B, count, dim] where the added tokens are kept

    Args:
        stack: what runs.
        count: how many tokens are added.
        side: "front" or "back" of the others.
        dim: features.
        std: standard deviation of the initial tokens.
        keep: whose part is given back, the "others" or the "added".
        causal: whether the stack is.

    Raises:
        ShapeError: segments are given, which say nothing about the added tokens, or pairs together with a decode state.
        ConfigError: a decode state is asked for where tokens stand behind, or are kept.
    """

    can: ClassVar[Can] = Can(packed=False)
    reads: ClassVar[frozenset[str]] = frozenset({"positions", "valid"})
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        stack: Stack,
        count: Size,
        side: Literal["front", "back"] = "front",
        dim: Size = INHERIT,
        std: Annotated[float, Field(ge=0)] = 0.02,
        keep: Literal["others", "added"] = "others",
        causal: bool = inherit(False),
    ) -> None:
        super().__init__()
        self.stack = stack
        self.count = count
        self.front = side == "front"
        self.keep = keep
        self.std = std
        self.tokens = nn.Parameter(torch.empty(count, dim))
        self.reset_parameters()

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What stands behind changes place with each new token, and what is kept depends on all of them."""
        steps = args.get("side") != "back" and args.get("keep") != "added"
        return Can(packed=False, decode=steps)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Kept tokens see the others."""
        if facts["keep"] == "added" and facts["side"] == "front" and facts["causal"]:
            message = "tokens in front see none of the others in a causal stack: what is kept would not depend on them"
            return [Problem("keep", message, "added", "put them at the back, or take a stack that is not causal")]
        return []

    @classmethod
    def publishes(cls, args: Facts) -> tuple[str, ...]:
        """Kept tokens have positions of their own, and are all real."""
        return ("positions", "valid") if args.get("keep") == "added" else ()

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The stack's sequences are longer than the model's."""
        longest = facts.get("max_seq_len")
        return {} if slot != "stack" or longest is None else {"max_seq_len": longest + facts["count"]}

    def reset_parameters(self) -> None:
        """Normal tokens."""
        nn.init.normal_(self.tokens, 0.0, self.std)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Add the tokens, run the stack, cut them off."""
        refuse_pairs(streams)
        length, cache = x.shape[1], streams.get("cache")
        published: dict[str, Any] = {}
        if cache is not None and not cache["first"]:  # they were read before
            y = call(self.stack, x, {**streams, **self._behind(streams, cache)}, "stack", published)
            return (y, published) if published else y
        tokens = self.tokens.to(x.dtype).expand(x.shape[0], -1, -1)
        whole = torch.cat((tokens, x) if self.front else (x, tokens), 1)
        whole = call(self.stack, whole, self._widened(streams, length, x.device), "stack", published)
        watch = streams.get("watch")
        if watch is not None:
            watch.leaves(self, whole)
        if self.keep == "added":
            y = whole[:, : self.count] if self.front else whole[:, length:]
            published["positions"] = None
            published["valid"] = torch.ones_like(y[..., 0], dtype=torch.bool)
        else:
            y = whole[:, self.count :] if self.front else whole[:, :length]
        return (y, published) if published else y

    def _widened(self, streams: Streams, length: int, device: torch.device) -> Streams:
        positions, valid, cache = streams.get("positions"), streams.get("valid"), streams.get("cache")
        pads = (self.count, 0) if self.front else (0, self.count)
        if positions is not None:
            added = torch.arange(self.count, device=positions.device).expand(*positions.shape[:-1], self.count)
            if self.front:
                positions = torch.cat((added, positions + self.count), -1)
            else:
                positions = torch.cat((positions, positions.amax(-1, keepdim=True) + 1 + added), -1)
        valid = None if valid is None else F.pad(valid, pads, value=True)
        wide = {**streams, "positions": positions, "valid": valid}
        place = torch.arange(length, device=device)
        wide |= pairs_among(streams, F.pad(place, pads, value=-1), length)
        return wide if cache is None else {**wide, "cache": self._cache(cache, first=True)}

    def _behind(self, streams: Streams, cache: Any) -> dict[str, Any]:
        """Positions and plan of tokens that stand behind those which were read before."""
        return {"positions": streams["positions"] + self.count, "cache": self._cache(cache, first=False)}

    def _cache(self, cache: Any, first: bool) -> dict[str, Any]:
        """The plan of the whole sequence: slots and positions move on, the first slots hold the added tokens."""
        count, start, slots = self.count, cache["start"], cache["slots"]
        if slots is not None:
            slots = slots + count
            if first:
                slots = torch.cat((torch.arange(count, device=slots.device).expand(slots.shape[0], -1), slots), 1)
        positions, valid = cache["positions"], cache["valid"]
        added = torch.arange(count, device=positions.device).expand(*positions.shape[:-1], -1)
        return {
            **cache,
            "start": start if start is None or first else start + count,
            "slots": slots,
            "length": cache["length"] + count,
            "positions": torch.cat((added, positions + count), -1),
            "valid": None if valid is None else F.pad(valid, (count, 0), value=True),
        }

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """The stack's own, with room for the added tokens."""
        if not self.front or self.keep == "added":
            message = "a stack with tokens behind the others, or that gives the added tokens back, does not decode"
            raise ConfigError(message, hint="run the whole sequence at once, without a state")
        return {"stack": self.stack.init_state(batch, max_len + self.count, streams)}


def pairs_among(streams: Streams, order: Tensor, length: int) -> dict[str, Any]:
    """The streams `mask` and `bias` over the tokens and what was put among them.

    Shapes:
        order: [N], the token of each place, or -1 at added ones

    Args:
        streams: the tokens' own.
        order: which place is whose.
        length: how many tokens there are.
    """
    mask, bias = streams.get("mask"), streams.get("bias")
    wide: dict[str, Any] = {}
    if mask is not None:
        wide["mask"] = widened_mask(mask, order, length, streams.get("positions"))
    if bias is not None:
        wide["bias"] = widened_bias(bias, order, length)
    return wide


def refuse_pairs(streams: Streams) -> None:
    """Refuse what says which tokens belong together, and nothing about added ones.

    Raises:
        ShapeError: naming the stream.
    """
    steps = () if streams.get("cache") is None else ("mask", "bias")
    for name in ("segments", "token_gains", *steps):
        if streams.get(name) is not None:
            state = " and a decode state" if name in steps else ""
            raise ShapeError(f"{name} cannot be combined with added tokens{state}: it says nothing about them")
    condition = streams.get("condition")
    if condition is not None and condition.dim() == 3 and condition.shape[1] != 1:
        raise ShapeError("a condition by token says nothing about added tokens: give one a row, [batch, features]")
    injected = streams.get("injected")
    if injected is not None and injected.shape[1] > 1:
        raise ShapeError("injected cannot be combined with added tokens, unless it is one row [B, 1, dim] for all")
