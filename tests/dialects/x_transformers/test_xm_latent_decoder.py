"""`XMLatentDecoder`: padding, dropped vectors, training, generation, errors, copies."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.dialects.x_transformers.test_next_latent_wrapper import ids, net, padded
from variform.dialects.x_transformers import Encoder
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.xm_latent_decoder import XMLatentDecoder, lowest_entropy_winner_fn
from variform.weights.x_transformers import load_x_transformers, to_x_transformers


def model(inner: Any = None, **keywords: Any) -> XMLatentDecoder:
    torch.manual_seed(0)
    return XMLatentDecoder(net() if inner is None else inner, **{"num_latents": 2, "latent_dim": 5, **keywords})


def loss(wrapper: XMLatentDecoder, seq: Tensor, **call: Any) -> Tensor:
    torch.manual_seed(3)
    found: Tensor = wrapper(seq, **call)
    return found


@pytest.mark.parametrize("keywords", [{}, {"repulsive_loss_weight": 0.5}, {"max_batch_size": 3}])
def test_padding_changes_no_loss(keywords: dict[str, Any]) -> None:
    wrapper, seq = model(**keywords), ids()
    expected = loss(wrapper, seq)
    torch.testing.assert_close(loss(wrapper, padded(seq, 3)), expected)
    mask = torch.arange(10) < 7
    longer = torch.cat((seq, torch.zeros(2, 3).long()), 1)
    torch.testing.assert_close(loss(wrapper, longer, mask=mask.expand(2, -1)), expected)


def test_chunks_of_rows_change_nothing() -> None:
    wrapper = model(candidates=3)
    torch.testing.assert_close(loss(wrapper, ids()), loss(wrapper, ids(), max_batch_size=4))
    told = []

    def winner(losses: Tensor, found: Any) -> Tensor:
        told.append(found.logits.shape)
        return losses.argmin(-1)

    for size in (None, 4):
        loss(wrapper, ids(), max_batch_size=size, winner_fn=winner)
    assert told == [(2, 3, 6, 9)] * 2


def test_dropped_vectors() -> None:
    """Upstream fails here with a mask, which it does not shorten."""
    wrapper = model(latent_drop_prob=1.0).train()
    mask = torch.ones_like(ids(), dtype=torch.bool)
    torch.testing.assert_close(loss(wrapper, ids(), mask=mask), loss(wrapper, ids()))
    wrapper(ids()).backward()
    assert wrapper.latent_proj.weight.grad is None
    wrapper.eval()
    assert loss(wrapper, ids()) != loss(wrapper, ids(), latents=torch.zeros(2, 2, 5))


def test_training_makes_a_vector_tell_what_a_prompt_does_not() -> None:
    wrapper = model(num_latents=1, candidates=8)
    seq = torch.zeros(8, 5).long()
    seq[:, 1:] = torch.arange(8).unsqueeze(1) % 2 + 1
    optimiser = torch.optim.Adam(wrapper.parameters(), lr=1e-2)
    torch.manual_seed(1)
    for _ in range(60):
        optimiser.zero_grad()
        wrapper(seq).backward()
        optimiser.step()
    assert float(wrapper(seq).detach()) < 0.1  # one bit a text, which nothing but the vector tells: log(2) / 4 without


def test_generation_with_a_cache_and_without() -> None:
    wrapper = model().double().train()
    latents = torch.randn(2, 2, 5, dtype=torch.float64)
    options: dict[str, Any] = {"temperature": 0.0, "latents": latents}
    made = [wrapper.generate(ids(), 4, cache_kv=cached, **options) for cached in (True, False)]
    assert torch.equal(*made)
    assert wrapper.training
    out, (tried, told) = wrapper.generate_with_candidate_latents(
        ids(), 4, temperature=0.0, candidates=3, return_best_latents=True
    )
    assert (out.shape, tried.shape, told.shape) == ((2, 4), (2, 3, 2, 5), (2,))
    logits, _ = wrapper(ids(), latents=tried, return_loss=False)
    assert torch.equal(lowest_entropy_winner_fn(logits), told)
    best = tried[torch.arange(2), told]
    assert torch.equal(wrapper.generate(ids(), 4, latents=best, temperature=0.0), out)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"num_latent": 1}, "num_latents"),
        ({"candidates": 0}, "at least 1"),
        ({"dim": 17}, "16 features"),
        ({"latent_drop_prob": 2.0}, "probability"),
        ({"winner_fns": [lowest_entropy_winner_fn]}, "each of the 2"),
        ({"inner": net(Encoder)}, "layers that see it"),
    ],
)
def test_keywords_are_checked(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        model(**keywords)


def test_calls_are_checked() -> None:
    wrapper = model()
    with pytest.raises(InputError, match="one of the 2"):
        wrapper(ids(), active_latent_index=2)
    with pytest.raises(InputError, match="latents are"):
        wrapper(ids(), latents=torch.zeros(2, 1, 5))
    with pytest.raises(InputError, match="mask is bool"):
        wrapper(ids(), mask=torch.ones(2, 3))
    with pytest.raises(InputError, match="one set of latents"):
        wrapper.generate(ids(), 2, latents=torch.zeros(2, 3, 2, 5))
    with pytest.raises(KeywordError, match="temperatur"):
        wrapper.generate(ids(), 2, temperatur=0.0)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("keywords", [{}, {"latent_dim": None}])
def test_copies_and_weights(keywords: dict[str, Any], again: Any) -> None:
    wrapper = model(**keywords).eval()
    before, twin, tensors = loss(wrapper, ids()), again(wrapper), to_x_transformers(wrapper)
    with torch.no_grad():
        for param in wrapper.parameters():
            param.zero_()
    torch.testing.assert_close(loss(twin, ids()), before, rtol=0, atol=0)
    load_x_transformers(wrapper, tensors)
    torch.testing.assert_close(loss(wrapper, ids()), before)
