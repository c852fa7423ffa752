"""Generation of long texts, with amateurs and with beams, against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.parity.x_transformers.harness import pair, unlike
from tests.parity.x_transformers.test_layers import tokens, wrapped


def autoregressive(options: dict[str, Any], **model: Any) -> tuple[Any, Any]:
    def build(package: Any) -> nn.Module:
        built: nn.Module = package.AutoregressiveWrapper(wrapped("Decoder", options, **model)(package))
        return built

    return pair(build, prefix="net.")


@unlike("keys in the cache stay those of other beams")
@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True, "attn_kv_heads": 2}])
def test_beams_and_their_scores(options: dict[str, Any]) -> None:
    theirs, mine = autoregressive(options)
    expected, found = (model.beam_search(tokens(3, 6), 9, return_beams_and_scores=True) for model in (theirs, mine))
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-6)
    expected, found = (model.beam_search(tokens(3, 6), 9, beams=3) for model in (theirs, mine))
    assert torch.equal(found, expected)


@unlike("models in a tuple are replaced in it", TypeError)
def test_amateurs() -> None:
    theirs, mine = autoregressive({"rotary_pos_emb": True})
    first = autoregressive({"depth": 1})
    second = autoregressive({"alibi_pos_bias": True})
    keywords = ({"alpha": 0.2, "beta": 0.9}, {"alpha": 0.1, "beta": 0.4})
    for pick in (slice(0, 1), slice(0, 2)):
        expected, found = (
            model.generate(
                tokens(3, 6),
                9,
                temperature=0.0,
                amateur_model=tuple(one[side] for one in (first, second))[pick],
                contrastive_decode_kwargs=keywords[pick],
            )
            for side, model in enumerate((theirs, mine))
        )
        assert torch.equal(found, expected)


@unlike("nothing to read without the restriction", UnboundLocalError)
def test_beyond_the_length() -> None:
    theirs, mine = autoregressive({"rotary_pos_emb": True})  # of 20 tokens
    for options in ({}, {"restrict_to_max_seq_len": False}):
        expected, found = (model.generate(tokens(3, 6), 30, temperature=0.0, **options) for model in (theirs, mine))
        assert torch.equal(found, expected)
    theirs, mine = autoregressive({})
    expected = theirs.generate(tokens(3, 6), 30, temperature=0.0, cache_kv=False)  # with a cache it fails upstream
    assert torch.equal(mine.generate(tokens(3, 6), 30, temperature=0.0), expected)


def test_beyond_the_length_with_memory_tokens() -> None:
    theirs, mine = autoregressive({"rotary_pos_emb": True}, num_memory_tokens=3)
    expected = theirs.generate(tokens(2, 6), 30, temperature=0.0)
    for cache_kv in (True, False):
        assert torch.equal(mine.generate(tokens(2, 6), 30, temperature=0.0, cache_kv=cache_kv), expected)


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}])
@pytest.mark.parametrize("memory", [{}, {"num_memory_tokens": 2}], ids=["plain", "memory"])
def test_features_in_front_stay_before_the_last_tokens(options: dict[str, Any], memory: dict[str, Any]) -> None:
    theirs, mine = autoregressive(options, **memory)
    given = {"prepend_embeds": torch.randn(2, 3, 24, dtype=torch.float64), "temperature": 0.0}
    expected = theirs.generate(tokens(2, 6), 30, cache_kv=False, **given)  # with a cache it reads them again
    for cache_kv in (True, False):
        assert torch.equal(mine.generate(tokens(2, 6), 30, cache_kv=cache_kv, **given), expected)
    best = [mine.beam_search(tokens(2, 6), 20, beams=2, cache_kv=cache, **given) for cache in (True, False)]
    assert torch.equal(*best)
