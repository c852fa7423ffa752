"""Stacks that run several times: recycling, where a pass reads what the one before made, and looping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.kinds import Output, Stack, State, Streams, call
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("recycled")
class RecycledStack(Stack):
    """Recycling (AlphaFold2, Jumper et al. 2021): y_1 = stack(x), y_k = stack(x + W sg(y_{k-1})); the last is given.

    sg stops the gradient, so that only the last pass is kept for the backward pass. In training the number of passes
    is drawn from 1..train_passes for each call (torch's generator), else it is `passes`; the stream `passes` sets it
    for one call. With a decode state every pass has keys of its own, so that cached decoding is the same function.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        stack: what runs.
        passes: how many outside of training.
        train_passes: most passes in training; `passes` in every call when None.
        dim: features.
        init_std: standard deviation of the initial W; torch's default when None.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"passes"})

    def __init__(
        self,
        stack: Stack,
        passes: Size = 1,
        train_passes: Size | None = None,
        dim: Size = INHERIT,
        init_std: float | None = INHERIT,
    ) -> None:
        super().__init__()
        self.stack = stack
        self.passes = passes
        self.train_passes = train_passes
        self.project = Linear(dim, dim, bias=False, std=init_std)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Pass by pass; all but the last without gradients."""
        count = passes_asked(streams, self.passes)
        drawn = self.training and self.train_passes is not None and streams.get("passes") is None
        if drawn:
            assert self.train_passes is not None
            return self._drawn(x, streams, self.train_passes)
        published: dict[str, Any] = {}
        y = torch.zeros_like(x)
        for place in range(count):
            last = place + 1 == count
            new: dict[str, Any] = {"state": published["state"]} if "state" in published else {}
            with torch.set_grad_enabled(torch.is_grad_enabled() and last):
                # Before the first pass nothing is added; of a single one W has a gradient all the same, of zeros.
                x_now = x + self.project(y.detach()) if place or last else x
                y = call(self.stack, x_now, streams, f"passes.{place}", new)
            published = new if last else {"state": new["state"]} if "state" in new else {}
        return (y, published) if published else y

    def _drawn(self, x: Tensor, streams: Streams, most: int) -> Output:
        drawn = torch.randint(most, ())
        published: dict[str, Any] = {}
        y = torch.zeros_like(x)
        with torch.no_grad():
            if (
                torch.compiler.is_compiling() or type(drawn) is not Tensor
            ):  # one graph for every number: passes that were not drawn change nothing
                drawn = drawn.to(x.device)
                for place in range(most - 1):
                    y = torch.where(place < drawn, self._again(x, y, streams, {}), y)
            else:
                for _ in range(int(drawn)):
                    y = self._again(x, y, streams, {})
        y = self._again(x, y, streams, published)
        return (y, published) if published else y

    def _again(self, x: Tensor, y: Tensor, streams: Streams, published: dict[str, Any]) -> Tensor:
        return call(self.stack, x + self.project(y.detach()), streams, "passes.0", published)

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """The stack's own, once a pass; the stream `passes` says how many."""
        count = passes_asked(streams, self.passes)
        return {f"passes.{place}": self.stack.init_state(batch, max_len, streams) for place in range(count)}


@register("looped")
class LoopedStack(Stack):
    """A looped stack (Ouro, Zhu et al. 2025, arXiv:2510.25741): x_i = stack(x_{i-1}), x_0 = x, with a gate for exits.

    After pass i a token leaves with probability p_i = s(g_i) prod_{j<i} (1 - s(g_j)), g_i = w x_i, s the logistic
    function, and with the last pass at the latest. The result is x of the last pass, and the gate is read by objectives
    alone (`gate(x_i)`); or, with `result="mean"`, sum_i p_i x_i, by which any objective trains the gate. With `exit`, a
    token's result is that of the first pass by which it has left with at least this probability. All passes run either
    way: later tokens attend to the keys of each, so that cached decoding is the same function, token by token.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        stack: what runs; one that normalises what it gives (a post-norm) keeps loops stable.
        passes: how many; the stream `passes` sets another number for one call.
        exit: the probability of having left at which a token's result is read off; None for never.
        result: what is given without it, the "last" pass or the "mean" over them.
        dim: features.
        init_std: standard deviation of the initial gate; torch's default when None.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"passes", "exit"})

    def __init__(
        self,
        stack: Stack,
        passes: Size = 4,
        exit: Annotated[float, Field(gt=0, le=1)] | None = None,
        result: Literal["last", "mean"] = "last",
        dim: Size = INHERIT,
        init_std: float | None = INHERIT,
    ) -> None:
        super().__init__()
        self.stack = stack
        self.passes = passes
        self.exit = exit
        self.result = result
        self.gate = Linear(dim, 1, bias=False, std=init_std)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Loop, and read each token off where it leaves."""
        count = passes_asked(streams, self.passes)
        threshold = self.exit if streams.get("exit") is None else streams["exit"]
        published: dict[str, Any] = {}
        found: list[Tensor] = []
        for place in range(count):
            x = call(self.stack, x, streams, f"passes.{place}", published)
            found.append(x)
        if threshold is not None:
            x = self._let_out(found, threshold)
        elif self.result == "mean":
            weights = torch.cat(self.leaving(found), -1)
            x = (torch.stack(found, -1) @ weights.unsqueeze(-1)).squeeze(-1)
        return (x, published) if published else x

    def leaving(self, passes: Sequence[Tensor]) -> list[Tensor]:
        """The probability p_i with which each token leaves after each pass; they add up to 1.

        Shapes:
            passes: [B, L, dim] each -> [B, L, 1] each
        """
        found: list[Tensor] = []
        stay = passes[0].new_zeros(())
        for x in passes[:-1]:
            gate = self.gate(x)
            found.append((stay + F.logsigmoid(gate)).exp())
            stay = stay + F.logsigmoid(-gate)
        return [*found, stay.exp().expand_as(passes[0][..., :1])]

    def _let_out(self, passes: Sequence[Tensor], threshold: float) -> Tensor:
        """The features of the first pass by which a token has left with at least this probability."""
        chances = self.leaving(passes)
        y, left, done = passes[0], torch.zeros_like(chances[0]), torch.zeros_like(chances[0], dtype=torch.bool)
        for x, chance in zip(passes, chances, strict=True):
            y = torch.where(done, y, x)
            left = left + chance
            done = left >= threshold
        return y

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """The stack's own, once a pass; the stream `passes` says how many."""
        count = passes_asked(streams, self.passes)
        return {f"passes.{place}": self.stack.init_state(batch, max_len, streams) for place in range(count)}


def passes_asked(streams: Streams, usual: int) -> int:
    """How often to run: what the call asks for, else what the decode state was made for, else what is usual.

    Raises:
        ShapeError: a number that is none, or another than the decode state was made for.
    """
    asked, state = streams.get("passes"), streams.get("state")
    held = usual if state is None else sum(name.startswith("passes.") for name in state)
    if asked is None:
        return held
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise ShapeError(f"passes is a number of at least 1, not {asked!r}")
    if state is not None and asked != held:
        raise ShapeError(f"the decode state holds {held} passes, and {asked} were asked for: init_state(passes=...)")
    return asked
