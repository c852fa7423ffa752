"""Predicting the next features: losses of one step and of several against plain loops, generation."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.parts.embedding.features import FeatureEmbedding
from variform.parts.head.heads import LinearHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.position.absolute import LearnedPosition
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer
from variform.wrappers import NextFeatures, Reading
from variform.wrappers.next_features import drawn, gaussian, gaussian_error, rollout_error


def model(outputs: int = 3, causal: bool = True, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    spec = Transformer.spec(
        embedding=FeatureEmbedding.spec(dim_in=3, position=LearnedPosition.spec(std=1.0)),
        stacks=[LayerStack.spec(layers=[Sublayer.spec(body=MultiHead.spec())])],
        head=LinearHead.spec(outputs=outputs),
        dim=8,
        heads=2,
        causal=causal,
        max_seq_len=12,
    )
    return vf.build(spec).double()


def features(batch: int = 3, length: int = 7) -> Tensor:
    return torch.randn(batch, length, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("loss", ["squared", "absolute", "gaussian"])
def test_one_step(loss: Any) -> None:
    net = model(6 if loss == "gaussian" else 3)
    x = features()
    out = net(x)[:, :-1]
    if loss == "gaussian":
        mean, log_variance = out[..., ::2], out[..., 1::2]
        wanted = 0.5 * (log_variance + (x[:, 1:] - mean) ** 2 / log_variance.exp())
    else:
        wanted = (x[:, 1:] - out).abs() if loss == "absolute" else (x[:, 1:] - out) ** 2
    torch.testing.assert_close(NextFeatures(net, loss)(x), wanted.mean())


def test_padding_changes_neither_loss_nor_gradient() -> None:
    net, x = NextFeatures(model()), features()
    valid = torch.arange(7) < torch.tensor([[7], [4], [1]])
    rows = [(net.model(x[i : i + 1, : n - 1]) - x[i : i + 1, 1:n]).square().flatten() for i, n in ((0, 7), (1, 4))]
    torch.testing.assert_close(net(x, valid), torch.cat(rows).mean())
    other = torch.where(valid.unsqueeze(-1), x, 1e3)
    assert torch.equal(net(other, valid), net(x, valid))


@pytest.mark.parametrize("steps", [2, 3])
def test_several_steps_are_predictions_fed_back(steps: int) -> None:
    net, x = model(), features()
    lengths = torch.tensor([7, 5, steps + 1])
    starts: list[set[int]] = [set(), set(), set()]
    for seed in range(12):
        torch.manual_seed(seed)
        start = 1 + (torch.rand(3) * (lengths - steps)).long()
        torch.manual_seed(seed)
        found = rollout_error(lambda x, valid: net(x), x, lengths, steps, lambda p, t: p - t, lambda p: p)
        for row in range(3):
            begin = int(start[row])
            seen = x[row : row + 1, :begin]
            for _ in range(steps):
                seen = torch.cat((seen, net(seen)[:, -1:]), 1)
            wanted = seen[0, begin:] - x[row, begin : begin + steps]
            torch.testing.assert_close(found[row], wanted)
            starts[row].add(begin)
    assert [max(found) for found in starts] == (lengths - steps).tolist()
    assert [min(found) for found in starts] == [1, 1, 1]


def test_gradients_flow_through_what_is_fed_back() -> None:
    net, x = NextFeatures(model()), features(1, 3)
    two = net(x, rollout=2)
    (whole,) = torch.autograd.grad(two, net.model.head.project.weight, retain_graph=True)
    first = net.model(x[:, :1])[:, -1:]
    cut = torch.cat((x[:, :1], first.detach()), 1)
    halves = torch.stack(((first - x[:, 1:2]).square().mean(), (net.model(cut)[:, -1:] - x[:, 2:]).square().mean()))
    torch.testing.assert_close(two, halves.mean())
    (without,) = torch.autograd.grad(halves.mean(), net.model.head.project.weight)
    assert not torch.allclose(whole, without)


def test_rows_that_are_too_short_do_not_count() -> None:
    net, x = NextFeatures(model()), features()
    valid = torch.arange(7) < torch.tensor([[2], [3], [2]])
    torch.testing.assert_close(net(x, valid, rollout=2), net(x[1:2, :3], rollout=2))
    with pytest.raises(vf.ShapeError, match="no row has more than 3"):
        net(x, valid, rollout=3)
    with pytest.raises(vf.ShapeError, match="padded on the right"):
        net(x, valid.flip(1), rollout=2)


def test_cached_generation_equals_uncached() -> None:
    net = NextFeatures(model())
    wanted = features(2, 3)
    for _ in range(4):
        wanted = torch.cat((wanted, net.model(wanted)[:, -1:]), 1)
    for cache in (True, False):
        torch.testing.assert_close(net.generate(features(2, 3), 4, use_cache=cache), wanted[:, 3:], rtol=0, atol=1e-10)


def test_beyond_the_longest_sequence_a_window_is_read() -> None:
    net = NextFeatures(model())
    wanted = features(2, 5)
    for _ in range(12):
        wanted = torch.cat((wanted, net.model(wanted[:, -12:])[:, -1:]), 1)
    torch.testing.assert_close(net.generate(features(2, 5), 12), wanted[:, 5:], rtol=0, atol=1e-10)


def test_draws_have_the_mean_and_variance() -> None:
    prediction = gaussian(torch.tensor([0.5, 2.0], dtype=torch.float64)).expand(2, 20_000)
    values = drawn(prediction, 0.5)
    torch.testing.assert_close(values.mean(), torch.tensor(0.5, dtype=torch.float64), rtol=0, atol=0.05)
    torch.testing.assert_close(values.std(), torch.tensor(0.5 * 2.718281828, dtype=torch.float64), rtol=0, atol=0.05)
    assert torch.equal(drawn(prediction, 0.0), prediction[0])
    assert gaussian_error(prediction, values).shape == values.shape


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(vf.ConfigError, match="causal=True"):
        NextFeatures(model(causal=False))
    with pytest.raises(vf.ConfigError, match="squared, absolute"):
        NextFeatures(model(), "square")  # type: ignore[arg-type]
    with pytest.raises(vf.ShapeError, match="at least two"):
        NextFeatures(model())(features(2, 1))
    with pytest.raises(vf.ShapeError, match="for all 7"):
        NextFeatures(model())(features(), torch.ones(3, 5, dtype=torch.bool))


def test_reading_answers_for_the_newest_inputs() -> None:
    net, x = model(), features(2, 9)
    whole = net(x)
    for cached in (net, None):
        reading = Reading(net, 12, cached, 9)
        parts = [reading.read(x[:, a:b]) for a, b in ((0, 4), (4, 5), (5, 9))]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)
