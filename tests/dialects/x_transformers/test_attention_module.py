"""`Attention` by itself: what it refuses, and what copies of it are."""

import copy
import pickle
from typing import Any

import pytest
import torch

from variform.dialects.x_transformers import AdaptiveRMSNorm, Attention, Decoder, RMSNorm, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"qk_nrom": True}, "did you mean 'qk_norm'"),
        ({"rotate_num_heads": 2}, "a stack of attentions has it"),
        ({"kv_heads": 3}, "must divide heads"),
        ({"sublayer_dropout": 1.5}, "sublayer_dropout: .*less than 1"),
        ({"sublayer_dropout": None}, "sublayer_dropout: int or float is needed"),
        ({"dim_context": []}, "dim_context: int is needed"),
        ({"project_out": False}, "without an output map"),
        ({"part": "mamba"}, "part: an Attention by itself has queries and keys"),
    ],
)
def test_bad_keywords(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(KeywordError, match=message):
        Attention(16, heads=4, dim_head=5, **keywords)


def test_what_stacks_have_is_refused() -> None:
    attention, x = Attention(16, heads=4, dim_head=4, causal=True), torch.randn(1, 5, 16)
    with pytest.raises(KeywordError, match="mem"):
        attention(x, mem=x)
    with pytest.raises(KeywordError, match="no argument 'maks'"):
        attention(x, maks=None)
    with pytest.raises(KeywordError, match="settled when it is built"):
        attention(x, causal=False)
    with pytest.raises(InputError, match="exclude one another"):
        attention(x, rel_pos=lambda i, j: torch.zeros(4, i, j), attn_bias=torch.zeros(5, 5))
    with pytest.raises(InputError, match="its own sequence alone"):
        Attention(16, heads=4, orthog_projected_values=True)(x, context=x)
    with pytest.raises(InputError, match="pass context"):
        Attention(16, heads=4, dim_context=8)(x)


def test_copies_read_contexts_through_their_own_maps() -> None:
    attention, x, context = Attention(16, heads=4, dim_head=4), torch.randn(1, 5, 16), torch.randn(1, 3, 16)
    before = attention(x, context)
    for other in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):  # what was just made
        torch.testing.assert_close(other(x, context), before)
        with torch.no_grad():
            other.native.query.out.weight.zero_()
        assert not torch.allclose(other(x, context), before)
    torch.testing.assert_close(attention(x, context), before)
    assert len(list(attention.parameters())) == 4


def test_scores_of_a_model_are_clipped_and_weights_for_muon_are_told() -> None:
    torch.manual_seed(0)
    layers = Decoder(dim=16, depth=2, heads=4, attn_dim_head=4, attn_kv_heads=2, cross_attend=True)
    model = TransformerWrapper(num_tokens=20, max_seq_len=8, attn_layers=layers)
    ids, context = torch.randint(0, 20, (2, 7)), torch.randn(2, 5, 16)
    with torch.no_grad():
        for param in layers.parameters():
            param += 0.5 * torch.randn_like(param)
        _, found = model(ids, context=context, return_intermediates=True)
        first = found.attn_intermediates[0].pre_softmax_attn
        assert float(first.amax()) > 2.0
        model.attn_qk_clip_(found, tau=2.0)
        _, found = model(ids, context=context, return_intermediates=True)
        assert float(found.attn_intermediates[0].pre_softmax_attn.amax()) <= 2.0 + 1e-5
        layers.attn_qk_clip_(found, tau=1e-3)
    shapes = sorted(tuple(param.shape) for param in model.muon_parameters())
    assert len(shapes) == 4 * 2 + 2 * 2  # values and output of four attentions, two maps of two feedforwards
    assert all(len(shape) == 2 for shape in shapes)


def test_norms_by_themselves() -> None:
    x, condition = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    norm = RMSNorm(16).double()
    unit = x / x.norm(dim=-1, keepdim=True) * 4.0
    torch.testing.assert_close(norm(x), unit)
    adaptive = AdaptiveRMSNorm(16, 3).double()
    torch.testing.assert_close(adaptive(x, condition=condition), unit)
    adaptive.native.gain.weight.data.normal_()
    expected = unit * (1 + condition @ adaptive.native.gain.weight.T).unsqueeze(1)
    torch.testing.assert_close(adaptive(x, condition=condition), expected)
    with pytest.raises(InputError, match="condition"):
        adaptive(x)
