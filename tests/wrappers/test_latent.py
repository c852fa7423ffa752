"""Bottlenecks against their formulas, and the token that is hidden from some rows."""

import pytest
import torch

import variform as vf
from variform.wrappers.latent import Deterministic, LatentToken, Variational

X = torch.randn(5, 4, dtype=torch.float64)


def test_a_deterministic_bottleneck_is_a_map() -> None:
    part = Deterministic(4, 3, torch.nn.Tanh()).double()
    latents, penalty = part(X)
    torch.testing.assert_close(latents, (X @ part.project.weight.T + part.project.bias).tanh())
    assert penalty is None


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_a_variational_bottleneck_draws_and_pays(floor: float) -> None:
    part = Variational(4, 3, floor).double()
    mean, log_variance = part.moments(X)
    there = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    nats = torch.distributions.kl_divergence(there, torch.distributions.Normal(torch.zeros(5, 3), torch.ones(5, 3)))
    _, penalty = part(X)
    torch.testing.assert_close(penalty, (nats - floor).clamp(min=0).sum(-1))
    draws = torch.stack([part(X)[0] for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(draws.var(0), log_variance.exp(), rtol=0.15, atol=0)
    with pytest.raises(vf.ConfigError, match="negative"):
        Variational(4, 3, -1.0)


def test_the_token_is_hidden_in_training_alone() -> None:
    part = LatentToken(4, 6, drop=0.3).double()
    token, seen = part(X)
    torch.testing.assert_close(token[:, 0], part.project(X))
    assert seen.shape == (5, 1)
    share = torch.cat([part(X)[1] for _ in range(400)]).double().mean()
    assert abs(float(share) - 0.7) < 0.05
    assert bool(part.eval()(X)[1].all())
    with pytest.raises(vf.ConfigError, match="probability"):
        LatentToken(4, 6, drop=1.5)
