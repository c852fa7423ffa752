"""Keywords of what is done to scores and weights: score features, normalisers, biases that depend on the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from variform.core.spec import Spec
from variform.dialects.x_transformers.table import Route, Table, keep
from variform.errors import Problem
from variform.parts.attention.limited import EndsTogether, LimitedAttention
from variform.parts.attention.memory import JoinedMemory, ZeroMemory
from variform.parts.attention.softmax import LocalAttention, SoftmaxAttention
from variform.parts.scoring.bounds import SoftCapScores, TalkingHeadScores
from variform.parts.scoring.contextual import ContextualPositions
from variform.parts.scoring.distance import ProjectedDistance
from variform.parts.scoring.gates import ForgetGates, ForgetRowGates
from variform.parts.scoring.selective import SelectiveScores
from variform.parts.weighting.around import HeadScaledWeighting, SignedWeighting, SinkWeighting, TalkingHeadWeighting
from variform.parts.weighting.row import (
    CustomWeighting,
    GumbelWeighting,
    HardWeighting,
    InvertedWeighting,
    SigmoidWeighting,
    TopKWeighting,
)

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention.draft import AttentionDraft

KERNELS = {"enable_flash": True, "enable_math": True, "enable_mem_efficient": True}
"""Upstream's default of the fused kernels that torch may choose from."""

Numbers = (int, float)

ROUTES: Table = {
    "pre_talking_heads": Route(False, keep("pre_talking_heads")),
    "post_talking_heads": Route(False, keep("post_talking_heads")),
    "pre_scale_post_talking_heads": Route(False, keep("pre_scale_post_talking_heads")),
    "sparse_topk": Route(None, keep("sparse_topk"), types=(int,)),
    "sparse_topk_straight_through": Route(False, keep("sparse_topk_straight_through"), needs="sparse_topk"),
    "hard": Route(False, keep("hard")),
    "sigmoid": Route(False, keep("sigmoid")),
    "gumbel_softmax": Route(False, keep("gumbel_softmax")),
    "gumbel_softmax_temp": Route(1.0, keep("gumbel_softmax_temp"), needs="gumbel_softmax", types=Numbers),
    "gumbel_softmax_hard": Route(True, keep("gumbel_softmax_hard"), needs="gumbel_softmax"),
    "selective": Route(False, keep("selective")),
    "cog_signed": Route(False, keep("cog_signed")),
    "custom_attn_fn": Route(None, keep("custom_attn_fn"), types=(Callable, str)),  # type: ignore[arg-type]
    "add_zero_kv": Route(False, keep("add_zero_kv")),
    "head_learned_sink": Route(False, keep("head_learned_sink")),
    "data_dependent_alibi": Route(False, keep("data_dependent_alibi")),
    "data_dependent_alibi_per_row": Route(False, keep("data_dependent_alibi_per_row"), needs="data_dependent_alibi"),
    "data_dependent_alibi_per_row_dim_head": Route(
        8, keep("data_dependent_alibi_per_row_dim_head"), needs="data_dependent_alibi_per_row", types=(int,)
    ),
    "data_dependent_alibi_kwargs": Route(
        {}, keep("data_dependent_alibi_kwargs"), needs="data_dependent_alibi", types=(Mapping,)
    ),
    "use_rel_proj_pos_bias": Route(False, keep("use_rel_proj_pos_bias")),
    "rel_proj_num_distance_basis": Route(
        16, keep("rel_proj_num_distance_basis"), needs="use_rel_proj_pos_bias", types=(int,)
    ),
    "rel_proj_max_dist": Route(1024, keep("rel_proj_max_dist"), needs="use_rel_proj_pos_bias", types=(int,)),
    "use_cope": Route(False, keep("use_cope")),
    "cope_max_pos": Route(16, keep("cope_max_pos"), needs="use_cope", types=(int,)),
    "cope_soft_onehot_pos": Route(False, keep("cope_soft_onehot_pos"), needs="use_cope"),
    "cope_talking_heads": Route(False, keep("cope_talking_heads"), needs="use_cope"),
    "softclamp_logits": Route(False, keep("softclamp_logits")),
    "logit_softclamp_value": Route(50.0, keep("logit_softclamp_value"), needs="softclamp_logits", types=Numbers),
    "onnxable": Route(False, keep("onnxable")),  # masks are made by comparing positions, which every exporter knows
    "inverted_attention": Route(False, keep("inverted_attention")),
    "attend_sdp_kwargs": Route(KERNELS, keep("attend_sdp_kwargs"), types=(Mapping,)),
    "flash_pack_seq": Route(False, keep("flash_pack_seq")),  # documents of one row, given by `flash_pack_seq_kwargs`
}
"""Keyword (without `attn_`) -> what it does to an `AttentionDraft`."""

