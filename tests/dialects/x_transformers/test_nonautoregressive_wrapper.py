"""Masked tokens: training lowers the loss and the cross entropy; errors, copies, weights."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from variform.dialects.x_transformers import Decoder, Encoder, NonAutoregressiveWrapper, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.nonautoregressive_wrapper import SelfCritic
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

LENGTH, TOKENS = 8, 9


def net(logits: int | None = None, **keywords: Any) -> TransformerWrapper:
    layers = Encoder(dim=16, depth=1, heads=2, attn_dim_head=8)
    return TransformerWrapper(
        num_tokens=TOKENS,
        max_seq_len=LENGTH,
        attn_layers=layers,
        **({"logits_dim": logits} if logits else {}),
        **keywords,
    )


def wrapper(**keywords: Any) -> NonAutoregressiveWrapper:
    torch.manual_seed(0)
    return NonAutoregressiveWrapper(net(), mask_id=TOKENS - 1, steps=4, **keywords)


def ids(batch: int = 32) -> Tensor:
    """Rows of one token: each says what the others are."""
    return torch.randint(0, 8, (batch, 1)).expand(-1, LENGTH)


def masked_error(model: NonAutoregressiveWrapper) -> float:
    """The cross entropy of every second token, masked."""
    x = ids()
    hidden = torch.where(torch.arange(LENGTH) % 2 == 0, TOKENS - 1, x)
    logits = model.net(hidden)[:, ::2]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), x[:, ::2]).item()


@pytest.mark.parametrize(
    "keywords",
    [{}, {"use_simple_mdlm_loss_weight": False}, {"schedule": "cosine"}, {"self_token_critic": True}],
)
def test_training_lowers_the_error_of_masked_tokens(keywords: dict[str, Any]) -> None:
    model = wrapper(**keywords)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    before, losses = masked_error(model), []
    for _ in range(100):
        optimiser.zero_grad()
        loss = model(ids())
        loss.loss.backward()
        optimiser.step()
        losses.append(loss.generator_loss.item())
    assert min(losses) > 0
    assert before > 1.9
    assert masked_error(model) < 0.2
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_a_custom_schedule_is_weighed_by_its_own_slope() -> None:
    model = wrapper(schedule=lambda time: (1 - time) ** 2)
    torch.manual_seed(0)
    assert model(ids()).loss > 0


def test_padding_is_neither_masked_nor_seen() -> None:
    model = wrapper(no_replace_prob=0.0, random_token_prob=0.0)
    mask = torch.arange(LENGTH) < torch.tensor([[3], [8]])
    losses = []
    for fill in (0, 5):
        torch.manual_seed(1)
        losses.append(model(torch.where(mask, ids(2)[:1], fill), mask=mask).loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)


def test_the_mask_is_never_drawn() -> None:
    made = wrapper(can_mask_prev_unmasked=True).generate(batch_size=20, filter_thres=None)
    assert made.shape == (20, LENGTH)
    assert int(made.max()) < TOKENS - 1


def test_a_critic_is_told_which_tokens_stand_there() -> None:
    """What is not masked is never wrong, whatever the generator would have drawn there."""
    told = []

    class Critic(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            told.append(x)
            return torch.zeros(*x.shape, 1)

    model = wrapper(token_critic=Critic(), schedule=lambda time: torch.full_like(time, 0.01))
    x = ids(4)
    found = model(x)
    assert ((told[0] != x).sum(1) <= 1).all()
    torch.testing.assert_close(found.critic_loss, torch.tensor(2.0).log())


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"mask_id": TOKENS}, "one of the 9 tokens"),
        ({"stesp": 3}, "steps"),
        ({"steps": 0}, "positive"),
        ({"schedule": "linaer"}, "linear, cosine"),
        ({"no_replace_prob": 1.5}, "probability"),
        ({"self_token_critic": True, "token_critic": net(1)}, "not both"),
    ],
)
def test_keywords_are_checked(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        NonAutoregressiveWrapper(net(), **{"mask_id": TOKENS - 1, **keywords})


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(KeywordError, match="needs this keyword"):
        NonAutoregressiveWrapper(net())
    with pytest.raises(KeywordError, match="TransformerWrapper"):
        NonAutoregressiveWrapper(Decoder(dim=8, depth=1), mask_id=0)
    with pytest.raises(KeywordError, match="return_only_embed"):
        NonAutoregressiveWrapper(net(return_only_embed=True), mask_id=0)
    with pytest.raises(InputError, match="max_seq_len = 8"):
        wrapper()(ids()[:, :5])
    with pytest.raises(KeywordError, match="no critic"):
        wrapper()(ids(), only_train_critic=True)
    with pytest.raises(KeywordError, match="share in"):
        wrapper().generate(filter_thres=1.0)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_independent(again: Any) -> None:
    model = wrapper(self_token_critic=True).eval()

    def run(one: NonAutoregressiveWrapper) -> Tensor:
        torch.manual_seed(0)
        return one(torch.zeros(2, LENGTH, dtype=torch.long)).loss

    before, twin = run(model), again(model)
    assert twin.token_critic.net is twin.net
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    assert torch.equal(run(twin), before)


def test_weights_go_both_ways() -> None:
    for keywords in ({"self_token_critic": True}, {"token_critic": net(1)}, {"self_cond": True}):
        one = wrapper(**keywords)
        other = wrapper(**{name: net(1) if name == "token_critic" else value for name, value in keywords.items()})
        load_x_transformers(other, to_x_transformers(one))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    critic = SelfCritic(net())
    assert critic(ids()).shape == (32, LENGTH, 1)


def test_a_seed_repeats_everything() -> None:
    model = wrapper(self_token_critic=True)
    x, seen = ids(), []
    for _ in range(2):
        torch.manual_seed(3)
        seen.append(torch.stack(list(model(x))))
    assert torch.equal(*seen)


@pytest.mark.parametrize("own", [False, True])
def test_padding_changes_nothing_for_a_critic(own: bool) -> None:
    def net(**more: Any) -> TransformerWrapper:
        layers = Encoder(dim=16, depth=1, heads=2, attn_dim_head=8)
        return TransformerWrapper(num_tokens=11, max_seq_len=6, attn_layers=layers, **more)

    torch.manual_seed(0)
    critic = {"self_token_critic": True} if own else {"token_critic": net(logits_dim=1)}
    wrapper = NonAutoregressiveWrapper(net(), mask_id=10, no_replace_prob=0.0, random_token_prob=0.0, **critic)
    ids, mask = torch.randint(0, 10, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    mask[0, 4:] = False
    other = torch.where(mask, ids, 9 - ids)
    found = []
    for x in (ids, other):
        torch.manual_seed(1)
        found.append(wrapper(x, mask=mask).critic_loss)
    torch.testing.assert_close(*found)


def test_the_models_own_critic_is_given_what_the_model_is() -> None:
    torch.manual_seed(0)
    layers = Encoder(dim=16, depth=1, heads=2, attn_dim_head=8, cross_attend=True)
    net = TransformerWrapper(num_tokens=11, max_seq_len=6, attn_layers=layers)
    wrapper = NonAutoregressiveWrapper(net, mask_id=10, steps=2, self_token_critic=True)
    context = torch.randn(2, 3, 16)
    assert wrapper(torch.randint(0, 10, (2, 6)), context=context).critic_loss > 0
    assert wrapper.generate(batch_size=2, context=context).shape == (2, 6)
