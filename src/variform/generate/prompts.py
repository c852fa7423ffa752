"""Prompts in every form a caller has them, brought to one: padded on the left, so that all rows end together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from variform.errors import ShapeError, TokenIdError

Prompts = Tensor | Sequence[int] | Sequence[Sequence[int]] | Sequence[Tensor]
"""One prompt (1-D) or several: a [B, L] tensor, or a list of prompts of any lengths."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts as a model takes them.

    Args:
        ids: [B, L] integers; padding stands on the left and is 0.
        valid: [B, L] bool, False at padding; None when there is none.
        single: the caller gave one prompt without a batch axis.
    """

    ids: Tensor
    valid: Tensor | None
    single: bool


def batch_of(
    prompt: Prompts, lengths: Tensor | Sequence[int] | None, valid: Tensor | None, vocab_size: int | None, device: Any
) -> Batch:
    """Bring prompts to one form.

    Args:
        prompt: what the caller gave.
        lengths: [B], how many tokens of each row are real, of rows padded on the right.
        valid: [B, L] bool, False at padding, wherever it stands.
        vocab_size: ids must be below it; None when it is unknown.
        device: where the model is.

    Raises:
        ShapeError: an empty prompt, a wrong type or shape, an id that is no token.
    """
    rows, single = _rows(prompt)
    if rows is None:
        assert isinstance(prompt, Tensor)
        ids = prompt.to(device)
        mask = _validity(ids, lengths, valid)
    elif lengths is not None or valid is not None:
        raise ShapeError("lengths and valid belong to a padded [B, L] tensor; a list of prompts has its lengths")
    else:
        ids, mask = _padded(rows, device)
    ids, mask = _to_the_right(ids, mask)
    _check_range(ids, vocab_size)
    return Batch(ids, mask, single)


def _rows(prompt: Prompts) -> tuple[list[Tensor] | None, bool]:
    """The prompts as 1-D tensors, or None for a [B, L] tensor; and whether there is one alone."""
    if isinstance(prompt, Tensor):
        _check_integers(prompt)
        if prompt.dim() not in (1, 2) or prompt.numel() == 0:
            raise ShapeError(f"the prompt is [L] or [B, L] with at least one token, not of shape {list(prompt.shape)}")
        return (None, False) if prompt.dim() == 2 else ([prompt], True)
    given: Any = prompt
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ShapeError(f"the prompt is token ids, a tensor or a list, not {type(given).__name__}; encode text first")
    if not len(given):
        raise ShapeError("the prompt is empty: at least one token is needed to start from")
    single = all(isinstance(token, int) for token in given)
    rows = [_row(row, place) for place, row in enumerate([given] if single else given)]
    return rows, single


def _row(row: Any, place: int) -> Tensor:
    try:
        tensor = row if isinstance(row, Tensor) else torch.tensor(row)
    except (TypeError, ValueError, RuntimeError):
        raise ShapeError(f"prompt {place} is not a list of token ids: {row!r:.80}") from None
    if tensor.dim() != 1 or tensor.numel() == 0:
        raise ShapeError(f"prompt {place} has shape {list(tensor.shape)}: [L] with at least one token is needed")
    _check_integers(tensor)
    return tensor


def _padded(rows: list[Tensor], device: Any) -> tuple[Tensor, Tensor | None]:
    longest = max(row.shape[0] for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
    for place, row in enumerate(rows):
        ids[place, longest - row.shape[0] :] = row
    lengths = torch.tensor([row.shape[0] for row in rows], device=device)
    return ids, torch.arange(longest, device=device) >= longest - lengths.unsqueeze(1)


def _validity(ids: Tensor, lengths: Tensor | Sequence[int] | None, valid: Tensor | None) -> Tensor | None:
    batch, length = ids.shape
    if lengths is not None and valid is not None:
        raise ShapeError("lengths and valid both say where the padding is: give one of them")
    if valid is not None:
        if valid.dtype != torch.bool or tuple(valid.shape) != (batch, length):
            raise ShapeError(f"valid: bool [{batch}, {length}] expected, got {valid.dtype} {list(valid.shape)}")
        return valid.to(ids.device)
    if lengths is None:
        return None
    counts = torch.as_tensor(lengths, device=ids.device)
    _check_integers(counts)
    if tuple(counts.shape) != (batch,) or int(counts.max()) > length:
        raise ShapeError(f"lengths: [{batch}] integers of at most {length} expected, got {counts.tolist()}")
    return torch.arange(length, device=ids.device) < counts.unsqueeze(1)


def _to_the_right(ids: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Real tokens to the right, in their order; columns that no row needs are cut off."""
    ids = ids.long()
    if valid is None:
        return ids, None
    counts = valid.sum(1)
    if int(counts.min()) < 1:
        empty = [row for row, count in enumerate(counts.tolist()) if count < 1]
        raise ShapeError(f"these prompts are empty: {empty}; every row needs at least one token to start from")
    order = valid.to(torch.uint8).argsort(dim=1, stable=True)
    ids, valid = ids.gather(1, order), valid.gather(1, order)
    longest = int(counts.max())
    ids, valid = ids[:, -longest:], valid[:, -longest:]
    if int(counts.min()) == longest:
        return ids, None
    return ids.masked_fill(~valid, 0), valid


def _check_integers(ids: Tensor) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ShapeError(f"token ids and lengths are integers, not {ids.dtype}")


def _check_range(ids: Tensor, vocab_size: int | None) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        bound = "the vocabulary" if vocab_size is None else str(vocab_size)
        raise TokenIdError(f"token ids must lie in [0, {bound}); the prompt's lie in [{low}, {high}]")
