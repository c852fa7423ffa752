"""Features of positions that a call gives in place of a model's own."""

from typing import Any

import pytest
import torch

from variform.dialects.x_transformers import (
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    MultiInputTransformerWrapper,
    TransformerWrapper,
)
from variform.dialects.x_transformers.errors import InputError
from variform.parts.position.absolute import LearnedPosition

SMALL: dict[str, Any] = {"dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
IDS = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(0))


def model(**keywords: Any) -> Any:
    torch.manual_seed(0)
    return TransformerWrapper(num_tokens=11, max_seq_len=16, attn_layers=Decoder(**SMALL), **keywords).eval()


@torch.no_grad()
def test_a_models_own_positions_given_as_features_change_nothing() -> None:
    built = model(post_emb_norm=True)
    held = next(m for m in built.modules() if isinstance(m, LearnedPosition))
    own = held(None, 7, torch.zeros(2, 7, 16))
    torch.testing.assert_close(built(IDS, pos=own), built(IDS))
    torch.testing.assert_close(built(IDS, pos=own.expand(2, 7, 16)), built(IDS))
    none = built(IDS, pos=torch.zeros(7, 16))
    assert not torch.allclose(none, built(IDS))
    free = model(post_emb_norm=True, use_abs_pos_emb=False)
    free.load_state_dict({k: x for k, x in built.state_dict().items() if "position" not in k})
    torch.testing.assert_close(free(IDS), none)
    torch.testing.assert_close(free(IDS, pos=own), built(IDS))


@torch.no_grad()
def test_they_go_with_what_is_added_and_with_changes() -> None:
    for keywords in ({}, {"use_abs_pos_emb": False}):
        built, features, more = model(**keywords), torch.randn(7, 16), torch.randn(2, 7, 16)
        both = built(IDS, pos=features, sum_embeds=more)
        torch.testing.assert_close(built(IDS, pos=features + more), both)
        doubled = built(IDS, pos=features, sum_embeds=more, transform_token_embeds=lambda x: 2 * x)
        assert not torch.allclose(doubled, both)


@torch.no_grad()
def test_models_of_several_inputs_take_them_too() -> None:
    built = MultiInputTransformerWrapper(
        num_tokens={"a": 11, "b": 5}, max_seq_len=16, attn_layers=Encoder(**SMALL), return_only_embed=True
    ).eval()
    x = {"a": IDS, "b": IDS % 5}
    assert not torch.allclose(built(x, pos=torch.zeros(7, 16)), built(x))


def test_what_does_not_fit() -> None:
    built = model()
    for features in (torch.zeros(7, 8), torch.zeros(6, 16), torch.zeros(3, 7, 16)):
        with pytest.raises(InputError, match=r"\[7, 16\] or \[2, 7, 16\]"):
            built(IDS, pos=features)
    _, cache = built(IDS, return_intermediates=True)
    with pytest.raises(InputError, match="leave the cache out"):
        built(torch.cat((IDS, IDS[:, :1]), 1), pos=torch.zeros(8, 16), cache=cache)
    _, cache = built(IDS, return_intermediates=True, pos=torch.zeros(7, 16))
    with pytest.raises(InputError, match="return_intermediates"):
        built(torch.cat((IDS, IDS[:, :1]), 1), cache=cache)
    with pytest.raises(InputError, match="models of tokens alone"):
        Decoder(**SMALL)(torch.zeros(1, 7, 16), pos=torch.zeros(7, 16))
    features = ContinuousTransformerWrapper(dim_in=3, dim_out=3, max_seq_len=16, attn_layers=Decoder(**SMALL))
    with pytest.raises(InputError, match="vectors of tokens"):
        features(torch.zeros(1, 7, 3), pos=torch.zeros(7, 16))
