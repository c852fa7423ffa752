"""What deep layers have made of a token is given to shallow ones at the next token, in several passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.errors import ConfigError, ShapeError
from variform.generate.readers import evaluating
from variform.parts.kinds import State
from variform.stack.stack import LayerStack
from variform.stack.tapped import Change, tapped
from variform.wrappers.rollouts import checked_model, logits_of
from variform.wrappers.transitions import Gated

Fuse = Callable[[Tensor, Tensor], Tensor]
"""From features of the place before and the stream here to the stream."""


class Route(NamedTuple):
    """Features go from the end of a layer to the beginning of one: counted from 1, and 1 begins at the embedding."""

    source: int
    target: int


class Passes(NamedTuple):
    """What the passes of a call gave.

    Args:
        loss: the weighted sum.
        each: the cross entropy of each pass.
        logits: [B, L, V] of each pass.
    """

    loss: Tensor
    each: list[Tensor]
    logits: list[Tensor]


class Feedback(nn.Module):
    """Trains a model to read what it made of the token before (full bandwidth transformers, arXiv:2608.08888).

    The first pass is the model's own. In each further one the features that the pass before had after layer `source`
    at token i - 1 are fused into what layer `target` reads at token i, so that all tokens are computed at once. While
    a text is written token by token, one pass is enough: the features are there already.
    Loss = CE of the first pass + weight * mean of the others' over tokens 1 and later.

    Shapes:
        ids: [B, L] -> the loss, a scalar

    Args:
        model: a causal model of the core whose layers are one plain stack.
        routes: (source, target) in layers; from the last to the first by default.
        transitions: a module for each route, from (features, stream) to the stream; `Gated` by default.
        passes: how many, in training and for prompts.
        weight: of the further passes.
        jitter: features are moved by up to so much, in training.
        decay: each pass counts less where those before erred: exp(-decay * sum max(0, loss - threshold)); None for
            none.
        threshold: nats that a pass may lose.

    Raises:
        ConfigError: another model, or values that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        routes: Sequence[tuple[int, int]] | None = None,
        transitions: Sequence[nn.Module] | None = None,
        passes: int = 2,
        weight: float = 1.0,
        jitter: float = 0.02,
        decay: float | None = None,
        threshold: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = checked_model(model)
        stack = self.model.stacks[0]
        if len(self.model.stacks) != 1 or not isinstance(stack, LayerStack) or stack.executor == "reversible":
            raise ConfigError("one plain stack of layers is needed", path="model")
        self.depth = len(stack.layers.order)
        if passes < 1:
            raise ConfigError("must be positive", path="passes", value=passes)
        chosen = [(self.depth, 1)] if routes is None else routes
        self.routes = tuple(Route(*one) for one in chosen)
        for route in self.routes:
            if not all(1 <= place <= self.depth for place in route):
                message = f"the pair {tuple(route)} is out of range, 1 to {self.depth}"
                raise ConfigError(message, path="routes", value=tuple(route))
        made = [Gated(self.model.dim) for _ in self.routes] if transitions is None else transitions
        if len(made) != len(self.routes):
            raise ConfigError(f"one for each of the {len(self.routes)} routes", path="transitions", value=len(made))
        self.transitions = nn.ModuleList(made)
        self.passes = passes
        self.weight = weight
        self.jitter = jitter
        self.decay = decay
        self.threshold = threshold

    def forward(self, ids: Tensor, valid: Tensor | None = None, **streams: Any) -> Tensor:
        """The loss.

        Args:
            ids: token ids.
            valid: [B, L] bool, False at padding.
            **streams: further inputs of the model.
        """
        counted = None if valid is None else valid[:, 1:]
        seen = None if valid is None else valid[:, :-1]
        return self.losses(ids[:, :-1], ids[:, 1:], counted, valid=seen, **streams).loss

    def losses(
        self,
        inputs: Tensor,
        targets: Tensor,
        counted: Tensor | None = None,
        *,
        passes: int | None = None,
        transition: Fuse | None = None,
        decay: float | None = None,
        threshold: float | None = None,
        **streams: Any,
    ) -> Passes:
        """The losses of all passes.

        Args:
            inputs: [B, L] token ids.
            targets: [B, L], the tokens after them.
            counted: [B, L] bool, which of them count; all by default.
            passes: another number.
            transition: another one, for all routes.
            decay: another one.
            threshold: another one.
            **streams: further inputs of the model.
        """
        counted = torch.ones_like(targets, dtype=torch.bool) if counted is None else counted
        logits = self.answers(inputs, passes, transition, **streams)
        _, there = before(streams.get("valid"), streams.get("segments"), inputs)
        each = []
        for place, one in enumerate(logits):
            # The first token gets no features; where it is the only one, there is nothing else to count.
            here = counted & there if place > 0 and inputs.shape[1] > 1 else counted
            errors = F.cross_entropy(one.transpose(1, 2), targets, reduction="none")
            each.append(torch.where(here, errors, 0.0).sum() / here.sum().clamp(min=1))
        loss = each[0]
        if len(each) > 1:
            loss = loss + self.weight * self._mean(torch.stack(each), decay, threshold)
        return Passes(loss, each, logits)

    def _mean(self, each: Tensor, decay: float | None, threshold: float | None) -> Tensor:
        decay = self.decay if decay is None else decay
        if decay is None:
            return each[1:].mean()
        excess = (each.detach() - (self.threshold if threshold is None else threshold)).clamp(min=0)
        weights = (-decay * (excess.cumsum(0) - excess)).exp()[1:]
        return (each[1:] * weights).sum() / weights.sum().clamp(min=1e-8)

    def answers(
        self, ids: Tensor, passes: int | None = None, transition: Fuse | None = None, **streams: Any
    ) -> list[Tensor]:
        """The logits of each pass, [B, L, V]."""
        count = self.passes if passes is None else passes
        if count < 1:
            raise ShapeError("at least one pass is needed")
        logits, found, _ = self.run(ids, None, transition, **streams)
        made = [logits]
        for _ in range(count - 1):
            logits, found, _ = self.run(ids, found, transition, **streams)
            made.append(logits)
        return made

    def run(
        self,
        ids: Tensor,
        found: Mapping[int, Tensor] | None,
        transition: Fuse | None = None,
        newest: bool = False,
        state: State | None = None,
        **streams: Any,
    ) -> tuple[Tensor, dict[int, Tensor], State | None]:
        """One pass: the logits, the features after each source, and the new decode state.

        Args:
            ids: [B, L].
            found: features of the pass before; None for a pass without.
            transition: another one, for all routes.
            newest: fuse the last features into the last token alone.
            state: a decode state.
            **streams: further inputs of the model.
        """
        told: dict[int, Tensor] = {}
        changes: dict[int, Change] = {}
        if found is not None:
            shifted = None if newest else before(streams.get("valid"), streams.get("segments"), ids)
            changes = {
                target - 1: partial(self._fused, found=found, target=target, transition=transition, shifted=shifted)
                for target in {route.target for route in self.routes}
            }
        tokens = changes.pop(0, None)
        # A view and no hooks: activations that are computed again in the backward pass are changed again.
        out = tapped(self.model, tokens, changes, told)(ids, hidden=True, state=state, **streams)
        hidden, state = (out, None) if state is None else out
        kept = {source: told[source - 1] for source in {route.source for route in self.routes}}
        kept[self.depth] = hidden
        return logits_of(self.model, hidden), kept, state

    def _fused(
        self,
        stream: Tensor,
        found: Mapping[int, Tensor],
        target: int,
        transition: Fuse | None,
        shifted: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """The stream with the features of the token before, where there is one."""
        for route, own in zip(self.routes, self.transitions, strict=True):
            if route.target != target:
                continue
            latents, module = found[route.source], own if transition is None else transition
            if shifted is None:
                stream = torch.cat((stream[:, :-1], module(latents[:, -1:], stream[:, -1:])), 1)
                continue
            if self.training and self.jitter:
                latents = latents + torch.empty_like(latents).uniform_(-self.jitter, self.jitter)
            place, there = shifted
            latents = latents.gather(1, place.unsqueeze(-1).expand_as(latents))
            stream = torch.where(there.unsqueeze(-1), module(latents, stream), stream)
        return stream

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        count: int,
        pick: Callable[[Tensor], Tensor],
        *,
        passes: int | None = None,
        prompt: bool = True,
        fuses: Callable[[int], bool] | None = None,
        transition: Fuse | None = None,
        eos: int | None = None,
    ) -> Tensor:
        """Go on with prompts [B, L]: the new tokens, [B, N].

        Args:
            ids: the prompts.
            count: how many tokens to add; fewer when all rows have ended.
            pick: from logits [B, V] to tokens [B].
            passes: another number, for the prompts; with 1 nothing is fused.
            prompt: whether prompts are read in several passes.
            fuses: whether features are fused into the token of a step; always by default.
            transition: another one, for all routes.
            eos: ends a row, which is then filled up with it.
        """
        passes = self.passes if passes is None else passes
        with evaluating(self):
            state: State | None = self.model.init_state(len(ids), ids.shape[1] + count)
            found: dict[int, Tensor] | None = None
            for _ in range(passes - 1 if prompt else 0):
                _, found, _ = self.run(ids, found, transition)
            logits, kept, state = self.run(ids, found, transition, state=state)
            made: list[Tensor] = []
            ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
            for step in range(count):
                token = pick(logits[:, -1])
                if eos is not None:
                    token = token.masked_fill(ended, eos)
                    ended = ended | (token == eos)
                made.append(token)
                if step == count - 1 or bool(ended.all()):
                    break
                again = kept if passes > 1 and (fuses is None or fuses(step)) else None
                logits, kept, state = self.run(token.unsqueeze(1), again, transition, True, state)
        return torch.stack(made, 1)


def before(valid: Tensor | None, segments: Tensor | None, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where the real token before each stands in its row and segment, and whether there is one.

    Shapes:
        valid: [B, L] bool; segments: [B, L] integers; ids: [B, L] -> [B, L], [B, L]
    """
    steps = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    newest = steps if valid is None else torch.where(valid, steps, -1).cummax(1).values
    place = F.pad(newest[:, :-1], (1, 0), value=-1)
    there = place >= 0
    place = place.clamp(min=0)
    return place, there if segments is None else there & (segments == segments.gather(1, place))
