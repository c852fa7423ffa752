"""`LatentAutoregressive`: padding, probes, gradients, errors, copies."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.dialects.x_transformers.test_next_latent_wrapper import ids, net, padded
from variform.dialects.x_transformers import AutoregressiveWrapper, Encoder
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.gpt_lejepa import LatentAutoregressive
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

SKETCH = {"num_slices": 32}


def model(inner: Any = None, **keywords: Any) -> LatentAutoregressive:
    made = net() if inner is None else inner
    return LatentAutoregressive(made, **{"dim": 16, "num_rollouts": 2, "sigreg_loss_kwargs": SKETCH, **keywords})


def loss(wrapper: LatentAutoregressive, seq: Tensor) -> Tensor:
    torch.manual_seed(3)
    found: Tensor = wrapper(seq)
    return found


def test_padding_changes_no_loss() -> None:
    wrapper = model()
    torch.testing.assert_close(loss(wrapper, ids()), loss(wrapper, padded(ids(), 3)))


def test_a_row_of_padding_counts_for_nothing() -> None:
    wrapper = model()
    assert loss(wrapper, torch.full((1, 5), -100)).isfinite()


def test_the_cross_entropy_reaches_the_probe_alone() -> None:
    wrapper = model()
    _, (tokens, *_) = wrapper(ids(), return_loss_breakdown=True)
    tokens.backward()
    reached = {name for name, param in wrapper.net.native.named_parameters() if param.grad is not None}
    assert reached
    assert all(name.startswith("head.") for name in reached)


@pytest.mark.parametrize("keywords", [{"tie_embedding": True}, {"num_memory_tokens": 2}, {"mixture_of_softmax": True}])
def test_other_models(keywords: dict[str, Any]) -> None:
    wrapper = model(net(**keywords))
    loss(wrapper, ids()).backward()
    made = AutoregressiveWrapper(wrapper.net).generate(ids()[:, :3], 4, temperature=0.0)
    again = AutoregressiveWrapper(wrapper.net).generate(ids()[:, :3], 4, temperature=0.0, cache_kv=False)
    assert torch.equal(made, again)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"num_rolouts": 1}, "num_rollouts"),
        ({"frac_gradient": 2.0}, r"\[0, 1\]"),
        ({"predict_next_embed_with_action": False}, "at least one"),
        ({"rollout_loss_weights": (1.0,)}, "each of the 2"),
        ({"sigreg_loss_kwargs": {"num_slices": 0}}, "positive"),
        ({"inner": net(Encoder)}, "layers that see it"),
        (
            {"inner": net(num_memory_tokens=2, memory_tokens_interspersed_every=2)},
            "memory tokens stand among",
        ),
    ],
)
def test_keywords_are_checked(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        model(**keywords)


def test_calls_are_checked() -> None:
    with pytest.raises(InputError, match="two tokens"):
        model()(ids()[:, :1])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("keywords", [{}, {"ce_probe_module": nn.Linear(16, 16)}])
def test_copies_and_weights(keywords: dict[str, Any], again: Any) -> None:
    wrapper = model(**keywords)
    before, twin, tensors = loss(wrapper, ids()), again(wrapper), to_x_transformers(wrapper)
    with torch.no_grad():
        for param in wrapper.parameters():
            param.zero_()
    torch.testing.assert_close(loss(twin, ids()), before, rtol=0, atol=0)
    assert twin.net.native is twin.objective.model
    load_x_transformers(wrapper, tensors)
    torch.testing.assert_close(loss(wrapper, ids()), before)
