"""`BeliefStateWrapper`: padding, weights of pairs, distances, generation, errors, copies."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.dialects.x_transformers.test_next_latent_wrapper import ids, net
from variform.dialects.x_transformers import BeliefStateWrapper, Decoder, Encoder, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.weights.x_transformers import load_x_transformers, to_x_transformers


def model(one: bool = False, other: Any = None, **keywords: Any) -> BeliefStateWrapper:
    back = None if one else net() if other is None else other
    return BeliefStateWrapper(net(), back, **keywords)


@pytest.mark.parametrize("keywords", [{}, {"pred_distance": True}, {"backward_ar_loss_weight": 0.3}])
def test_padded_rows_count_as_they_do_alone(keywords: dict[str, Any]) -> None:
    """Upstream's backward states are one token off in padded rows, and it pairs tokens with padding."""
    wrapper = model(**keywords).double()
    seq = ids(2, 7)
    alone = torch.stack([wrapper(seq[:1]), wrapper(seq[1:, :4])])
    both = wrapper(seq, lens=torch.tensor([7, 4]))
    pairs = torch.tensor([21.0, 6.0])  # L (L - 1) / 2
    torch.testing.assert_close(both, (alone * pairs).sum() / pairs.sum())
    seq[1, 4:] = -1
    torch.testing.assert_close(wrapper(seq, lens=torch.tensor([7, 4])), both)


def test_weights_of_pairs() -> None:
    """Upstream leaves them out where the previous tokens count as much as the next ones."""
    wrapper = model()
    assert wrapper(ids(), loss_weight_by_fb_indices=lambda pairs: torch.zeros(len(pairs))) == 0
    whole = wrapper(ids(), loss_weight_by_fb_indices=lambda pairs: torch.ones(len(pairs), 2))
    torch.testing.assert_close(whole, wrapper(ids()))
    with pytest.raises(InputError, match="weights are"):
        wrapper(ids(), loss_weight_by_fb_indices=lambda pairs: torch.ones(3))


def test_a_distance_that_is_told_changes_what_is_predicted() -> None:
    """Upstream computes what is told and does not use it."""
    wrapper = model(cond_on_distance=True, cond_on_distance_prob=0.999)
    wrapper(ids()).backward()
    gains = wrapper.objective.distance_gains
    assert gains is not None
    assert gains[0].weight.grad.abs().max() > 0
    wrapper.eval()
    torch.testing.assert_close(wrapper(ids()), wrapper(ids()))


def test_the_second_model_learns_where_a_text_ends() -> None:
    wrapper = model()
    wrapper(ids()).backward()
    assert wrapper.suffix_token.grad is not None
    assert wrapper.suffix_token.grad.abs().max() > 0


def test_training_towards_a_goal() -> None:
    wrapper = model()
    torch.manual_seed(0)
    goals = torch.randint(1, 9, (16, 1))
    seq = torch.cat((torch.zeros(16, 1).long(), goals.expand(-1, 4)), 1)
    optimiser = torch.optim.Adam(wrapper.parameters(), lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        wrapper(seq).backward()
        optimiser.step()
    made = wrapper.generate_with_suffix_cond(seq[:, :1], 3, temperature=0.0, suffix=goals)
    assert (made == goals).float().mean() > 0.9


@pytest.mark.parametrize("keywords", [{}, {"decode_backwards": True}, {"suffix": torch.tensor([1, 2])}])
def test_generation_with_a_cache_and_without(keywords: dict[str, Any]) -> None:
    wrapper = model().double().train()
    made = []
    for cached in (True, False):
        torch.manual_seed(1)
        made.append(wrapper.generate_with_suffix_cond(ids(), 4, temperature=0.0, cache_kv=cached, **keywords))
    assert torch.equal(*made)
    assert wrapper.training
    assert wrapper.generate_with_suffix_cond(ids()[0], 4, **keywords).shape == (4,)


def wide() -> TransformerWrapper:
    return TransformerWrapper(num_tokens=9, max_seq_len=12, attn_layers=Decoder(dim=24, depth=1, heads=2))


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"pred_distanc": True}, "pred_distance"),
        ({"train_frac_forward_backward_pairs": 0.0}, r"\(0, 1\]"),
        ({"cond_on_distance_prob": 1.0}, r"\(0, 1\)"),
        ({"max_pred_distance": 3}, "no effect"),
        ({"other": wide()}, "features"),
        ({"other": net(Encoder)}, "layers that see it"),
        ({"other": net(emb_dim=8)}, "emb_dim"),
        ({"pred_distance_loss_weight": -1.0}, "negative"),
    ],
)
def test_keywords_are_checked(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        model(**keywords)


def test_calls_are_checked() -> None:
    wrapper = model()
    with pytest.raises(InputError, match="one length a row"):
        wrapper(ids(), lens=torch.tensor([3]))
    with pytest.raises(InputError, match="two tokens"):
        wrapper(ids()[:, :1])
    with pytest.raises(InputError, match="suffix is"):
        wrapper.generate_with_suffix_cond(ids(), 2, suffix=torch.zeros(3, 2).long())
    with pytest.raises(InputError, match="leave the suffix out"):
        wrapper.generate_with_suffix_cond(ids(), 2, suffix=torch.tensor([1]), decode_backwards=True)
    with pytest.raises(InputError, match="max_seq_len is 12"):
        wrapper.generate_with_suffix_cond(ids(), 20)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("keywords", [{}, {"one": True}, {"pred_distance": True, "cond_on_distance": True}])
def test_copies_and_weights(keywords: dict[str, Any], again: Any) -> None:
    wrapper = model(**keywords).eval()
    before, twin, tensors = wrapper(ids()), again(wrapper), to_x_transformers(wrapper)

    def read(one: BeliefStateWrapper) -> Tensor:
        return one.generate_with_suffix_cond(ids(), 3, temperature=0.0)

    said = read(wrapper)
    with torch.no_grad():
        for param in wrapper.parameters():
            param.zero_()
    torch.testing.assert_close(twin(ids()), before, rtol=0, atol=0)
    assert torch.equal(read(twin), said)
    load_x_transformers(wrapper, tensors)
    torch.testing.assert_close(wrapper(ids()), before)
