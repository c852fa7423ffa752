"""Patterns as tensors: distances of grids, samples by probability, layouts."""

import math

import pytest
import torch

from variform.errors import ConfigError, ShapeError
from variform.ops.masks import Near
from variform.ops.patterns import (
    block_layout,
    expand_layout,
    gaussian_weights,
    grid_distances,
    pad_to_blocks,
    sample_pairs,
)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("sizes", [(7,), (3, 4), (2, 3, 2)])
def test_distances_are_those_of_the_points(sizes: tuple[int, ...], p: float) -> None:
    points = torch.cartesian_prod(*[torch.arange(size).double() for size in sizes]).view(-1, len(sizes))
    weights = torch.tensor([1.0, 0.0, 2.5][: len(sizes)], dtype=torch.float64)
    torch.testing.assert_close(
        grid_distances(sizes, p).double(), torch.cdist(points, points, p=p), rtol=1e-5, atol=1e-6
    )
    weighted = torch.cdist(points * weights, points * weights, p=p)
    torch.testing.assert_close(grid_distances(sizes, p, weights.tolist()).double(), weighted, rtol=1e-5, atol=1e-6)
    positions = torch.arange(len(points))
    assert Near(sizes, 2.2, p).dense(positions, positions).equal(torch.cdist(points, points, p=p) < 2.2)


def test_gaussian_weights_are_the_formula() -> None:
    wanted = torch.exp(-(torch.arange(5.0)[:, None] - torch.arange(5.0)).square() / (2 * 1.5**2))
    torch.testing.assert_close(gaussian_weights((5,), 1.5), wanted)


def test_samples_are_exact_in_number_and_repeat_with_their_generator() -> None:
    weights = gaussian_weights((9, 9), 2.0)
    for count in (0, 1, 500, weights.numel()):
        assert int(sample_pairs(weights, count).sum()) == count
    first, again, other = (sample_pairs(weights, 500, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    torch.manual_seed(4)
    drawn = sample_pairs(weights, 500)
    torch.manual_seed(4)
    assert drawn.equal(sample_pairs(weights, 500))


def test_samples_follow_the_probabilities() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 5.0])
    generator = torch.Generator().manual_seed(0)
    one = sum(sample_pairs(weights, 1, generator).double() for _ in range(4000)) / 4000
    torch.testing.assert_close(one, weights.double() / 8, rtol=0, atol=0.03)
    two = sum(sample_pairs(weights, 2, generator).double() for _ in range(4000)) / 4000
    # P(i first) + P(i second) without replacement
    share = weights.double() / 8
    wanted = share + sum(share[j] * share / (1 - share[j]) * (torch.arange(4) != j) for j in range(1, 4))
    torch.testing.assert_close(two, wanted, rtol=0, atol=0.03)


@pytest.mark.parametrize(("weights", "count"), [([0.0, 1.0], 2), ([-1.0, 2.0], 1), ([math.nan, 1.0], 1), ([1.0], -1)])
def test_samples_that_cannot_be_drawn_are_refused(weights: list[float], count: int) -> None:
    with pytest.raises(ConfigError):
        sample_pairs(torch.tensor(weights), count)


def test_more_places_than_torch_can_draw_from() -> None:
    weights = torch.ones(1 << 12, (1 << 12) + 1)
    weights[:100] = 0
    drawn = sample_pairs(weights, 100_003)
    assert int(drawn.sum()) == 100_003
    assert not drawn[:100].any()


def test_layouts_and_patterns_lead_to_one_another() -> None:
    layout = torch.rand(3, 4, 5) > 0.5
    pattern = expand_layout(layout, 7)
    assert pattern.shape == (3, 28, 35)
    assert pattern.equal(torch.kron(layout.double(), torch.ones(7, 7).double()).bool())
    assert block_layout(pattern, 7).equal(layout)
    single = torch.zeros(6, 9)
    single[3, 4] = -0.5
    assert block_layout(single, 3).nonzero().tolist() == [[1, 1]]
    with pytest.raises(ShapeError, match="8 x 12"):
        block_layout(single, 4)
    assert block_layout(pad_to_blocks(single, 4), 4).shape == (2, 3)
    with pytest.raises(ShapeError):
        block_layout(torch.ones(4), 2)


def test_grids_that_make_no_sense_are_refused() -> None:
    for bad in (lambda: grid_distances(()), lambda: grid_distances((3,), -1), lambda: grid_distances((3,), 2, (1, 1))):
        with pytest.raises(ConfigError):
            bad()
    with pytest.raises(ConfigError):
        gaussian_weights((3,), 0)
