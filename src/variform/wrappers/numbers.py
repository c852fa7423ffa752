"""Predicting tokens and numbers at once, and generating both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.errors import ConfigError, ShapeError
from variform.generate.readers import evaluating
from variform.generate.samplers import chain, draw
from variform.parts.kinds import State
from variform.stack.model import Transformer
from variform.wrappers.reading import Reading


class Mixed(NamedTuple):
    """Tokens and numbers of a sequence: [B, L] ids, [B, L] floats (NaN where there is none), [B, L] bool."""

    ids: Tensor
    numbers: Tensor
    is_number: Tensor


def mixed_errors(
    logits: Tensor, predicted: Tensor, ids: Tensor, numbers: Tensor, number_id: int, counted: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropies of the tokens and squared errors of the numbers among them, zero where nothing counts.

    Shapes:
        logits: [B, L, V]; predicted, ids, numbers, counted: [B, L] -> [B, L], [B, L]

    Args:
        logits: of the tokens.
        predicted: the numbers, should there be some.
        ids: the tokens that were there.
        numbers: the numbers that were; what stands at other tokens does not matter.
        number_id: the token that stands for numbers.
        counted: which tokens count.
    """
    wanted = torch.where(counted, ids, 0).long()
    cross = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
    told = counted & (ids == number_id)
    squared = (predicted - torch.where(told, numbers, 0.0).to(predicted.dtype)).square()
    return torch.where(counted, cross, 0.0), torch.where(told, squared, 0.0)


def generate_mixed(
    reading: Reading, ids: Tensor, numbers: Tensor, steps: int, number_id: int, draw: Callable[[Tensor], Tensor]
) -> Mixed:
    """Continue tokens and numbers.

    Args:
        reading: answers with logits and, behind them, the number.
        ids: [B, L].
        numbers: [B, L].
        steps: how many tokens to add.
        number_id: the token that stands for numbers.
        draw: from logits [B, V] to tokens [B].
    """
    made: list[Tensor] = []
    told: list[Tensor] = []
    for _ in range(steps):
        answer = reading.read(ids, numbers)[:, -1]
        ids, numbers = draw(answer[:, :-1]).unsqueeze(1), answer[:, -1:]
        made.append(ids)
        told.append(numbers)
    if not made:
        ids, numbers = ids[:, :0], numbers[:, :0]
    else:
        ids, numbers = torch.cat(made, 1), torch.cat(told, 1)
    there = ids == number_id
    return Mixed(ids, torch.where(there, numbers, torch.nan), there)


class MixedReader:
    """Reads tokens and numbers chunk by chunk with a decode state."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def init_state(self, batch: int, max_len: int, **streams: Any) -> State:
        """An empty state."""
        return self.model.init_state(batch, max_len, **streams)

    def __call__(self, *inputs: Tensor, state: State) -> Any:
        """The answers of a chunk, and the new state."""
        ids, numbers = inputs
        return self.model(ids, numbers=numbers, state=state)


class NextTokensAndNumbers(nn.Module):
    """Trains a causal model of tokens and numbers to predict both (xVal, arXiv:2310.02989): CE + weight * (y - y')^2.

    The model embeds with a `NumberEmbedding` and answers with logits and, behind them, a number: a `JoinedHead` of an
    `LMHead` and a `LinearHead(outputs=1)`.

    Shapes:
        ids, numbers: [B, L] -> the loss, a scalar

    Args:
        model: the model.
        number_id: the token that stands for numbers.
        weight: factor on the squared errors.

    Raises:
        ConfigError: a model that sees what it should predict.
    """

    def __init__(self, model: Transformer, number_id: int, weight: float = 1.0) -> None:
        super().__init__()
        if not model.causal:
            raise ConfigError("the next token cannot be learned by a model that sees it: causal=True is needed")
        if "numbers" not in model.reads_below:
            raise ConfigError("no part of the model reads numbers: embed with a NumberEmbedding", path="model")
        self.model = model
        self.number_id = number_id
        self.weight = weight

    def forward(self, ids: Tensor, numbers: Tensor, valid: Tensor | None = None) -> Tensor:
        """The mean over the targets of both errors added up.

        Args:
            ids: token ids.
            numbers: floats at the tokens that are numbers; what stands elsewhere does not matter.
            valid: [B, L] bool, False at padding.
        """
        if ids.dim() != 2 or ids.shape[1] < 2:
            raise ShapeError(f"rows of at least two tokens are needed, [batch, length]; got {list(ids.shape)}")
        seen = None if valid is None else valid[:, :-1]
        answer = self.model(ids[:, :-1], numbers=numbers[:, :-1], valid=seen)
        counted = torch.ones_like(ids[:, 1:], dtype=torch.bool) if valid is None else valid[:, 1:]
        cross, squared = mixed_errors(
            answer[..., :-1], answer[..., -1], ids[:, 1:], numbers[:, 1:], self.number_id, counted
        )
        return (cross + self.weight * squared)[counted].mean()

    @torch.no_grad()
    def generate(
        self, ids: Tensor, numbers: Tensor, steps: int, temperature: float = 1.0, use_cache: bool = True
    ) -> Mixed:
        """Continue tokens and numbers, [B, L] -> [B, steps]; at temperature 0 by the most probable token."""
        model = self.model
        with evaluating(model):
            reading = Reading(
                lambda ids, numbers: model(ids, numbers=numbers),
                model.max_seq_len,
                MixedReader(model) if use_cache else None,
                ids.shape[1] + steps - 1,
            )
            filters, greedy = chain(temperature or 1.0), temperature == 0
            draws = partial(draw, filters=filters, greedy=greedy, generator=None)
            return generate_mixed(reading, ids, numbers, steps, self.number_id, draws)
