"""Mistakes that beginners make with wrappers: the error names the argument and what it should be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from variform.dialects.x_transformers import (
    AutoregressiveWrapper,
    ContinuousAutoregressiveWrapper,
    ContinuousTransformerWrapper,
    Decoder,
    TransformerWrapper,
    XLAutoregressiveWrapper,
    XValAutoregressiveWrapper,
    XValTransformerWrapper,
)
from variform.dialects.x_transformers.discover_wrapper import DiscoverDecoder
from variform.dialects.x_transformers.dpo import DPO
from variform.dialects.x_transformers.entropy_based_tokenizer import EntropyBasedTokenizer
from variform.dialects.x_transformers.free_transformer import FreeTransformer
from variform.dialects.x_transformers.xm_latent_decoder import XMLatentDecoder
from variform.errors import ConfigError, ShapeError

IDS, NUMBERS = torch.zeros(2, 5, dtype=torch.long), torch.randn(2, 5)
SIZES: dict[str, Any] = {"num_tokens": 9, "max_seq_len": 12}


def layers() -> Decoder:
    return Decoder(dim=16, depth=1, heads=2)


def net(**model: Any) -> TransformerWrapper:
    return TransformerWrapper(attn_layers=layers(), **SIZES, **model)


def language() -> AutoregressiveWrapper:
    return AutoregressiveWrapper(net())


def xval() -> XValAutoregressiveWrapper:
    return XValAutoregressiveWrapper(XValTransformerWrapper(attn_layers=layers(), numerical_token_id=3, **SIZES))


def continuous(dim_out: int = 3) -> ContinuousAutoregressiveWrapper:
    model = ContinuousTransformerWrapper(dim_in=3, dim_out=dim_out, max_seq_len=12, attn_layers=layers())
    return ContinuousAutoregressiveWrapper(model)


def free() -> FreeTransformer:
    return FreeTransformer(num_tokens=9, dim=16, dec_head_depth=1, dec_tail_depth=1, enc_depth=1, max_seq_len=12)


def drawn(**options: Any) -> Any:
    return language().generate(IDS, 3, **options)


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a length as text": (lambda: language().generate(IDS, "5"), "seq_len: must be an integer of at least 1"),
    "no beams' length": (lambda: language().beam_search(IDS, 0), "seq_len: must be an integer of at least 1"),
    "no numbers' length": (lambda: xval().generate(IDS, NUMBERS, 0), "seq_len: must be an integer of at least 1"),
    "no free length": (lambda: free().generate(IDS, 0), "seq_len: must be an integer of at least 1"),
    "no tokens to draw": (lambda: drawn(filter_kwargs={"k": 0}), r"filter_kwargs\.k: must be an integer of at least 1"),
    "no part of them": (lambda: drawn(filter_kwargs={"frac_num_tokens": 0.0}), "frac_num_tokens: a part of no tokens"),
    "a part above one": (lambda: drawn(filter_kwargs={"frac_num_tokens": 5}), r"frac_num_tokens: a number in \[0, 1\]"),
    "a negative threshold": (
        lambda: drawn(filter_logits_fn="top_p", filter_kwargs={"thres": -1.0}),
        r"filter_kwargs\.thres: a number in \[0, 1\]",
    ),
    "no filter": (lambda: drawn(filter_logits_fn=3), "filter_logits_fn: a function of logits is needed"),
    "lengths as a list": (lambda: language()(IDS, lens=[5, 3]), "lens is a tensor of one length a row"),
    "lengths of pieces": (
        lambda: EntropyBasedTokenizer(net(), 1.0)(IDS, lens=[5, 3]),
        "lens is a tensor of one length a row",
    ),
    "no piece": (lambda: EntropyBasedTokenizer(net(), 1.0, max_token_size=0), "max_token_size: must be positive"),
    "no segments": (lambda: XLAutoregressiveWrapper(net(max_mem_len=3), tbptt_steps=0), "tbptt_steps: must be at"),
    "a path without a rank": (
        lambda: XLAutoregressiveWrapper(net(max_mem_len=3), tbptt_steps=2, ttt_low_rank_paths=("a.b",)),
        r"ttt_low_rank_paths: pairs of \(path, rank\)",
    ),
    "another width": (lambda: continuous(5), r"net\.dim_out: what follows has the 3 features"),
    "no predictions": (lambda: continuous()(torch.randn(2, 5, 3), rollout_steps=0), "rollout_steps: must be an"),
    "an unknown code": (lambda: free().generate(IDS, 7, latents=[99999, 0]), r"latents are codes in \[0, "),
    "a mask of floats": (lambda: DPO(net())(IDS, IDS, prompt_mask=torch.ones(2, 5)), "prompt_mask is bool .*float32"),
    "no winner": (lambda: XMLatentDecoder(net(), winner_fn=3), "winner_fn: a function of losses is needed"),
    "no token to begin": (
        lambda: DiscoverDecoder(decoder=net(), num_fillers=3, bos_id=9, pad_id=0, max_seq_len=8),
        "bos_id: must be one of the 9 tokens",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name: str) -> None:
    make, message = MISTAKES[name]
    with pytest.raises((ConfigError, ShapeError), match=message):
        make()


def test_an_argument_of_generate_may_be_misspelt() -> None:
    size: Any = {"num_tokens": 11, "max_seq_len": 8}
    model = TransformerWrapper(attn_layers=Decoder(dim=16, depth=1, heads=2), **size)
    with pytest.raises(ConfigError, match="generate has no argument 'temprature'; did you mean 'temperature'"):
        AutoregressiveWrapper(model).generate(IDS, 3, temprature=1.0)
    with pytest.raises(ConfigError, match="beam_search has no argument 'beems'; did you mean 'beams'"):
        AutoregressiveWrapper(model).beam_search(IDS, 3, beems=2)
