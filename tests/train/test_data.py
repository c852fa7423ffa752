"""Batches, validation windows, the bigram model."""

import math
from itertools import pairwise

import pytest
import torch

from variform.errors import ConfigError
from variform.train.bigram import bigram_loss
from variform.train.data import StepLoader, TrainBatches, ValBatches, mixed_seed, split_ids, val_starts
from variform.train.sections import DataSection

DATA = DataSection(context=7, batch_size=6)
IDS = torch.arange(100)


def batches(rank: int = 0, world: int = 1, seed: int = 1) -> TrainBatches:
    return TrainBatches(IDS, DATA, seed, 40, rank, world)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    one, two = batches(), batches()
    order = [5, 3, 39, 3, 0]
    assert all(torch.equal(one[step][0], two[step][0]) for step in order)
    assert torch.equal(one[3][0], one[3][0])
    assert not torch.equal(one[3][0], one[4][0])
    assert not torch.equal(one[3][0], batches(seed=2)[3][0])


def test_targets_are_the_next_characters() -> None:
    x, y = batches()[0]
    assert x.shape == y.shape == (6, 7)
    assert torch.equal(y, x + 1)


def test_every_window_is_drawn() -> None:
    starts = {int(start) for step in range(40) for start in TrainBatches(IDS[:20], DATA, 1, 40, 0, 1)[step][0][:, 0]}
    assert starts == set(range(13))  # the last window ends one before the last character


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_batch(world: int) -> None:
    joint = batches()[9][0]
    shares = [batches(rank, world)[9][0] for rank in range(world)]
    assert all(share.shape[0] == 6 // world for share in shares)
    assert sorted(torch.cat(shares)[:, 0].tolist()) == sorted(joint[:, 0].tolist())


def test_the_loader_goes_on_after_the_steps_that_are_done() -> None:
    done = 0
    loader = StepLoader(batches(), lambda: done)
    expected = [x for x, _ in loader]
    assert len(expected) == len(loader) == 40
    done = 13
    again = StepLoader(batches(), lambda: done)
    again.load_state_dict(loader.state_dict())
    rest = [x for x, _ in again]
    assert len(again) == 40
    assert all(torch.equal(a, b) for a, b in zip(rest, expected[13:], strict=True))


def test_seeds_differ_by_purpose_and_place() -> None:
    seeds = {mixed_seed(seed, purpose, step) for seed in (0, 1) for purpose in (0, 1) for step in range(50)}
    assert len(seeds) == 200


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("windows", [None, 1, 5, 1000])
def test_each_validation_window_counts_once(world: int, windows: int | None) -> None:
    data = DataSection(context=7, batch_size=6, val_windows=windows)
    seen: list[int] = []
    lengths = set()
    for rank in range(world):
        own = ValBatches(IDS, data, rank, world)
        lengths.add(len(own))
        for index in range(len(own)):
            x, y, real = own[index]
            assert x.shape == y.shape == (12 // world, 7)
            seen += x[real][:, 0].tolist()
    assert len(lengths) == 1
    assert sorted(seen) == val_starts(IDS, data).tolist()
    assert len(seen) == {None: 14, 1: 1, 5: 5, 1000: 14}[windows]


def test_split_and_texts_that_are_too_short() -> None:
    split = split_ids(IDS, DATA)
    assert torch.equal(split.train, IDS[:90])
    assert torch.equal(split.validation, IDS[90:])
    with pytest.raises(ConfigError, match=r"data.context: the text is too short: 63 .* and 7 to validate on"):
        split_ids(IDS[:70], DATA)
    assert len(ValBatches(split_ids(IDS[:80], DATA).validation, DATA)) == 1


def test_bigram_loss_equals_a_count_by_hand() -> None:
    train, validation = "abracadabra", "cabbraacad"
    letters = sorted(set(train))
    ids = {letter: index for index, letter in enumerate(letters)}
    counts = {(a, b): 1 for a in letters for b in letters}
    for a, b in pairwise(train):
        counts[a, b] += 1
    chances = {(a, b): n / sum(counts[a, c] for c in letters) for (a, b), n in counts.items()}
    windows = [(validation[i], validation[i + 1]) for start in (0, 4) for i in range(start, start + 4)]
    expected = -sum(math.log(chances[pair]) for pair in windows) / len(windows)
    found = bigram_loss(
        torch.tensor([ids[c] for c in train]), torch.tensor([ids[c] for c in validation]), 5, DataSection(context=4)
    )
    assert found == pytest.approx(expected, rel=1e-12)
