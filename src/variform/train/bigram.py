"""The bigram model: what a language model must beat to be worth its parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from variform.train.data import pairs, val_starts
from variform.train.sections import DataSection


def bigram_loss(train: Tensor, validation: Tensor, vocab_size: int, data: DataSection) -> float:
    """Mean cross-entropy, in nats a character, of a bigram model on the characters that models are validated on.

    p(b | a) = (count(a b) + 1) / (count(a) + vocab_size), counted in the training text.

    Args:
        train: [N] ids of the training text.
        validation: [M] ids of the validation text.
        vocab_size: number of different characters.
        data: how the validation text is cut.
    """
    counts = torch.bincount(train[:-1] * vocab_size + train[1:], minlength=vocab_size**2)
    table = counts.view(vocab_size, vocab_size).double() + 1.0
    chances = (table / table.sum(1, keepdim=True)).log()
    x, y = pairs(validation, val_starts(validation, data), data.context)
    return float(-chances[x, y].mean())
