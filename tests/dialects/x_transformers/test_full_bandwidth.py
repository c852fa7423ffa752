"""`FullBandwidth`: causality, padding, training, generation, errors, copies."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.dialects.x_transformers.test_next_latent_wrapper import ids, padded
from variform.dialects.x_transformers import Decoder, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.full_bandwidth import FullBandwidth
from variform.weights.x_transformers import load_x_transformers, to_x_transformers


def net(layers: dict[str, Any] | None = None, **keywords: Any) -> TransformerWrapper:
    torch.manual_seed(0)
    size = {"dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8, "depth_scale_residual": True, **(layers or {})}
    wrapped = {"tie_embedding": True, "post_emb_norm": True, **keywords}
    return TransformerWrapper(num_tokens=9, max_seq_len=12, attn_layers=Decoder(**size), **wrapped)


def model(inner: TransformerWrapper | None = None, **keywords: Any) -> FullBandwidth:
    return FullBandwidth(inner or net(), **keywords).eval()


@pytest.mark.parametrize("pairs", ["paper", "prev_with_self", "dense"])
def test_tokens_do_not_see_what_comes(pairs: str) -> None:
    wrapper = model(recirc_pairs=pairs, temporal_parallel_passes=3).double()
    before = wrapper(ids(), return_loss=False)
    other = ids()
    other[:, 4] = (other[:, 4] + 1) % 9
    after = wrapper(other, return_loss=False)
    assert torch.equal(after[:, :4], before[:, :4])
    assert (after[:, 4:] != before[:, 4:]).any(-1).all()


def test_features_of_the_token_before_are_read() -> None:
    wrapper = model().double()
    first, second = wrapper(ids(), return_loss=False, return_all_pass_logits=True).all_pass_logits
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.allclose(first[:, 1:], second[:, 1:])


def test_padding_changes_no_loss() -> None:
    wrapper = model(temporal_parallel_passes=3)
    torch.testing.assert_close(wrapper(padded(ids(), 3)), wrapper(ids()))


def test_features_move_in_training_alone() -> None:
    wrapper = model(jitter_noise_delta=0.5)
    torch.testing.assert_close(wrapper(ids()), wrapper(ids()), rtol=0, atol=0)
    wrapper.train()
    assert wrapper(ids()) != wrapper(ids())


def test_training_lowers_the_loss_of_all_passes() -> None:
    wrapper, seq = model(transition="residual").train(), ids(8, 9)
    optimiser = torch.optim.Adam(wrapper.parameters(), lr=1e-2)
    first = wrapper(seq, return_loss_breakdown=True).loss_breakdown.all_pass_losses
    for _ in range(20):
        optimiser.zero_grad()
        wrapper(seq).backward()
        optimiser.step()
    last = wrapper(seq, return_loss_breakdown=True).loss_breakdown.all_pass_losses
    assert all(after < 0.8 * before for before, after in zip(first, last, strict=True))


def test_generation() -> None:
    wrapper = model().double().train()
    made = wrapper.generate(ids()[:, :3], 6, temperature=0.0)
    assert made.shape == (2, 6)
    assert wrapper.training
    torch.testing.assert_close(wrapper.generate(ids()[0, :3], 6, temperature=0.0), made[0])
    plain = wrapper.generate(ids()[:, :3], 6, temperature=0.0, temporal_parallel_passes=1)
    never = wrapper.generate(ids()[:, :3], 6, temperature=0.0, process_prompt=False, should_fuse_latent=lambda _: False)
    assert torch.equal(plain, never)
    stop = int(made[0, 1])
    ended = wrapper.generate(ids()[:, :3], 6, temperature=0.0, eos_token=stop)
    assert (ended[0, 1:] == stop).all()
    with pytest.raises(KeywordError, match="max_seq_len = 12"):
        wrapper.generate(ids(), 20)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: model(recirc_pair="prev"), "recirc_pairs"),
        (lambda: model(recirc_pairs="previous"), "prev"),
        (lambda: model(recirc_pairs=((3, 1),)), "out of range"),
        (lambda: model(recirc_pairs=((2, 1), (2, 1))), "twice"),
        (lambda: model(recirc_pairs=(2, 1)), "a pair is"),
        (lambda: model(transition="lstm"), "residual_glu"),
        (lambda: model(temporal_parallel_passes=0), "positive"),
        (lambda: model(dynamic_loss_decay=0.3), "no effect"),
        (lambda: model(net({"depth_scale_residual": False})), "depth scaling"),
        (lambda: model(net(tie_embedding=False)), "weight tying"),
        (lambda: model(net(post_emb_norm=False)), "post embedding norm"),
        (lambda: model(net(num_memory_tokens=2)), "plain stack"),
    ],
)
def test_keywords_are_checked(build: Any, named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        build()


def test_calls_are_checked() -> None:
    with pytest.raises(InputError, match="two at least"):
        model()(ids()[:, :1])
    with pytest.raises(InputError, match="at least 1 pass"):
        model()(ids(), temporal_parallel_passes=0)


class Mean(nn.Module):
    """Another transition."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, latents: Tensor, stream: Tensor) -> Tensor:
        return (latents + stream) / 2 * self.gain


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("keywords", [{}, {"transition": Mean}, {"transition": "residual_glu"}])
def test_copies_and_weights(keywords: dict[str, Any], again: Any) -> None:
    wrapper = model(**keywords)
    before, twin, tensors = wrapper(ids()), again(wrapper), to_x_transformers(wrapper)
    with torch.no_grad():
        for param in wrapper.parameters():
            param.zero_()
    torch.testing.assert_close(twin(ids()), before, rtol=0, atol=0)
    load_x_transformers(wrapper, tensors)
    torch.testing.assert_close(wrapper(ids()), before)
