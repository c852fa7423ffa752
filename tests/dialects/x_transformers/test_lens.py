"""Lengths of padded rows, ids and options of filters that make no sense are refused by every wrapper with them."""

from typing import Any

import pytest
import torch

from variform.dialects.x_transformers import (
    AutoregressiveWrapper,
    BeliefStateWrapper,
    ContinuousAutoregressiveWrapper,
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    EntropyBasedTokenizer,
    NextLatentWrapper,
    NonAutoregressiveWrapper,
    TransformerWrapper,
    XLAutoregressiveWrapper,
)
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.free_transformer import FreeTransformer
from variform.dialects.x_transformers.gpt_lejepa import LatentAutoregressive
from variform.dialects.x_transformers.xm_latent_decoder import XMLatentDecoder

SIZES = {"dim": 8, "depth": 1, "heads": 2, "attn_dim_head": 4}


def language(**keywords: Any) -> TransformerWrapper:
    return TransformerWrapper(num_tokens=7, max_seq_len=9, attn_layers=Decoder(**SIZES), **keywords)


def continuous() -> ContinuousTransformerWrapper:
    return ContinuousTransformerWrapper(max_seq_len=9, attn_layers=Decoder(**SIZES))


def free() -> FreeTransformer:
    return FreeTransformer(
        num_tokens=7, dim=8, dec_head_depth=1, dec_tail_depth=1, max_seq_len=9, heads=2, attn_dim_head=4, latent_bits=2
    )


IDS = torch.randint(0, 7, (2, 6), generator=torch.Generator().manual_seed(0))
TAKERS = {
    "autoregressive": lambda: (AutoregressiveWrapper(language()), IDS),
    "belief": lambda: (BeliefStateWrapper(language(), language()), IDS),
    "entropy": lambda: (EntropyBasedTokenizer(language(), 1.0), IDS),
    "continuous": lambda: (continuous(), torch.randn(2, 6, 8)),
    "continuous autoregressive": lambda: (ContinuousAutoregressiveWrapper(continuous()), torch.randn(2, 6, 8)),
}
LEARNERS = {
    "autoregressive": lambda: AutoregressiveWrapper(language()),
    "segments": lambda: XLAutoregressiveWrapper(language(max_mem_len=4)),
    "belief": lambda: BeliefStateWrapper(language(), language()),
    "next latent": lambda: NextLatentWrapper(language(), dim=8),
    "latent": lambda: LatentAutoregressive(language(), dim=8),
    "best latents": lambda: XMLatentDecoder(language()),
    "free": free,
}


@pytest.mark.parametrize("name", TAKERS)
def test_bad_lens(name: str) -> None:
    model, x = TAKERS[name]()
    model(x, lens=torch.tensor([3, 6]))
    for lens, message in (
        (torch.tensor([3, 4, 5]), "one length a row"),
        (torch.tensor([3, 7]), "from 0 to the 6"),
        (torch.tensor([-1, 3]), "from 0 to the 6"),
        (torch.tensor([3.0, 4.0]), "integers"),
    ):
        with pytest.raises(InputError, match=message):
            model(x, lens=lens)


@pytest.mark.parametrize("name", LEARNERS)
def test_ids_of_any_integer_type(name: str) -> None:
    model = LEARNERS[name]()
    losses = []
    for ids in (IDS, IDS.int()):
        torch.manual_seed(0)
        losses.append(model(ids))
    assert torch.equal(*losses)


def test_options_of_filters() -> None:
    model = AutoregressiveWrapper(language())
    with pytest.raises(KeywordError, match=r"filter_kwargs.thress: top_p has no option 'thress'.*thres"):
        model.generate(IDS, 2, filter_logits_fn="top_p", filter_kwargs={"thress": 0.4})
    model.generate(IDS, 2, filter_logits_fn=lambda logits, least: logits - least, filter_kwargs={"least": 1.0})


def test_a_free_transformer_says_what_does_not_fit() -> None:
    model = free()
    for ids, message in (
        (IDS[:, :1], "2 of them at least"),
        (IDS[0], "2 of them at least"),
        (IDS.float(), "integers"),
        (IDS + 7, "from 0 to 6"),
    ):
        with pytest.raises(InputError, match=message):
            model(ids)
    for ids in (IDS[:, :0], IDS.float(), IDS + 7, IDS - 7):
        with pytest.raises(InputError):
            model.generate(ids, 8)
    assert model.generate(IDS, 8, filter_logits_fn="top_k").shape == (2, 8)
    assert model.generate(IDS, 8, filter_logits_fn=lambda logits: logits).shape == (2, 8)


def test_the_vector_for_no_states_always_has_a_gradient() -> None:
    layers = Encoder(**SIZES)
    net = TransformerWrapper(num_tokens=7, max_seq_len=6, attn_layers=layers)
    model = NonAutoregressiveWrapper(net, mask_id=0, self_cond=True, self_cond_train_prob=1.0)
    model(IDS).loss.backward()
    assert torch.equal(model.null_embed.grad, torch.zeros(8))
