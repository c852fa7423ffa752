"""Text from a model: a stream of any length from a prompt, cached where the model can decode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from variform.errors import ConfigError
from variform.generate import stream
from variform.train.data import SAMPLES, mixed_seed
from variform.train.sections import SampleSection
from variform.train.vocabulary import Characters


def sample_text(model: Any, vocabulary: Characters, section: SampleSection, seed: int, step: int) -> str:
    """The prompt and its continuation; the same for the same weights, seed and step.

    A sample longer than the model's `max_seq_len` is written in pieces, each continuing the last half of the one
    before.

    Raises:
        ConfigError: the prompt has characters outside the vocabulary.
    """
    ids = vocabulary.encode(section.prompt)
    device = next(p.device for p in model.parameters())
    draw = torch.Generator(device).manual_seed(mixed_seed(seed, SAMPLES, step) >> 1)
    limit = getattr(model, "max_seq_len", None)
    text, left = list(ids.tolist()), section.tokens
    if limit is not None:
        ids = ids[-max(1, limit // 2) :]
    while left:
        count = left if limit is None else min(left, limit - ids.shape[0] + 1)
        new = torch.stack(list(continuation(model, ids, count, section.temperature, section.top_k, draw))).cpu()
        text += new.tolist()
        left -= count
        ids = torch.cat((ids, new))[-max(1, (limit or 2) // 2) :]
    return vocabulary.decode(text)


def continuation(
    model: Any, ids: Tensor, count: int, temperature: float, top_k: int | None, generator: torch.Generator
) -> Iterator[Tensor]:
    """New tokens one by one, from a decode state where there can be one, else by reading everything again each time."""
    cached = can_cache(model)
    return stream(model, ids, count, temperature=temperature, top_k=top_k, generator=generator, use_cache=cached)


def can_cache(model: Any) -> bool:
    """Whether a model has a decode state: all its parts keep one, and its weights are not sharded over processes."""
    if any(isinstance(p, DTensor) for p in model.parameters()):
        return False  # buffers are made in the likeness of the weights, and keys and values are not sharded
    try:
        model.init_state(1, 1)
    except ConfigError:
        return False
    return True