ROWS = ("sigmoid", "hard", "gumbel_softmax", "sparse_topk", "custom_attn_fn", "inverted_attention")
"""Keywords that say how a row's scores become weights: one of them at most."""


def check(draft: AttentionDraft, cross: bool) -> list[Problem]:
    """The rules that concern several keywords."""
    at, given = draft.prefix, draft.options
    chosen = [name for name in ROWS if given[name] not in (None, False)]
    found = []
    if len(chosen) > 1:
        message = f"only one can make weights of scores: {', '.join(at + name for name in chosen)}"
        found.append(Problem(f"{at}{chosen[0]}", message, hint="leave the others out"))
    if isinstance(given["sparse_topk"], int) and given["sparse_topk"] < 1:
        found.append(Problem(f"{at}sparse_topk", "at least one key is needed", given["sparse_topk"]))
    found += _order_problems(draft, cross)
    found += _forget_problems(draft)
    formula = not given["attend_sdp_kwargs"].get("enable_flash", True)
    if draft.part is not None and (_scores(draft) or _weights(draft) is not None or given["add_zero_kv"] or formula):
        names = [name for name, route in ROUTES.items() if given[name] != route.default]
        message = "softmax attention alone has it, and another part is asked for"
        found += [Problem(f"{at}{name}", message, given[name]) for name in names]
    kernels = {"enable_flash": True, "enable_math": True, "enable_mem_efficient": True, **given["attend_sdp_kwargs"]}
    off = [name for name, on in kernels.items() if not on and name != "enable_cudnn"]
    if off and off != ["enable_flash", "enable_mem_efficient"]:
        message = "torch chooses among its fused kernels; all are on, or the plain formula alone (enable_math)"
        hint = "run the model within torch.nn.attention.sdpa_kernel(...)"
        found.append(Problem(f"{at}attend_sdp_kwargs", message, dict(kernels), hint))
    if given["flash_pack_seq"] and cross:
        message = "documents of one row are told apart in self-attention alone"
        found.append(Problem(f"{at}flash_pack_seq", message, True))
    return found


def _order_problems(draft: AttentionDraft, cross: bool) -> list[Problem]:
    """Keywords that need an order of the tokens, or that must not have one."""
    at, given, found = draft.prefix, draft.options, []
    for name in ("selective", "use_cope", "data_dependent_alibi", "use_rel_proj_pos_bias"):
        if given[name] and cross:
            message = "it goes by the order of one sequence: self-attention alone has it"
            found.append(Problem(f"{at}{name}", message, hint=f"{at}{name}=False leaves it out there"))
    for name in ("selective", "use_cope"):
        if given[name] and not draft.causal and not cross:
            found.append(Problem(f"{at}{name}", "it is defined for causal attention alone"))
    if given["inverted_attention"] and not cross:
        hint = "cross_attn_inverted_attention, in a CrossAttender or an encoder"
        found.append(Problem(f"{at}inverted_attention", "keys of another sequence choose among queries", hint=hint))
    if given["inverted_attention"] and cross and draft.causal:
        message = "a query's weights depend on the queries after it, which a causal model must not see"
        found.append(Problem(f"{at}inverted_attention", message, hint="CrossAttender, or an encoder"))
    return found


def _forget_problems(draft: AttentionDraft) -> list[Problem]:
    at, given = draft.prefix, draft.options
    per_row, more = given["data_dependent_alibi_per_row"], given["data_dependent_alibi_kwargs"]
    found = []
    if per_row and not draft.causal:
        message = "it looks at the past alone, and needs causal attention"
        found.append(Problem(f"{at}data_dependent_alibi_per_row", message))
    known = ("post_log_scale",) if per_row else ("bias_init", "post_log_scale")
    for name in more:
        if name not in known:
            message = f"there is no option {name!r}; these are known: {', '.join(known)}"
            found.append(Problem(f"{at}data_dependent_alibi_kwargs", message, dict(more)))
    return found


