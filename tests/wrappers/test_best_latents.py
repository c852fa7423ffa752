"""Latent vectors of which the best counts: the divergence by hand, a model of the core, values that do not fit."""

import math

import pytest
import torch

from tests.wrappers.test_belief import model
from variform.errors import ConfigError, ShapeError
from variform.wrappers.best_latents import BestLatents, divergence, explored


def test_the_divergence() -> None:
    apart = torch.tensor([[[[0.0, -40.0]], [[-40.0, 0.0]]]])
    counted = torch.ones(1, 1, dtype=torch.bool)
    torch.testing.assert_close(divergence(apart, counted), torch.tensor(math.log(2)))
    assert divergence(apart[:, :1].expand(-1, 2, -1, -1), counted).abs() < 1e-6
    assert divergence(apart, ~counted) == 0


def test_one_place_is_tried() -> None:
    latents = torch.randn(2, 3, 4)
    found = explored(latents, 5, 1)
    assert torch.equal(found[:, :, [0, 2]], latents[:, [0, 2]].unsqueeze(1).expand(-1, 5, -1, -1))
    assert len(found[0, :, 1].unique(dim=0)) == 5


def test_the_loss_is_that_of_the_best() -> None:
    objective = BestLatents(model(), places=2, dim_latent=3).double()
    ids, tried = torch.randint(0, 7, (2, 6)), torch.randn(2, 4, 2, 3, dtype=torch.float64)
    each = torch.stack(
        [objective(ids, tried[:, k : k + 1], choose=lambda losses, _: losses.new_zeros(2).long()) for k in range(4)]
    )
    rows = torch.stack([objective(ids[r : r + 1], tried[r : r + 1]) for r in range(2)])
    torch.testing.assert_close(objective(ids, tried), rows.mean())
    assert (rows.mean() <= each).all()
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[:, :1] = False
    shifted = torch.cat((torch.zeros(2, 1).long(), ids), 1)
    seen = torch.cat((valid[:, :1], torch.ones_like(ids, dtype=torch.bool)), 1)
    torch.testing.assert_close(objective(shifted, tried, valid=seen), objective(ids, tried))


def test_values_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="positive"):
        BestLatents(model(), places=0)
    objective = BestLatents(model(), places=2)
    with pytest.raises(ShapeError, match="2 latent vectors"):
        objective.draw([None], 2)
    with pytest.raises(ShapeError, match="one of the 2"):
        objective(torch.zeros(1, 3).long(), place=5)
