"""A sequence in chunks: what linear attentions and recurrences share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def runs_of(segments: Tensor, valid: Tensor | None, previous: Tensor) -> tuple[Tensor, Tensor]:
    """Number of id changes up to each token since the state, and the last id; invalid tokens keep the id before them.

    Shapes: segments, valid `[B, L]`, previous `[B]` -> `[B, L]`, `[B]`.
    """
    segments = segments.to(previous.dtype)
    if valid is not None:
        index = torch.arange(segments.shape[1], device=segments.device)
        latest = torch.where(valid, index, -1).cummax(dim=1).values
        segments = torch.where(latest >= 0, segments.gather(1, latest.clamp(min=0)), previous[:, None])
    shifted = torch.cat((previous[:, None], segments[:, :-1]), dim=1)
    return (segments != shifted).cumsum(1), segments[:, -1]


def chunks_of(length: int, size: int) -> int:
    """How many chunks a sequence has."""
    # Always two or more, and no reshape: an exported graph then holds for every length.
    return (length + size - 1) // size + int(torch.compiler.is_exporting())


def chunk_size(length: int, chunk: int, power: bool = False) -> int:
    """How many tokens stand in a chunk: all of a short sequence, rounded up to a power of two if need be."""
    if torch.compiler.is_exporting():
        return chunk
    length = int(length)  # a tensor in what torch.jit traces
    return min(chunk, 1 << (length - 1).bit_length() if power else length)


def in_chunks(x: Tensor, size: int) -> Tensor:
    """`[B, H, L, D]` -> `[B, H, n, size, D]`, the last chunk filled with zeros."""
    batch, heads, length, dim = x.shape
    chunks = chunks_of(length, size)
    if torch.compiler.is_exporting():
        tokens = token_places(chunks, size, x.device)
        return x[:, :, tokens.clamp(max=length - 1)].masked_fill((tokens >= length)[..., None], 0)
    return functional.pad(x, (0, 0, 0, chunks * size - length)).reshape(batch, heads, chunks, size, dim)


def joined(x: Tensor, length: int, size: int) -> Tensor:
    """`[B, H, n, size, D]` -> `[B, H, L, D]`."""
    if torch.compiler.is_exporting():
        tokens = torch.arange(length, device=x.device)
        return x[:, :, tokens // size, tokens % size]
    return x.flatten(2, 3)[:, :, :length]


def token_places(chunks: int, size: int, device: torch.device) -> Tensor:
    """Token of each place, `[chunks, size]`."""
    return torch.arange(chunks, device=device)[:, None] * size + torch.arange(size, device=device)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of long sums over numbers of a type."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def by_row(ids: Tensor, batch: int) -> Tensor:
    """Document numbers of each row, `[B, L]`, from `[L]` or `[B, L]`."""
    return ids if ids.dim() == 2 else ids[None].expand(batch, -1)


@dataclass(frozen=True)
class Borders:
    """Where documents change, told chunk by chunk: a recurrence starts anew there.

    Shapes:
        pairs: `[B, 1, n, size, size]`, whether two tokens of a chunk are of one document
        first: `[B, 1, n, size]`, whether a token is of the document that the chunk before ended in
        last: `[B, 1, n, size]`, whether a token is of the document that its chunk ends in
        through: `[B, 1, n]`, whether the chunk before ended in the document that this one ends in
        ids: `[B]`, the number of the last document
    """

    pairs: Tensor
    first: Tensor
    last: Tensor
    through: Tensor
    ids: Tensor


def borders(segments: Tensor, valid: Tensor | None, previous: Tensor, size: int) -> Borders:
    """The borders of documents in chunks of `size` tokens.

    Args:
        segments: `[L]` or `[B, L]`.
        valid: `[B, L]`; tokens that are not valid belong to the document before them.
        previous: `[B]`, the document of the tokens before.
        size: tokens in a chunk.
    """
    runs, ids = runs_of(by_row(segments, previous.shape[0]), valid, previous)
    length = runs.shape[1]
    places = token_places(chunks_of(length, size), size, runs.device)
    runs = runs[:, None, places.clamp(max=length - 1)]
    ends = functional.pad(runs[..., -1], (1, 0))  # run 0 is that of the tokens before
    before, tails = ends[..., :-1, None], ends[..., 1:, None]
    return Borders(
        runs[..., :, None] == runs[..., None, :], runs == before, runs == tails, (before == tails)[..., 0], ids
    )


def carried(added: Tensor, kept: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each chunk, and the last one: s_n = kept_n s_{n-1} + added_n.

    Shapes: added `[B, H, n, D, Dv]`, kept `[B, H, n, 1 or D]`, state `[B, H, D, Dv]` -> `[B, H, n, D, Dv]`, state.
    """
    if torch.compiler.is_exporting():
        return _carried_at_once(added, kept, state)
    before = []
    for sums, factor in zip(added.unbind(2), kept.unbind(2), strict=True):
        before.append(state)
        state = factor[..., None] * state + sums
    return torch.stack(before, 2), state


def _carried_at_once(added: Tensor, kept: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`carried` through all pairs of chunks, for graphs in which their number is open."""
    place = torch.arange(added.shape[2], device=added.device)
    kept = kept.expand(*kept.shape[:3], added.shape[3])
    steps = torch.where((place > place[:, None])[..., None], kept[:, :, None], 1.0)
    through = steps.cumprod(3) * (place >= place[:, None])[..., None]
    after = torch.einsum("bhjid,bhjdv->bhidv", through, added) + kept.cumprod(2)[..., None] * state[:, :, None]
    return torch.cat((state[:, :, None], after), 2)[:, :, :-1], after[:, :, -1]


def blocks_below(pairs: Tensor, block: int) -> Tensor:
    """Of pairs of tokens `[.., size, size]`, every second block with the one before, `[.., n, block, block]`."""
    count = pairs.shape[-1] // (2 * block)
    split = pairs.view(*pairs.shape[:-2], count, 2, block, count, 2, block)
    return split[..., 1, :, :, 0, :].diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def grouped(tensors: Sequence[Tensor], heads: int) -> list[Tensor]:
    """Key heads repeated for the query heads that use them, `[B, Hk, ...]` -> `[B, heads, ...]`."""
    return [t if t.shape[1] == heads else t.repeat_interleave(heads // t.shape[1], 1) for t in tensors]
