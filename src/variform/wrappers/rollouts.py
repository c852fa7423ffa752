"""Predictions of several steps ahead: windows, means over what counts, weights of steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from variform.errors import ConfigError, ShapeError
from variform.parts.embedding.module import ModuleEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.stack.model import Transformer


def windows(x: Tensor, count: int) -> Tensor:
    """What stands r = 0 .. count - 1 places further on, zeros (False) beyond the end: [B, L, ..] -> [R, B, L, ..]."""
    length = x.shape[1]
    longer = torch.cat((x, x.new_zeros(x.shape[0], count - 1, *x.shape[2:])), 1)
    return torch.stack([longer[:, r : r + length] for r in range(count)])


def step_means(losses: Tensor, counted: Tensor) -> Tensor:
    """The mean of each step over what counts: [R, B, L], [R, B, L] bool -> [R]."""
    return torch.where(counted, losses, 0.0).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)


def shares(weights: Sequence[float] | None, steps: int) -> Tensor:
    """Weights of steps that sum to 1, alike by default: [R].

    Raises:
        ConfigError: there are more or fewer than steps, or none is positive.
    """
    if weights is None:
        return torch.full((steps,), 1.0 / steps)
    if len(weights) != steps:
        raise ConfigError(f"one for each of the {steps} steps", path="weights", value=tuple(weights))
    if sum(weights) <= 0:
        raise ConfigError("the sum must be positive", path="weights", value=tuple(weights))
    found = torch.tensor(tuple(float(weight) for weight in weights))
    return found / found.sum()


def checked_model(model: nn.Module) -> Transformer:
    """A causal model of tokens with a head.

    Raises:
        ConfigError: it is another.
    """
    if not isinstance(model, Transformer) or model.vocab_size is None or model.head is None:
        raise ConfigError("a model of tokens with a head is needed", path="model", value=type(model).__name__)
    if not model.causal:
        raise ConfigError("what comes must not be seen: causal=True is needed", path="model")
    return model


def checked_ids(ids: Tensor, shortest: int) -> None:
    """Raise ShapeError unless ids are rows of at least so many tokens."""
    if ids.dim() != 2 or ids.shape[1] < shortest:
        raise ShapeError(f"rows of at least {shortest} tokens are needed, [batch, length]; got {list(ids.shape)}")


def token_vectors(model: Transformer, ids: Tensor) -> Tensor:
    """The vectors of tokens without anything added, [B, L] -> [B, L, d]."""
    for part in model.embedding.modules() if model.embedding is not None else ():
        if isinstance(part, ModuleEmbedding):
            found: Tensor = part.module(ids)
            return found
        if isinstance(part, TokenEmbedding):
            x = nn.functional.embedding(ids, part.weight)
            x = nn.functional.normalize(x, dim=-1) if part.unit else x
            return x * part.factor
    raise ConfigError("the embedding has no vectors of tokens", path="model")


def logits_of(model: Transformer, hidden: Tensor, frozen: bool = False) -> Tensor:
    """The head's answer to hidden states [.., dim]; frozen, without gradients of its parameters."""
    head = model.head
    assert head is not None
    if not frozen:
        return head(hidden, {})
    fixed = {name: param.detach() for name, param in head.named_parameters()}
    found: Tensor = functional_call(head, fixed, (hidden, {}))
    return found
