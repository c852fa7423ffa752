"""What the layouts of `sparsity_config` have in common: windows, draws, ranges of blocks, and refusals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from variform.dialects.xformers.errors import ConfigNotImplementedError, Wrong, config_error
from variform.errors import Problem, did_you_mean

DIRECTIONS = ("unidirectional", "bidirectional")


def sliding_window(blocks: int, width: int) -> Tensor:
    """Blocks at most half a window away."""
    index = torch.arange(blocks)
    return (index[:, None] - index).abs() <= width // 2


def draw_blocks(layout: Tensor, count: int, attention: str, seed: int | None, head: int) -> None:
    """Mark `count` blocks in each row, drawn without replacement; below the diagonal where the rest is taken out."""
    if not count:
        return
    generator = None if seed is None else torch.Generator().manual_seed(seed * 1_000_003 + head)
    rows = range(layout.shape[0])
    for row in rows:
        able = len(rows) if attention == "bidirectional" else row + 1
        layout[row, torch.randperm(able, generator=generator)[:count]] = True


def clipped_ranges(starts: Sequence[int], ends: Sequence[int] | None, blocks: int) -> Iterator[tuple[int, int]]:
    """The ranges that lie within the layout."""
    for start, end in zip(starts, ends or [start + 1 for start in starts], strict=True):
        if start < blocks:
            yield start, min(end, blocks)


def range_problems(starts: Sequence[int], ends: Sequence[int] | None) -> list[Wrong]:
    """What is wrong with ranges of global blocks."""
    found = (
        [Wrong("global_block_indices", "a block's number is >= 0", list(starts))] if min(starts, default=0) < 0 else []
    )
    if ends is not None and len(ends) != len(starts):
        message = f"one end for each of the {len(starts)} global_block_indices"
        found.append(Wrong("global_block_end_indices", message, list(ends)))
    elif ends is not None and any(start >= end for start, end in zip(starts, ends, strict=True)):
        found.append(Wrong("global_block_end_indices", f"each end lies behind its start {list(starts)}", list(ends)))
    return found


def count_problems(least: int = 1, **counts: int) -> list[Wrong]:
    """Numbers below `least`."""
    return [Wrong(name, f"must be >= {least}", count) for name, count in counts.items() if count < least]


def check_enough(blocks: int, **counts: int) -> None:
    """A layout has at least as many blocks as a rule asks of each row."""
    raise_all(
        Wrong(name, f"the sequence has {blocks} blocks, fewer than that", count)
        for name, count in counts.items()
        if count > blocks
    )


def check_direction(attention: str, horizontal: bool = False) -> None:
    """Refuse an unknown direction, and one that contradicts global blocks that see all."""
    if attention not in DIRECTIONS:
        wrong = Problem("attention", "no such direction", attention, did_you_mean(attention, list(DIRECTIONS)))
        raise ConfigNotImplementedError((wrong,))
    if horizontal and attention != "bidirectional":
        message = "global blocks that see all look ahead, which 'unidirectional' forbids"
        raise_all([Wrong("horizontal_global_attention", message, horizontal)])


def raise_all(problems: Iterable[Wrong]) -> None:
    """Raise what is wrong, if anything is."""
    found = list(problems)
    if found:
        raise config_error(found)


def as_list(values: Sequence[int] | None) -> list[int] | None:
    """A copy of the caller\'s sequence."""
    return None if values is None else list(values)