def attention(draft: AttentionDraft, spec: Spec) -> Spec:
    """Softmax attention with its scorings, weighting and keys of zeros."""
    if spec.part not in (SoftmaxAttention, LocalAttention):
        return spec
    changes: dict[str, Any] = {}
    scores, weights = _scores(draft), _weights(draft)
    if scores:
        changes["scores"] = scores
    if weights is not None:
        changes["weights"] = weights
    if draft.options["add_zero_kv"]:
        own = spec.args.get("memory")
        changes["memory"] = ZeroMemory.spec() if own is None else JoinedMemory.spec(memories=[ZeroMemory.spec(), own])
    if not draft.options["attend_sdp_kwargs"].get("enable_flash", True):
        changes["backend"] = "reference"
    return _limited(draft, spec.replace(**changes) if changes else spec)


def _limited(draft: AttentionDraft, spec: Spec) -> Spec:
    """The attention within a limit on the past, where that is no window of a decoder's.

    Upstream limits the past alone, also where later tokens are seen, and lets two sequences end together. In a causal
    model where a sequence ends is not known: there both begin together.
    """
    if draft.max_attend_past is None or draft.keeps_window:
        return spec
    limited = LimitedAttention.spec(back=draft.max_attend_past, attention=spec)
    elsewhere = draft.prefix != "attn_" and not draft.causal
    return EndsTogether.spec(attention=limited) if elsewhere else limited


def mixer(draft: AttentionDraft, spec: Spec) -> Spec:
    """The mixer as it is."""
    return spec


def _scores(draft: AttentionDraft) -> list[Spec]:
    """Scorings in upstream's order: products, biases, bounds, then what goes by the masks."""
    given, found = draft.options, []
    if given["pre_talking_heads"]:
        found.append(TalkingHeadScores.spec())
    if given["data_dependent_alibi"]:
        found.append(_forget(given))
    if given["use_rel_proj_pos_bias"]:
        curves, reach = given["rel_proj_num_distance_basis"], given["rel_proj_max_dist"]
        found.append(ProjectedDistance.spec(curves=curves, reach=reach))
    if given["softclamp_logits"]:
        found.append(SoftCapScores.spec(value=float(given["logit_softclamp_value"])))
    if given["use_cope"]:
        soft, mixing = given["cope_soft_onehot_pos"], given["cope_talking_heads"]
        scale = {} if draft.length == 1.0 else {"scale": draft.length}
        found.append(ContextualPositions.spec(positions=given["cope_max_pos"], soft=soft, mixing=mixing, **scale))
    if given["selective"]:
        found.append(SelectiveScores.spec())
    return found


def _forget(given: Mapping[str, Any]) -> Spec:
    more = given["data_dependent_alibi_kwargs"]
    post = float(more.get("post_log_scale", 1.0))
    if given["data_dependent_alibi_per_row"]:
        return ForgetRowGates.spec(features=given["data_dependent_alibi_per_row_dim_head"], post=post)
    return ForgetGates.spec(bias=float(more.get("bias_init", 5.0)), post=post)


def _weights(draft: AttentionDraft) -> Spec | None:
    """The weighting, from the inside out: a row's own, a sink, signs, mixing over heads."""
    given = draft.options
    found = _row(given)
    if given["head_learned_sink"]:
        found = SinkWeighting.spec(weights=found)
    if given["cog_signed"]:
        found = SignedWeighting.spec(weights=found)
    if given["post_talking_heads"]:
        found = TalkingHeadWeighting.spec(weights=found)
    if given["pre_scale_post_talking_heads"]:
        found = HeadScaledWeighting.spec(weights=found)
    return found


def _row(given: Mapping[str, Any]) -> Spec | None:
    if given["custom_attn_fn"] is not None:
        return CustomWeighting.spec(function=given["custom_attn_fn"])
    if given["sigmoid"]:
        return SigmoidWeighting.spec()
    if given["hard"]:
        return HardWeighting.spec()
    if given["sparse_topk"] is not None:
        through = given["sparse_topk_straight_through"]
        return TopKWeighting.spec(count=given["sparse_topk"], straight_through=through)
    if given["gumbel_softmax"]:
        temperature, hard = float(given["gumbel_softmax_temp"]), given["gumbel_softmax_hard"]
        return GumbelWeighting.spec(temperature=temperature, hard=hard)
    return InvertedWeighting.spec() if given["inverted_attention"] else None
