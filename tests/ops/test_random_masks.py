"""Masks by hash: their statistics, and what makes them reproducible."""

import pytest
import torch
from torch import Tensor

from variform.errors import ConfigError
from variform.ops.masks import Axial, Causal, Coarse, Dilated, Mask, Near, Random, RandomBy, RandomLinks, ShiftedWindows


def dense(mask: Mask, length: int) -> Tensor:
    return mask.dense(torch.arange(length), torch.arange(length))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_random_pairs_are_independent_draws_of_their_share(share: float) -> None:
    length = 400
    pairs = dense(Random(share, seed=7), length)
    spread = (share * (1 - share)) ** 0.5
    assert abs(float(pairs.float().mean()) - share) < 5 * spread / length
    unit = (pairs.double() - share) / spread
    for counts in (unit.sum(0), unit.sum(1)):  # of rows and columns: of the variance of independent draws
        assert 0.75 < float(counts.var()) / length < 1.3
    for other in (
        unit.T,
        unit.roll(1, 0),
        unit.roll((1, 1), (0, 1)),
        (dense(Random(share, 8), length).double() - share) / spread,
    ):
        assert abs(float((unit * other).mean())) * length < 5  # no connection with the mirrored, the next, another seed
    for square in (unit @ unit.T, unit.T @ unit):
        connections = (square / length**0.5).fill_diagonal_(0)
        assert 0.9 < float(connections.std()) < 1.1
        assert share < 0.1 or float(connections.abs().max()) < 7  # no two rows or columns alike


def test_random_pairs_do_not_depend_on_the_length_and_repeat() -> None:
    assert dense(Random(0.2, 5), 90)[:40, :40].equal(dense(Random(0.2, 5), 40))
    assert dense(Random(0.2, 5), 40).equal(dense(RandomBy(0.2, torch.tensor(5)), 40))
    assert not dense(Random(0.2, 6), 40).equal(dense(Random(0.2, 5), 40))
    assert not dense(Random(0.2, -1), 40).equal(dense(Random(0.2, 1), 40))
    assert dense(Random(1.0), 9).all()
    assert not dense(Random(0.0), 9).any()
    assert Random(0.2, 5) == Random(0.2, 5) != Random(0.2, 6)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_links_are_distinct_earlier_positions_seen_from_both_sides(count: int) -> None:
    length = 60
    both, past = dense(RandomLinks(count, 2), length), dense(Causal() & RandomLinks(count, 2), length)
    assert both.equal(both.T)
    assert both.equal(past | past.T)
    assert past.sum(1).tolist() == [min(i + 1, count) if i + 1 >= count else int(past[i].sum()) for i in range(length)]
    assert (past.sum(1) >= 1).all()
    assert not dense(RandomLinks(count, 3), length).equal(both)
    assert not dense(RandomLinks(0), length).any()


def test_links_reach_all_of_the_past_alike() -> None:
    length, hits = 64, torch.zeros(64)
    for seed in range(600):
        hits += (Causal() & RandomLinks(2, seed)).dense(torch.tensor([63]), torch.arange(length))[0]
    wanted = 600 * 2 / length
    assert (hits - wanted).abs().max() < 5 * wanted**0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: Random(1.5),
        lambda: RandomLinks(-1),
        lambda: Coarse(Causal(), 0),
        lambda: Near((), 2),
        lambda: Near((3, 0), 2),
        lambda: Near((3, 4), 2, p=-1),
        lambda: Near((3, 4), 2, weights=(1,)),
        lambda: Axial(()),
        lambda: ShiftedWindows((6, 6), 4),
        lambda: ShiftedWindows((6, 6), 3, 3),
        lambda: Dilated((6, 6), 0),
    ],
)
def test_masks_that_make_no_sense_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]
