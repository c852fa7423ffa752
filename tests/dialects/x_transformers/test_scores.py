"""Keywords of scores and weights: what does not fit together, and what flash changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
import variform.dialects.x_transformers as xt
from variform.dialects.x_transformers.errors import InputError
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


@torch.no_grad()
def test_drawn_keys_are_told_with_their_probabilities() -> None:
    model = build(attn_gumbel_softmax=True, attn_flash=True)
    ids = torch.arange(9)[None]
    _, found = model(ids, return_intermediates=True, return_gumbel_log_probs=True)
    one = found.attn_intermediates[0]
    weights = one.post_softmax_attn
    assert torch.equal(weights, one.post_softmax_attn), "told again, they are the same draws"
    assert bool(((weights == 0) | (weights == 1)).all())
    expected = (one.pre_softmax_attn.softmax(-1) * weights).sum(-1).log()
    torch.testing.assert_close(one.log_probs, expected, rtol=0, atol=1e-12)
    assert not torch.equal(model(ids), model(ids)), "keys are drawn in evaluation too"
    with pytest.raises(InputError, match="return_intermediates"):
        model(ids, return_gumbel_log_probs=True)


@pytest.mark.parametrize("keywords", [{}, {"attn_softclamp_logits": True}, {"attn_data_dependent_alibi": True}])
@torch.no_grad()
def test_packed_documents_do_not_see_one_another(keywords: dict[str, Any]) -> None:
    model = build(attn_flash=True, attn_flash_pack_seq=True, rotary_pos_emb=True, **keywords)
    ids = torch.randint(0, 11, (1, 12))
    out = model(ids, flash_pack_seq_kwargs={"cu_seqlens_q": torch.tensor([0, 5, 12]), "max_seqlen_q": 7})
    torch.testing.assert_close(out[:, :5], model(ids[:, :5]), rtol=0, atol=1e-12)
    torch.testing.assert_close(out[:, 5:], model(ids[:, 5:]), rtol=0, atol=1e-12)
    stack = model.attn_layers
    x = torch.randn(1, 12, 16, dtype=torch.float64)
    out = stack(x, flash_pack_seq_kwargs={"cu_seqlens_q": torch.tensor([0, 5, 12])})
    torch.testing.assert_close(out[:, 5:], stack(x[:, 5:]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 12])}, "these are known"),
        ({"cu_seqlens_q": torch.tensor([0, 11])}, "grows from 0 to the 12"),
        ({"max_seqlen_q": 3}, "needs cu_seqlens_q"),
        ({"cu_seqlens_q": torch.tensor([0, 12]), "cu_seqlens_k": torch.tensor([0, 3, 12])}, "one row"),
    ],
)
def test_documents_that_cut_no_row(packed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(attn_flash_pack_seq=True)(torch.zeros(1, 12, dtype=torch.long), flash_pack_seq_kwargs=packed)


@pytest.mark.parametrize("flash", [False, True])
@torch.no_grad()
def test_a_call_has_its_own_causality_with_flash_as_without(flash: bool) -> None:
    model = build(attn_flash=flash)
    ids = torch.arange(9)[None]
    other = ids.clone()
    other[:, -1] = 10
    assert torch.equal(model(ids)[:, :-1], model(other)[:, :-1])
    assert not torch.equal(model(ids, causal=False)[:, :-1], model(other, causal=False)[:, :-1])
    assert torch.equal(model(ids, causal=True), model(ids))
    assert model.attn_layers.causal
    with pytest.raises(InputError, match="attn_selective"):
        build(attn_selective=True)(ids, causal=False)
    with pytest.raises(InputError, match="built for one causality"):
        build(attn_part="linear")(ids, causal=False)


@torch.no_grad()
def test_a_bias_given_to_a_stack_is_added_to_those_of_the_data() -> None:
    model = build(attn_data_dependent_alibi=True, rel_pos_bias=True, attn_num_mem_kv=1)
    x, bias = torch.randn(2, 9, 16, dtype=torch.float64), torch.randn(4, 9, 9, dtype=torch.float64)
    stack = model.attn_layers
    assert not torch.allclose(stack(x, attn_bias=bias), stack(x))
    torch.testing.assert_close(stack(x, attn_bias=0 * bias), stack(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("keywords", "device", "backend"),
    [
        ({"attn_softclamp_logits": True}, "cpu", "chunked"),
        ({"rel_pos_bias": True}, "cpu", "chunked"),
        ({"alibi_pos_bias": True}, "cpu", "chunked"),
        ({"attn_head_learned_sink": True}, "cpu", "chunked"),
        ({"attn_sparse_topk": 8}, "cpu", "chunked"),
        ({"attn_selective": True}, "cpu", "reference"),
        ({"attn_softclamp_logits": True}, "cuda", "flex"),
        ({"rel_pos_bias": True}, "cuda", "flex"),
        ({"attn_head_learned_sink": True}, "cuda", "sdpa"),
        ({"attn_sparse_topk": 8}, "cuda", "reference"),
    ],
)
def test_explain_says_what_serves_scores_under_flash(keywords: dict[str, Any], device: str, backend: str) -> None:
    layers = xt.Decoder(dim=64, depth=1, heads=4, attn_dim_head=16, attn_flash=True, **keywords)
    model = xt.TransformerWrapper(num_tokens=11, max_seq_len=1024, attn_layers=layers)
    found = vf.explain(model.native, batch=2, length=1024, device=device)
    assert [choice.chosen for choice in found.rows] == [backend]


@pytest.mark.parametrize("keywords", [{}, {"attn_on_attn": True}])
@torch.no_grad()
def test_causality_of_a_call_leaves_cross_attention_alone(keywords: dict[str, Any]) -> None:
    layers = xt.Encoder(dim=16, depth=1, heads=2, attn_dim_head=8, cross_attend=True, **keywords).eval()
    x, context = torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    other = context.clone()
    other[:, -1] += 1.0
    found, changed = (layers(x, context=one, causal=True) for one in (context, other))
    assert (found[:, 0] != changed[:, 0]).any()


@torch.no_grad()
def test_hidden_keys_count_for_no_contextual_position() -> None:
    layers = xt.Decoder(dim=16, depth=2, heads=4, attn_dim_head=4, attn_use_cope=True, attn_cope_talking_heads=True)
    size: Any = {"num_tokens": 11, "max_seq_len": 16, "use_abs_pos_emb": False}
    model = xt.TransformerWrapper(attn_layers=layers, **size).double().eval()
    ids = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))
    kept = [place for place in range(9) if place != 4]
    seen = torch.ones(9, 9, dtype=torch.bool)
    seen[:, 4] = False
    found = model(ids, attn_mask=seen)[:, kept]
    torch.testing.assert_close(found, model(ids[:, kept]), rtol=0, atol=1e-12)
