"""Keywords of scores and weights: what does not fit together, and what flash changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import variform.dialects.x_transformers as xt
from variform.errors import ConfigError


def build(stack: str = "Decoder", **keywords: Any) -> Any:
    layers = getattr(xt, stack)(**{"dim": 16, "depth": 1, "heads": 4, "attn_dim_head": 4, **keywords})
    return xt.TransformerWrapper(num_tokens=11, max_seq_len=12, attn_layers=layers).double().eval()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"attn_sigmoid": True, "attn_hard": True}, "only one can make weights"),
        ({"attn_sparse_topk": 0}, "at least one key"),
        ({"attn_sparse_topk_straight_through": True}, "no effect without attn_sparse_topk"),
        ({"attn_selective": True, "attn_max_attend_past": 3}, "a limit on the past drops old ones"),
        ({"stack": "Encoder", "attn_use_cope": True}, "causal attention alone"),
        ({"stack": "Encoder", "attn_selective": True}, "causal attention alone"),
        ({"attn_inverted_attention": True}, "cross_attn_inverted_attention"),
        ({"cross_attend": True, "cross_attn_inverted_attention": True}, "must not see"),
        ({"cross_attend": True, "cross_attn_use_cope": True}, "self-attention alone"),
        ({"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_kwargs": {"bias": 1.0}}, "bias_init"),
        ({"attn_attend_sdp_kwargs": {"enable_flash": False}}, "sdpa_kernel"),
        ({"attn_part": "linear", "attn_sigmoid": True}, "softmax attention alone"),
        ({"attn_custom_attn_fn": "no_such_function"}, "no attention function"),
        ({"attn_custom_attn_fn": 3}, "is needed"),
    ],
)
def test_what_does_not_fit_together(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.2},
        {"attn_custom_attn_fn": torch.sigmoid},
        {"attn_head_learned_sink": True, "rel_pos_bias": True},
    ],
)
@torch.no_grad()
def test_flash_changes_nothing(keywords: dict[str, Any]) -> None:
    found: list[Tensor] = []
    for flash in (False, True):
        torch.manual_seed(0)
        model = build(**keywords, attn_flash=flash)
        for param in model.parameters():
            param += 0.1 * torch.randn_like(param)
        found.append(model(torch.arange(9)[None]))
    assert torch.equal(found[0], found[1])
