"""Rows of token ids of any length, their labels, and batches of them: padding goes by lengths, never by ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

PAD = 0


class Rows:
    """Rows behind one another in one array.

    Args:
        flat: their token ids.
        ends: where each row ends.
        begin: where the first begins.
    """

    def __init__(self, flat: np.ndarray, ends: np.ndarray, begin: int = 0) -> None:
        self.flat, self.ends, self.begin = flat, np.asarray(ends, np.int64), begin

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> Rows:
        """From separate rows."""
        return cls(np.concatenate(rows), np.cumsum([len(row) for row in rows]))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        begin = self.begin if index == 0 else self.ends[index - 1]
        return self.flat[begin : self.ends[index]]

    def cut(self, begin: int, end: int) -> Rows:
        """The rows from `begin` up to `end`."""
        return Rows(self.flat, self.ends[begin:end], int(self.ends[begin - 1]) if begin else self.begin)

    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.diff(self.ends, prepend=self.begin)

    def firsts(self) -> np.ndarray:
        """The first token of each row."""
        found: np.ndarray = self.flat[self.ends - self.lengths()]
        return found

    def highest(self) -> int:
        """The highest token id."""
        return int(self.flat[self.begin : self.ends[-1]].max())


class Split(NamedTuple):
    """Examples.

    Args:
        inputs: one set of rows, or two for tasks that compare them.
        labels: the right answers.
    """

    inputs: tuple[Rows, ...]
    labels: np.ndarray

    def cut(self, begin: int, end: int) -> Split:
        """The examples from `begin` up to `end`."""
        return Split(tuple(rows.cut(begin, end) for rows in self.inputs), self.labels[begin:end])


class Batch(NamedTuple):
    """A batch.

    Shapes:
        ids: [inputs * B, S]; the second inputs of all examples follow the first ones
        lengths: [inputs * B]
        labels: [B], -100 for an example that only fills the batch up
    """

    ids: Tensor
    lengths: Tensor
    labels: Tensor


class Examples(Dataset[tuple[list[np.ndarray], int]]):
    """Examples by index; -1 is one that does not count.

    Args:
        split: the examples.
        longest: tokens that are kept of a row.
    """

    def __init__(self, split: Split, longest: int) -> None:
        self.split, self.longest = split, longest

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[list[np.ndarray], int]:
        rows = [rows[max(index, 0)][: self.longest] for rows in self.split.inputs]
        return rows, int(self.split.labels[index]) if index >= 0 else -100


class Collate:
    """Makes batches, padded on the right to their longest row or to a fixed length.

    Args:
        class_token: an id that is put in front of every row.
        length: what all batches are padded to.
    """

    def __init__(self, class_token: int | None = None, length: int | None = None) -> None:
        self.class_token, self.length = class_token, length

    def __call__(self, examples: Sequence[tuple[list[np.ndarray], int]]) -> Batch:
        first = [] if self.class_token is None else [self.class_token]
        rows = [inputs[i] for i in range(len(examples[0][0])) for inputs, _ in examples]
        lengths = torch.tensor([len(first) + len(row) for row in rows])
        ids = torch.full((len(rows), self.length or int(lengths.max())), PAD)
        ids[:, : len(first)] = torch.tensor(first, dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, len(first) : len(first) + len(row)] = torch.from_numpy(row.astype(np.int64))
        return Batch(ids, lengths, torch.tensor([label for _, label in examples]))


class Turns(Sampler[int]):
    """The share of one of several processes in an evaluation, filled up so that all shares are equal.

    Args:
        count: examples.
        rank: of the process.
        world: how many processes there are.
    """

    def __init__(self, count: int, rank: int, world: int) -> None:
        each = -(-count // world)
        self.indices = [i if i < count else -1 for i in range(rank, each * world, world)]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def baselines(train: Split, test: Split, roots: bool) -> dict[str, float]:
    """Accuracies of answers that need no attention.

    Args:
        train: what the answers are learned from.
        test: what they are judged on.
        roots: the first token of a row is a root operator, as in ListOps.

    Returns:
        `majority`: of the commonest label; with `roots` also `root_operator`: of the commonest label for that operator.
    """
    commonest = _mode(train.labels)
    found = {"majority": float((test.labels == commonest).mean())}
    if roots:
        firsts, asked = (split.inputs[0].firsts() for split in (train, test))
        answers = {token: _mode(train.labels[firsts == token]) for token in np.unique(firsts)}
        given = np.array([answers.get(token, commonest) for token in asked])
        found["root_operator"] = float((test.labels == given).mean())
    return found


def _mode(labels: np.ndarray) -> int:
    values, counts = np.unique(labels, return_counts=True)
    return int(values[counts.argmax()])
