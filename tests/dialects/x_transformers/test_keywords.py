"""Every keyword is honoured or refused; nothing is ignored."""

import inspect
from typing import Any

import pytest
import torch

from variform.dialects.x_transformers import (
    AttentionLayers,
    AutoregressiveWrapper,
    CrossAttender,
    Decoder,
    Encoder,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
)
from variform.dialects.x_transformers.attention.table import ATTENTION
from variform.dialects.x_transformers.call import HONOURED, MODEL_CALL, STACK_CALL
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.feedforward import FEEDFORWARD
from variform.dialects.x_transformers.model import MODEL
from variform.dialects.x_transformers.routes import LAYERS
from variform.dialects.x_transformers.table import REQUIRED, Table
from variform.dialects.x_transformers.vision import VISION
from variform.errors import ConfigError, ShapeError

SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 4}
PLAIN = {"enable_flash": False, "enable_mem_efficient": False}
POOLED = {"attn_aggregated_residuals": True, "attn_aggregated_residual_kwargs": {"lora_rank": 3}}
SIDES: dict[str, Any] = {
    f"{side}_{name}": value
    for side in ("enc", "dec")
    for name, value in {"num_tokens": 11, "max_seq_len": 8, "depth": 1, "heads": 2}.items()
}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rotary_pos_embb": True}, "rotary_pos_embb.*did you mean 'rotary_pos_emb'"),
        ({"attn_qk_nrom": True}, "attn_qk_nrom.*did you mean 'attn_qk_norm'"),
        ({"ff_glue": True}, "ff_glue.*did you mean 'ff_glu'"),
        ({"cross_attn_zzz": 2}, "no keyword 'cross_attn_zzz'"),
        ({"total_nonsense": 3}, "no keyword 'total_nonsense'"),
        ({"attn_heads": 2}, "no keyword 'attn_heads'"),
        ({"shift_tokens": (1, 0)}, "one amount for each of the 4 sublayers"),
        ({"shift_tokens": -1}, "a number of tokens, 0 or more"),
        ({"shift_tokens": 16}, "17 pieces are cut, and there are 16 features"),
        ({"integrate_layers": True, "weight_tie_layers": True}, "runs layers at several places"),
        ({"integrate_layers": True, "layers_execute_order": (0, 1, 0, 1)}, "runs layers at several places"),
        ({"integrate_layers": True, "attn_aggregated_residuals": True}, "integrate_layers or attn_aggregated"),
        ({"layer_integrate_use_softmax": False}, "no effect without integrate_layers"),
        ({"attn_aggregated_residuals": True}, "a rank below dim = 16"),
        (
            {"attn_aggregated_residuals": True, "attn_aggregated_residual_kwargs": {"lora_rnak": 3}},
            "no such option.*lora_rank",
        ),
        ({"unet_skips": True, "depth": 1}, "a skip needs two blocks"),
        ({"unet_skips": True, "weight_tie_layers": True}, "skips join blocks of one make"),
        (
            {"add_value_residual": True, "attn_kv_heads": (1, 2)},
            "values of all layers are put together, and attn_kv_heads",
        ),
        ({"residual_attn": True, "attn_max_attend_past": (1, 2)}, "scores of all layers are put together"),
        ({"residual_attn": True, "attn_num_mem_kv": (0, 3)}, "attn_num_mem_kv makes them unlike"),
        ({"residual_attn": True, "attn_part": "linear"}, "has no scores that could be handed on"),
        ({"cross_residual_attn": True}, "no effect without cross_attend"),
        ({"learned_value_residual_mix": False}, "no effect without add_value_residual"),
        ({"reinject_input": True, "num_residual_streams": 2}, "several residual streams"),
        ({"qkv_receive_diff_residuals": True}, "no effect with one residual stream"),
        ({"cross_attn_tokens_dropout": 0.5}, "no effect without cross_attend"),
        ({"cross_attend": True, "cross_attn_tokens_dropout": 1.0}, r"a probability in \[0, 1\)"),
        ({"ff_solu": True, "ff_swish": True}, "one activation"),
        ({"rotary_emb_dim": 4}, "no effect without rotary_pos_emb"),
        ({"attn_qk_norm_scale": 4}, "no effect without attn_qk_norm"),
        ({"cross_attn_kv_heads": 2}, "no effect without cross_attend"),
        ({"only_attn": True, "ff_glu": True}, "no effect without feedforwards"),
        ({"attn_dim_context": 8}, "cross_attn_dim_context"),
        ({"causal": True}, "settles causality itself"),
        ({"use_rmsnorm": 1}, "bool is needed"),
        ({"use_rmsnorm": True, "use_scalenorm": True}, "only one norm"),
        ({"rel_pos_bias": True, "alibi_pos_bias": True}, "only one bias"),
        ({"alibi_pos_bias": True, "alibi_num_heads": 5}, "must lie in 1..heads = 4"),
        ({"sandwich_norm": True, "pre_norm": False}, "needs pre_norm=True"),
        ({"gate_residual": True, "orthog_residual": True}, "only one residual can be chosen"),
        ({"gate_residual": True, "scale_residual_constant": 2.0}, "has no effect with gate_residual"),
        ({"num_residual_streams": 2, "scale_residual": True}, "has no effect with hyper connections"),
        ({"num_residual_streams": 2, "gate_residual": True}, "not by gate_residual"),
        ({"num_residual_streams": 0}, "at least one is needed"),
        ({"qkv_receive_diff_residuals": True}, "has no effect with one residual stream"),
        ({"legacy": True}, "has no effect with one residual stream"),
        ({"hyper_conn_sinkhorn_iters": 3}, "has no effect with one residual stream"),
        ({"num_residual_streams": 2, "legacy": True, "hyper_conn_sinkhorn_iters": 3}, "has no effect with legacy"),
        ({"depth_scale_residual": True, "zero_init_branch_output": True}, "has no effect with zero_init_branch_output"),
        ({"depth_scale_residual": True, "ff_output_proj_depth": 3}, "depth_scale_residual=True settles it"),
        ({"pre_and_post_norm": True, "pre_norm": False}, "has no effect with pre_norm=False"),
        ({"macaron": True, "only_attn": True}, "macaron has no effect without feedforwards"),
        ({"attn_qk_norm": True, "attn_qk_norm_dim_scale": True, "attn_qk_norm_scale": 4}, "whose gains are learned"),
        ({"custom_layers": ("a", "f"), "depth": None, "cross_attend": True}, "custom_layers has no 'c'"),
        ({"cross_attend": True, "sandwich_coef": 2}, "sandwich_coef = depth has no 'c'"),
        ({"depth": 4, "par_ratio": 5, "shift_tokens": (0, 2, 1, 0)}, "one amount for each of the 10 sublayers"),
        ({**POOLED, "depth_scale_residual": 0.3}, "depth_scale_residual: has no effect with attn_aggregated"),
        ({**POOLED, "depth_scale_residual": True}, "depth_scale_residual: has no effect with attn_aggregated"),
        ({**POOLED, "scale_residual": 0.3}, "scale_residual: has no effect with attn_aggregated"),
        ({"attn_dim_head": 6, "rotary_xpos": True}, "attn_dim_head: .*rotary_emb_dim=4"),
        ({"custom_layers": ("a", "a"), "depth": None, "ff_glu": True}, "no effect without feedforwards"),
        ({"custom_layers": ("f", "f"), "depth": None, "attn_qk_norm": True}, "no effect without attention"),
        ({"gated_multi_residual": True}, "needs read_gate_rank"),
        ({"mv_split_residual": True, "residual_fn_kwargs": {"learnt": True}}, "did you mean 'learned'"),
        ({"residual_fn_kwargs": {"learned": True}}, "the sum has no such option"),
        ({"layer_dropout": (0.1, 0.2, 0.3)}, "one rate for each of the 4 sublayers"),
        ({"attn_kv_heads": 3}, "must divide heads = 4.*nearest that divide it: 2 or 4"),
        ({"attn_kv_heads": 2, "attn_one_kv_head": True}, "one key head is what one_kv_head asks for"),
        ({"attn_qk_norm": True, "attn_qk_rmsnorm": True}, "only one norm of queries and keys"),
        ({"heads": 1}, "the heads' 4 features must be the 16 that go out"),
        ({"heads": 0}, "heads.*greater than 0"),
        ({"heads": 2.5}, "heads: int is needed"),
        ({"depth": 0}, "at least one block"),
        ({"depth": None}, "depth must be given"),
        ({"depth": "2"}, "depth: int is needed"),
        ({"dim": -3}, "dim.*greater than 0"),
        ({"ff_mult": 0}, "greater than 0"),
        ({"ff_mult": (2, 4, 8)}, "int or float is needed"),
        ({"ff_mult": (2, "4")}, "int or float is needed"),
        ({"attn_kv_heads": (2, 3)}, "must divide heads = 4"),
        ({"attn_use_latent_kv": True}, "needs the features of the latent"),
        ({"attn_latent_rope_subheads": 1}, "no effect without attn_use_latent_kv"),
        ({"attn_dim_out": 8}, "must have as many"),
        ({"attn_l2_distance": True, "attn_use_cope": True}, "these scores are distances"),
        ({"attn_swiglu_values": True}, "needs gate_values or output_gate"),
        ({"attn_low_rank_silu_gates": False}, "no effect without a gate of low rank"),
        ({"attn_gate_values": True, "attn_gate_values_rank": 99}, "a rank below 16 is needed"),
        ({"attn_output_gate": True, "attn_output_gate_rank": 2, "attn_output_gate_headwise": True}, "has no rank"),
        ({"attn_qk_norm": True, "attn_qk_norm_groups": 3}, "must divide the 4 features of a head"),
        ({"attn_laser_softclamp_value": (15.0, 3.0)}, "has no effect without attn_laser"),
        ({"ff_swish": True, "ff_relu_squared": True}, "one activation"),
        ({"attn_dropout": 1.5}, "attn_dropout: .*less than 1"),
        ({"attn_dropout": None}, "attn_dropout: int or float is needed"),
        ({"attn_sublayer_dropout": float("nan")}, "attn_sublayer_dropout: .*less than 1"),
        ({"ff_dropout": True}, "ff_dropout: int or float is needed"),
        ({"ff_sublayer_dropout": -0.5}, "ff_sublayer_dropout: .*less than 1"),
        ({"ff_sublayer_dropout": "0.1"}, "ff_sublayer_dropout: int or float is needed"),
        ({"ff_output_proj_depth": 0}, "ff_output_proj_depth: at least 1"),
        ({"layer_dropout": (0.1,)}, "one rate for each of the 4 sublayers"),
        ({"layer_dropout": 1.0}, r"a probability in \[0, 1\)"),
        ({"sandwich_coef": 3}, "must lie in 1..depth = 2"),
        ({"sandwich_coef": 1, "par_ratio": 2}, "only one arrangement"),
        ({"custom_layers": ("a", "c"), "depth": None}, "'c' needs cross_attend=True"),
        ({"custom_layers": ("a", "f")}, "leave depth out"),
        ({"layers_execute_order": (0, 1, 9)}, "indices lie in 0..3"),
        ({"layers_execute_order": ()}, "at least one sublayer has to run"),
        ({"rotary_xpos": True, "rotary_emb_dim": 3}, "an even number is needed"),
        ({"rotary_pos_emb": True, "rotary_emb_dim": 5}, "cannot rotate more than the 4 features"),
        ({"rotary_pos_emb": True, "rotary_emb_dim": 8}, "cannot rotate more than the 4 features"),
        ({"rel_pos_bias": True, "attn_kv_heads": (1, 2)}, "cannot share the bias"),
        ({"cross_attend": True, "attn_use_cope": True}, "cross_attn_use_cope=False leaves it out there"),
        ({"cross_attend": True, "only_cross": True, "rel_pos_bias": True}, "no layer attends to its own sequence"),
        ({"cross_attend": True, "only_cross": True, "polar_pos_emb": True}, "no layer attends to its own sequence"),
        (
            {
                "rotary_pos_emb": True,
                "rotate_num_heads": 2,
                "attn_use_latent_kv": True,
                "attn_dim_latent_kv": 5,
                "attn_latent_rope_subheads": 1,
            },
            "those of attn_latent_rope_subheads",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_keywords(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(KeywordError, match=message) as caught:
        Decoder(**{**SMALL, **keywords})
    assert isinstance(caught.value, ConfigError)
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"attn_gate_values": True}, "attn_gate_values: the mixer 'mamba' has no such option"),
        ({"attn_kv_heads": 2}, "attn_kv_heads: the mixer 'mamba' has no such option"),
        ({"attn_hybrid_module": "hyena"}, "attn_hybrid_module: the mixer 'mamba' has no such option"),
        ({"attn_dropout": 0.1}, "'mamba' has no rate of dropped weights"),
        ({"rotary_pos_emb": True}, "rotary_pos_emb: no layer compares queries with keys"),
        ({"alibi_pos_bias": True}, "alibi_pos_bias: no layer compares queries with keys"),
        ({"attn_part": "linear", "attn_dropout": 0.1}, "'linear' has no rate of dropped weights"),
        ({"attn_part": "linear", "attn_attend_sdp_kwargs": PLAIN}, "softmax attention alone has it"),
    ],
)
def test_what_a_part_in_the_place_of_attention_would_ignore(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(KeywordError, match=message):
        Decoder(**{**SMALL, "attn_part": "mamba", **keywords})


def test_layers_of_attention_and_of_mixers() -> None:
    layers = Decoder(**SMALL, attn_part=("mamba", None), attn_qk_norm=(False, True), rotary_pos_emb=True)
    assert {"mixer/mamba", "attention/softmax"} <= {f"{one.kind}/{one.name}" for _, one in layers.spec.walk()}
    scaled = Decoder(**SMALL, attn_part="mamba", zero_init_branch_output=True)
    assert sum(one.name == "branch_start" for _, one in scaled.spec.walk()) == 4


def test_all_problems_come_at_once() -> None:
    with pytest.raises(KeywordError) as caught:
        Decoder(**SMALL, rotary_pos_embb=True, attn_head_scale=3, ff_sollu=True)
    assert [problem.path for problem in caught.value.problems] == ["rotary_pos_embb", "attn_head_scale", "ff_sollu"]


def test_a_missing_keyword_is_a_key_error_too() -> None:
    with pytest.raises(KeyError, match="needs this keyword"):
        Decoder(depth=2)
    with pytest.raises(KeyError, match="enc_num_tokens"):
        XTransformer(dim=16)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"total_nonsense": 3}, "no keyword 'total_nonsense'"),
        ({"rotary_pos_emb": True}, "did you mean 'enc_rotary_pos_emb'"),
        ({"dec_use_cls_token": True}, "dec_use_cls_token: not supported for a side"),
        ({"enc_tie_embedding": True}, "enc_tie_embedding: not supported for a side"),
        ({"enc_embed_num_tokens": {"kind": 3}}, "tokens alone, and no further ids"),
        ({"tie_token_emb": True, "dec_emb_dim": 8}, "one width on both sides"),
        ({"enc_dim": 8}, "both sides have the width dim"),
        ({"enc_attn_qk_nrom": True}, "enc_attn_qk_nrom.*did you mean 'enc_attn_qk_norm'"),
        ({"dec_l2norm_embd": True}, "dec_l2norm_embd.*did you mean 'dec_l2norm_embed'"),
        ({"cross_attn_tokens_dropout": 1.0}, r"a probability in \[0, 1\)"),
        ({"tie_token_emb": True, "dec_num_tokens": 12}, "as many tokens as the encoder has, 11"),
        ({"enc_norm_add_unit_offset": False}, "the same on both sides"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_keywords_of_an_encoder_decoder(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(KeywordError, match=message):
        XTransformer(**{"dim": 16, **SIDES, **keywords})


def test_problems_of_both_sides_come_at_once() -> None:
    with pytest.raises(KeywordError) as caught:
        XTransformer(dim=16, **SIDES, enc_attn_selective=True, dec_ff_sollu=True)
    assert {problem.path for problem in caught.value.problems} == {"enc_attn_selective", "dec_ff_sollu"}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_tokenz": 3}, "did you mean 'num_tokens'"),
        ({"tie_embeding": True}, "did you mean 'tie_embedding'"),
        ({"emb_dim": 8, "tie_embedding": True}, "token vectors of 8 features cannot answer for hidden states of 16"),
        ({"emb_dim": 7, "scaled_sinu_pos_emb": True}, "an even width"),
        ({"scaled_sinu_pos_emb": True, "use_abs_pos_emb": False}, "has no absolute positions"),
        ({"l2norm_embed": True, "scaled_sinu_pos_emb": True}, "not normalised"),
        ({"embed_num_tokens": {"kind": 0}}, "a positive number of 'kind' ids"),
        ({"num_cls_tokens": 2}, "no effect without use_cls_token"),
        ({"squeeze_out_last_dim": True}, "a token has 11 logits"),
        ({"num_output_heads": 2, "tie_embedding": True}, "several heads have weights of their own"),
        ({"average_pool_embed": True, "use_cls_token": True}, "choose one of"),
        ({"attn_pool": True, "use_cls_token": True}, "choose one of attn_pool"),
        ({"return_only_embed": True, "sigsoftmax_logits": True}, "without a head there are no logits"),
        ({"recycling": True, "looped": True}, "choose one"),
        ({"looped": True}, "pre_and_post_norm=True"),
        ({"memory_tokens_interspersed_every": 4}, "no effect without num_memory_tokens"),
        ({"memory_tokens_interspersed_every": 4, "num_memory_tokens": 2}, "needs a Decoder"),
        ({"emb_frac_gradient": 0.0}, r"a part in \(0, 1\]"),
        ({"add_continuous_pred_head": True}, "needs causal layers"),
        ({"tie_embedding": True, "logits_dim": 7}, "one logit a token"),
        ({"tie_embedding_scale": 2.0}, "no effect without tie_embedding"),
        ({"tie_embedding": True, "return_only_embed": True}, "nothing to tie"),
        ({"num_tokens": 0}, "num_tokens: must be positive"),
        ({"num_memory_tokens": -1}, "must not be negative"),
        ({"attn_layers": Decoder(**SMALL), "use_cls_token": True}, "see no token of causal layers"),
        ({"emb_dropout": 2.0}, "less than 1"),
        ({"attn_layers": 3}, "AttentionLayers is needed"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_keywords_of_a_wrapper(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(KeywordError, match=message):
        TransformerWrapper(**{"num_tokens": 11, "max_seq_len": 8, "attn_layers": Encoder(**SMALL), **keywords})


def test_bad_keywords_of_a_vision_model() -> None:
    layers = Encoder(**SMALL)
    with pytest.raises(KeywordError, match=r"must be a multiple of patch_size = 5.*nearest: 10 or 15"):
        ViTransformerWrapper(image_size=12, patch_size=5, attn_layers=layers)
    with pytest.raises(KeywordError, match="did you mean 'num_classes'"):
        ViTransformerWrapper(image_size=12, patch_size=6, attn_layers=layers, num_class=3)
    with pytest.raises(KeywordError, match=r"num_classes: .*greater than 0"):
        ViTransformerWrapper(image_size=12, patch_size=6, attn_layers=layers, num_classes=-1)
    with pytest.raises(KeywordError, match=r"emb_dropout: .*less than 1"):
        ViTransformerWrapper(image_size=12, patch_size=6, attn_layers=layers, emb_dropout=1.5)


def test_the_next_token_is_not_learned_by_layers_that_see_it() -> None:
    net = TransformerWrapper(num_tokens=11, max_seq_len=8, attn_layers=Encoder(**SMALL))
    with pytest.raises(KeywordError, match="build the wrapper around a Decoder"):
        AutoregressiveWrapper(net)


def test_defaults_may_be_written_out() -> None:
    plain = Decoder(**SMALL)
    written = Decoder(**SMALL, attn_selective=False, shift_tokens=0, ff_mult=4, attn_flash=True, rel_pos_kwargs={})
    assert written.spec == plain.spec


def test_errors_of_calls_are_shape_errors_and_assertion_errors() -> None:
    assert issubclass(InputError, ShapeError)
    assert issubclass(InputError, AssertionError)


def upstream_defaults(cls: Any, method: str = "__init__") -> dict[str, Any]:
    parameters = inspect.signature(getattr(cls, method)).parameters
    named = {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD and name != "self"}
    return {name: REQUIRED if p.default is p.empty else p.default for name, p in named.items()}


# Set by the stack for each of its attentions, not by a caller.
SET_BY_THE_STACK = {
    *("dim", "heads", "causal", "rotate_num_heads", "learned_value_residual_mix", "qkv_receive_diff_residuals"),
}


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("AttentionLayers", LAYERS),
        ("Attention", ATTENTION),
        ("FeedForward", FEEDFORWARD),
        ("TransformerWrapper", MODEL),
        ("ViTransformerWrapper", VISION),
    ],
)
def test_every_keyword_of_the_original_is_known_with_its_default(name: str, table: Table) -> None:
    upstream = pytest.importorskip("x_transformers.x_transformers", reason="x-transformers is not installed")
    theirs = upstream_defaults(getattr(upstream, name))
    ours = {keyword: route.default for keyword, route in table.items()}
    inner = SET_BY_THE_STACK if name == "Attention" else {"dim"} if name == "FeedForward" else set()
    assert {name: default for name, default in theirs.items() if name not in inner} == {
        name: default for name, default in ours.items() if name not in OWN
    }


OWN = {"attn_residuals_last_output_as_query", "legacy", "part"}
"""Keywords that the original has not, or not under this name."""


@pytest.mark.parametrize(("name", "known"), [("AttentionLayers", STACK_CALL), ("TransformerWrapper", MODEL_CALL)])
def test_every_argument_of_a_call_is_known_with_its_default(name: str, known: dict[str, Any]) -> None:
    upstream = pytest.importorskip("x_transformers.x_transformers", reason="x-transformers is not installed")
    theirs = upstream_defaults(getattr(upstream, name), "forward")
    assert {name: default for name, default in theirs.items() if name not in HONOURED} == {
        name: known[name] for name in theirs if name not in HONOURED
    }


def test_positional_arguments() -> None:
    layers = AttentionLayers(16, 1, 4, attn_dim_head=4)
    assert layers.spec == AttentionLayers(dim=16, depth=1, heads=4, attn_dim_head=4).spec
    assert CrossAttender(**SMALL).spec == AttentionLayers(**SMALL, cross_attend=True, only_cross=True).spec


def test_an_argument_of_layers_is_not_suggested_for_itself() -> None:
    model = TransformerWrapper(num_tokens=9, max_seq_len=8, attn_layers=Decoder(**SMALL))
    with pytest.raises(KeywordError, match=r"no argument 'return_hiddens'; layers alone take it.*return_intermediates"):
        model(torch.zeros(1, 4).long(), return_hiddens=True)
