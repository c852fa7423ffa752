"""Recirculation of a model of the core: a factor of nothing, generation, lengths, models that do not fit."""

import pytest
import torch
from torch import nn

import variform as vf
from tests.wrappers.test_feedback import model
from variform.errors import ConfigError
from variform.wrappers.recirculation import Mixer, Recirculation, as_long_as


def test_lengths() -> None:
    source, target = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    torch.testing.assert_close(as_long_as(source, target), torch.tensor([[1.2, 1.6], [0.0, 0.0]]))


def test_factors_at_first() -> None:
    alpha, beta = Mixer(4)(torch.zeros(1, 4), torch.zeros(1, 4))
    torch.testing.assert_close(alpha, torch.full((1, 4), 0.1), rtol=0, atol=0.02)
    torch.testing.assert_close(beta, torch.full((1, 4), 0.9), rtol=0, atol=0.02)


def test_nothing_mixed_is_the_model_itself() -> None:
    net, ids = model(), torch.randint(0, 7, (2, 6))
    torch.testing.assert_close(Recirculation(net, [(1, 0)], [0.0], [None])(ids), net(ids))
    assert not torch.allclose(Recirculation(net, [(1, 0)], [0.5], [None], ramp=0)(ids)[:, 1:], net(ids)[:, 1:])


def test_generation() -> None:
    twice, ids = Recirculation(model(), [(1, 0)], [0.5], [None], ramp=2), torch.randint(0, 7, (2, 3))
    made = [vf.generate(twice, ids, 4, temperature=0, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*made)


def test_models_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="with a head"):
        Recirculation(nn.Linear(2, 2), [(1, 0)], [0.5], [None])
    with pytest.raises(ConfigError, match="shallower"):
        Recirculation(model(), [(0, 1)], [0.5], [None])
