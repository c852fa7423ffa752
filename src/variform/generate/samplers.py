"""Samplers: pure functions from logits to logits, which combine as a list, and the draw at the end.

A token that a sampler rules out gets -inf, so that the softmax renormalises the rest. None of those here rules out
the most probable token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from variform.errors import ConfigError

Filter = Callable[[Tensor], Tensor]
"""From logits [B, V] to logits [B, V]."""


def temperature(logits: Tensor, value: float) -> Tensor:
    """Divide the logits by `value`: below 1 sharper, above 1 flatter.

    Shapes:
        logits: [B, V] -> [B, V]
    """
    return logits / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` most probable tokens (Fan et al. 2018, arXiv:1805.04833); ties with the last of them stay too.

    Shapes:
        logits: [B, V] -> [B, V]
    """
    if k >= logits.shape[-1]:
        return logits
    least = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most probable tokens that together reach `p` (Holtzman et al. 2020, arXiv:1904.09751).

    Shapes:
        logits: [B, V] -> [B, V]
    """
    if p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    chances = ordered.softmax(-1)
    # A token is needed when those before it do not reach p by themselves; the first always is.
    needed = chances.cumsum(-1) - chances < p
    return logits.masked_fill(~torch.empty_like(needed).scatter_(-1, order, needed), -torch.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens at least `p` times as probable as the most probable one (Nguyen et al. 2024, arXiv:2407.01082).

    Shapes:
        logits: [B, V] -> [B, V]
    """
    chances = logits.softmax(-1)
    return logits.masked_fill(chances < p * chances.amax(-1, keepdim=True), -torch.inf)


def chain(heat: float = 1.0, k: int | None = None, p: float | None = None, least: float | None = None) -> list[Filter]:
    """The samplers that do something, in the order temperature, top-k, top-p, min-p."""
    found: list[Filter] = []
    if heat != 1.0:
        found.append(partial(temperature, value=heat))
    if k is not None:
        found.append(partial(top_k, k=k))
    if p is not None:
        found.append(partial(top_p, p=p))
    if least is not None:
        found.append(partial(min_p, p=least))
    return found


def filtered(logits: Tensor, filters: Sequence[Filter]) -> Tensor:
    """The logits after all filters, [B, V] -> [B, V].

    Raises:
        ConfigError: a filter gives another shape, which would be tokens of another vocabulary.
    """
    for apply in filters:
        found = apply(logits)
        if found.shape != logits.shape:
            message = f"a filter gave logits of shape {list(found.shape)} for those of {list(logits.shape)}"
            raise ConfigError(message, path="filters", hint="give tokens that are ruled out the logit -inf")
        logits = found
    return logits


def draw(logits: Tensor, filters: Sequence[Filter], greedy: bool, generator: torch.Generator | None) -> Tensor:
    """Apply `filters` and take the most probable token, or draw one.

    Half-precision logits are drawn from in float32.

    Shapes:
        logits: [B, V] -> [B] integers
    """
    if not greedy and logits.element_size() < 4:
        logits = logits.float()
    logits = filtered(logits, filters)
    if greedy:
        return logits.argmax(-1)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
