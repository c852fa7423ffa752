"""`NeoMLP`: training, errors, copies."""

import copy
import pickle
from typing import Any

import pytest
import torch

from variform.dialects.x_transformers import NeoMLP
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.weights.x_transformers import load_x_transformers, to_x_transformers


def model(**keywords: Any) -> NeoMLP:
    torch.manual_seed(0)
    size = {"dim_in": 2, "dim_hidden": 3, "dim_out": 1, "dim_model": 16, "depth": 1}
    return NeoMLP(**{**size, "encoder_kwargs": {"heads": 2, "attn_dim_head": 8}, **keywords})


def test_training_learns_a_map() -> None:
    net, x = model(), torch.rand(64, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    wanted = (3 * x[:, :1]).cos() + x[:, 1:]
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (net(x) - wanted).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * float(wanted.var())
    assert net.random_fourier[0].proj.weight.grad is None


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"dim_hiden": 1}, "dim_hidden"),
        ({"depth": 0}, "positive"),
        ({"encoder_kwargs": {"head": 2}}, "heads"),
        ({"encoder_kwargs": {"dim": 2}}, "dim_model"),
    ],
)
def test_keywords_are_checked(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        model(**keywords)


def test_calls_are_checked() -> None:
    with pytest.raises(InputError, match=r"\[batch, 2\]"):
        model()(torch.zeros(4, 3))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_and_weights(again: Any) -> None:
    net, x = model().eval(), torch.rand(4, 2)
    before, twin, tensors = net(x), again(net), to_x_transformers(net)
    with torch.no_grad():
        for param in net.parameters():
            param.zero_()
    torch.testing.assert_close(twin(x), before, rtol=0, atol=0)
    load_x_transformers(net, tensors)
    torch.testing.assert_close(net(x), before)
