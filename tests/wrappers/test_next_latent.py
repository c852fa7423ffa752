"""Hidden states that tell the next: windows and means by hand, models of the core, the statistic of Gaussians."""

import pytest
import torch

from tests.stack.test_remembering import ids, model
from variform.errors import ConfigError, ShapeError
from variform.wrappers.gaussian import Sketch
from variform.wrappers.latent_prediction import LatentPrediction
from variform.wrappers.next_latent import NextLatent
from variform.wrappers.rollouts import shares, step_means, windows


def test_windows() -> None:
    x = torch.arange(1, 5).unsqueeze(0)
    assert windows(x, 3)[:, 0].tolist() == [[1, 2, 3, 4], [2, 3, 4, 0], [3, 4, 0, 0]]
    assert windows(x.bool(), 2)[1, 0].tolist() == [True, True, True, False]


def test_means_over_nothing_are_zero() -> None:
    found = step_means(torch.full((2, 1, 3), torch.nan), torch.zeros(2, 1, 3, dtype=torch.bool))
    assert found.tolist() == [0.0, 0.0]


def test_shares() -> None:
    torch.testing.assert_close(shares((3, 1), 2), torch.tensor([0.75, 0.25]))
    for wrong in ((1,), (0.0, 0.0)):
        with pytest.raises(ConfigError):
            shares(wrong, 2)


def test_the_statistic_tells_gaussians_from_others() -> None:
    torch.manual_seed(0)
    sketch, x = Sketch(64), torch.randn(4096, 3)
    assert sketch(x) < 1e-2
    for other in (x * 2, x + 1, torch.zeros(8, 3)):
        assert sketch(other) > 5e-2
    assert sketch(x[:0]) == 0
    with pytest.raises(ConfigError):
        Sketch(domain=(1.0, 1.0))


@pytest.mark.parametrize("kind", [NextLatent, LatentPrediction])
def test_models_of_the_core(kind: type[NextLatent] | type[LatentPrediction]) -> None:
    net = model(1)
    objective = kind(net, rollouts=2).double()
    valid = torch.ones_like(ids(2), dtype=torch.bool)
    valid[1, -3:] = False
    losses = []
    for seq in (ids(2), torch.where(valid, ids(2), 0)):
        torch.manual_seed(1)
        losses.append(objective(seq, valid=valid))
    torch.testing.assert_close(*losses)
    losses[0].backward()
    with pytest.raises(ShapeError):
        objective(ids(2)[:, :1])
    with pytest.raises(ConfigError):
        kind(torch.nn.Linear(2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NextLatent, LatentPrediction])
def test_compiled(kind: type[NextLatent] | type[LatentPrediction]) -> None:
    objective = kind(model(1), rollouts=2).double().eval()
    losses = []
    for run in (torch.compile(objective, fullgraph=True, backend="aot_eager"), objective):
        torch.manual_seed(1)
        losses.append(run(ids(2)))
    torch.testing.assert_close(*losses)
