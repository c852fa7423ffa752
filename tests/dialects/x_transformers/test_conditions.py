from typing import Any

import pytest
import torch

from variform.dialects.x_transformers import Decoder, Encoder, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError

SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 4}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dim_condition": 8}, "no effect without use_adaptive"),
        ({"adaptive_condition_mlp": True}, "no effect without use_adaptive"),
        ({"adaptive_condition_mlp_expansion": 2}, "no effect without adaptive_condition_mlp"),
        ({"dynamic_tanh_init_alpha": 0.5}, "no effect without use_dynamic_tanh"),
        ({"use_layerscale": True, "use_adaptive_layerscale": True}, "one scale"),
        ({"use_adaptive_rmsnorm": True, "use_rmsnorm": True}, "only one norm"),
        ({"use_adaptive_rmsnorm": True, "dim_condition": 0}, "must be positive"),
    ],
)
def test_what_does_not_fit(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(KeywordError, match=message):
        Decoder(**SMALL, **keywords)


def test_a_condition_is_asked_for_and_not_ignored() -> None:
    x, condition = torch.randn(2, 5, 16), torch.randn(2, 8)
    adaptive, plain = Encoder(**SMALL, use_adaptive_layerscale=True, dim_condition=8), Encoder(**SMALL)
    assert adaptive(x, condition=condition).shape == (2, 5, 16)
    for layers, given in ((adaptive, {}), (plain, {"condition": condition}), (adaptive, {"condition": x[:, 0]})):
        with pytest.raises(InputError, match="condition"):
            layers(x, **given)
        model = TransformerWrapper(num_tokens=9, max_seq_len=8, attn_layers=layers)
        with pytest.raises(InputError, match="condition"):
            model(torch.zeros(2, 5, dtype=torch.long), **given)


def test_a_pointwise_norm_may_stand_after() -> None:
    layers = Encoder(**SMALL, use_dynamic_tanh=True, pre_norm=False)
    assert layers(torch.randn(2, 5, 16)).abs().max() < 1.0
