"""Training and validation batches: what a step sees is a function of the seed and the step alone.

Step s of a run reads `batch_size` windows whose places are drawn from the seed and s. So a run that is resumed sees
what it would have seen, and several processes together see what one would: each takes its share of every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from variform.errors import ConfigError
from variform.train.sections import DataSection

DATA, DROPOUT, SAMPLES = range(3)


def mixed_seed(seed: int, purpose: int, *place: int) -> int:
    """A 64-bit seed for one purpose at one place (a step, a rank), unrelated to all others."""
    return int(np.random.SeedSequence((seed, purpose, *place)).generate_state(1, np.uint64)[0])


@dataclass(frozen=True)
class Split:
    """The ids of a text in two parts.

    Args:
        train: [N] the first part.
        validation: [M] the last part.
    """

    train: Tensor
    validation: Tensor


def split_ids(ids: Tensor, data: DataSection) -> Split:
    """Cut the last `validation` part off.

    Raises:
        ConfigError: a part is too short for one window.
    """
    cut = ids.shape[0] - int(ids.shape[0] * data.validation)
    parts = Split(ids[:cut], ids[cut:])
    shortest = min(parts.train.shape[0], parts.validation.shape[0])
    if shortest <= data.context:
        message = (
            f"the text is too short: {parts.train.shape[0]} characters to train on and {parts.validation.shape[0]} to"
            f" validate on, and each needs more than one window"
        )
        hint = "take a longer text, a shorter context or another data.validation"
        raise ConfigError(message, path="data.context", value=data.context, hint=hint)
    return parts


def pairs(ids: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Windows and the characters that follow: (x, y), each [B, context], y one further than x."""
    places = starts.unsqueeze(1) + torch.arange(context)
    return ids[places], ids[places + 1]


class TrainBatches(Dataset[tuple[Tensor, Tensor]]):
    """The batch of each step: item s is this process's share of step s.

    Args:
        ids: the training text.
        data: context and batch size.
        seed: of the order.
        steps: how many steps there are.
        rank: this process.
        world: how many processes share a batch.
    """

    def __init__(self, ids: Tensor, data: DataSection, seed: int, steps: int, rank: int, world: int) -> None:
        self.ids, self.data, self.seed, self.steps, self.rank, self.world = ids, data, seed, steps, rank, world

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        draw = np.random.default_rng(mixed_seed(self.seed, DATA, step))
        starts = draw.integers(0, self.ids.shape[0] - self.data.context, size=self.data.batch_size)
        return pairs(self.ids, torch.from_numpy(starts[self.rank :: self.world]), self.data.context)


class ValBatches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The validation windows in batches: (x, y, real); rows that only fill up the last batch are not real.

    Every process has as many rows in as many batches, so that sharded models stay in step.

    Args:
        ids: the validation text.
        data: context, batch size, number of windows.
        rank: this process.
        world: how many processes share a batch.
    """

    def __init__(self, ids: Tensor, data: DataSection, rank: int = 0, world: int = 1) -> None:
        self.ids, self.context = ids, data.context
        self.starts = val_starts(ids, data)
        # Validation keeps no activations, so that larger batches cost no more memory than a training step.
        self.rows = 2 * data.batch_size // world * world
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-self.starts.shape[0] // self.rows)

    def __getitem__(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        places = torch.arange(batch * self.rows + self.rank, (batch + 1) * self.rows, self.world)
        real = places < self.starts.shape[0]
        x, y = pairs(self.ids, self.starts[places.clamp(max=self.starts.shape[0] - 1)], self.context)
        return x, y, real


def val_starts(ids: Tensor, data: DataSection) -> Tensor:
    """Where the validation windows start: end to end over the text, or `val_windows` of these, evenly spread."""
    starts = torch.arange(0, ids.shape[0] - data.context, data.context)
    if data.val_windows is None or data.val_windows >= starts.shape[0]:
        return starts
    return starts[torch.linspace(0, starts.shape[0] - 1, data.val_windows, dtype=torch.float64).long()]


class FromStep(Sampler[int]):
    """The steps in order, from `start` on; the length is that of the whole run.

    Args:
        steps: how many steps the run has.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.start = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.steps))


class StepLoader(DataLoader[Any]):
    """The training batches, resumable in mid-epoch: its state is the number of steps that are done.

    Args:
        batches: the batch of each step.
        done: tells how many steps are done.
    """

    def __init__(self, batches: TrainBatches, done: Callable[[], int]) -> None:
        self.order = FromStep(len(batches))
        self.done = done
        super().__init__(batches, batch_size=None, sampler=self.order)

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"step": self.done()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the steps that are done."""
        self.order.start = int(state["step"])
