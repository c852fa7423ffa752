"""Keywords of what branches read beyond the residual stream, routed to entries, skips and shifts of the core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from variform.core.spec import Spec, described
from variform.dialects.x_transformers.eps import MACHINE, TINY
from variform.dialects.x_transformers.feedforward import known_activation
from variform.dialects.x_transformers.table import Route, Table, keep
from variform.errors import Problem, did_you_mean
from variform.models.mixing import handed_on, mixing_spec
from variform.parts.activation import ACTIVATIONS
from variform.parts.attention.across_layers import ScoreResidual, ValueResidual
from variform.parts.attention.values import OrthogonalValues
from variform.parts.entry.layers import LayerAttention, LayerMixture
from variform.parts.entry.pooled import LayerPooling
from variform.parts.kinds import MultiResidual
from variform.parts.norm.norms import RMSNorm
from variform.parts.position.rotary import RotaryRotation
from variform.parts.stream_ops.adaptive_branch import AdaptiveBranch
from variform.parts.stream_ops.branch import ScaledBranch
from variform.parts.stream_ops.context import ContextDropout
from variform.parts.stream_ops.history import BeginHistory, JoinSkip, KeepSkip
from variform.parts.stream_ops.inject import InjectInput
from variform.parts.stream_ops.token_shift import TokenShift

if TYPE_CHECKING:
    from variform.dialects.x_transformers.layers import LayersDraft

RANK = 64
"""Upstream's rank of the change of a query over layers."""


def _viewing(name: str) -> Callable[[Any, Any], None]:
    """A route of an entry, which may hand views to queries, keys and values."""

    def apply(draft: LayersDraft, value: Any) -> None:
        draft.options[name] = value
        draft.residuals.viewed = draft.residuals.viewed or value

    return apply


HISTORY: Table = {
    "integrate_layers": Route(False, _viewing("integrate_layers")),
    "layer_integrate_use_softmax": Route(True, keep("layer_integrate_use_softmax"), needs="integrate_layers"),
    "attn_aggregated_residuals": Route(False, _viewing("attn_aggregated_residuals")),
    "attn_aggregated_residual_kwargs": Route(
        {}, keep("attn_aggregated_residual_kwargs"), needs="attn_aggregated_residuals", types=(dict,)
    ),
    "attn_residuals_last_output_as_query": Route(
        None, keep("attn_residuals_last_output_as_query"), needs="attn_aggregated_residuals", types=(bool,)
    ),  # of 2.26 alone, where it chooses between its two forms; without it, the form of 2.31
    "unet_skips": Route(False, keep("unet_skips")),
    "reinject_input": Route(False, keep("reinject_input")),
    "learned_reinject_input_gate": Route(False, keep("learned_reinject_input_gate")),
    "add_value_residual": Route(False, keep("add_value_residual")),
    "learned_value_residual_mix": Route(True, keep("learned_value_residual_mix"), needs="add_value_residual"),
    "residual_attn": Route(False, keep("residual_attn")),
    "cross_residual_attn": Route(False, keep("cross_residual_attn"), needs="cross_attend"),
    "shift_tokens": Route(0, keep("shift_tokens"), types=(int, tuple)),
    "cross_attn_tokens_dropout": Route(
        0.0, keep("cross_attn_tokens_dropout"), needs="cross_attend", types=(int, float)
    ),
}
"""Keyword -> what it does to a `LayersDraft`."""


def check(draft: LayersDraft) -> list[Problem]:
    """The rules that concern several keywords."""
    on, found = draft.options, []
    rearranged = [
        name
        for name in ("weight_tie_layers", "custom_layers", "layers_execute_order", "par_ratio", "sandwich_coef")
        if getattr(draft, name)
    ]
    if on["integrate_layers"] and on["attn_aggregated_residuals"]:
        message = "both say what a branch reads of earlier layers: integrate_layers or attn_aggregated_residuals"
        found.append(Problem("attn_aggregated_residuals", message, True))
    if on["attn_aggregated_residuals"]:
        found += draft.residuals.scaled_problems("attn_aggregated_residuals, which adds up branches as they are")
    tied = [name for name in ("weight_tie_layers", "layers_execute_order") if name in rearranged]
    if on["integrate_layers"] and tied:
        message = f"each layer has a weight for every layer before it, and {tied[0]} runs layers at several places"
        found.append(Problem("integrate_layers", message, True, "attn_aggregated_residuals takes any number of layers"))
    if on["unet_skips"] and rearranged:
        found.append(Problem("unet_skips", f"skips join blocks of one make, and {rearranged[0]} has others", True))
    if on["unet_skips"] and (draft.depth or 2) < 2:
        found.append(Problem("unet_skips", "a skip needs two blocks", True, "depth=2 or more"))
    if on["reinject_input"] and draft.residuals.several:
        message = "the input that is injected is one, and there are several residual streams"
        found.append(Problem("reinject_input", message, True))
    if not 0.0 <= on["cross_attn_tokens_dropout"] < 1.0:
        message = "a probability in [0, 1) is needed"
        found.append(Problem("cross_attn_tokens_dropout", message, on["cross_attn_tokens_dropout"]))
    unequal = [
        name
        for name in ("kv_heads", "one_kv_head", "dim_head", "value_dim_head", "max_attend_past")
        if len(set(_each(draft.inner["attn_"].get(name)))) > 1
    ]
    keys = [name for name in ("num_mem_kv", "add_zero_kv") if len(set(_each(draft.inner["attn_"].get(name)))) > 1]
    for keyword, what, unlike in (
        ("add_value_residual", "values", unequal),
        ("residual_attn", "scores", unequal + keys),
    ):
        if on[keyword] and unlike:
            message = f"the {what} of all layers are put together, and attn_{unlike[0]} makes them unlike"
            found.append(Problem(keyword, message, True))
    return found + _residual_options(draft)


def _each(value: Any) -> tuple[Any, ...]:
    """The values of a keyword for the layers."""
    return value if isinstance(value, tuple) else (value,)


def _residual_options(draft: LayersDraft) -> list[Problem]:
    """The options of attention over layers, by upstream's names."""
    given, at = draft.options["attn_aggregated_residual_kwargs"], "attn_aggregated_residual_kwargs"
    pooled = draft.options["attn_residuals_last_output_as_query"] is not None
    known = () if pooled else ("lora_rank", "lora_activation")
    found = [
        Problem(f"{at}.{name}", "no such option", hint=did_you_mean(name, known) if known else "leave it out")
        for name in given
        if name not in known
    ]
    if draft.options["attn_aggregated_residuals"] and not pooled:
        rank = given.get("lora_rank") or RANK
        if not 0 < rank < draft.dim:
            hint = f"give {at}=dict(lora_rank=...)"
            found.append(Problem(f"{at}.lora_rank", f"a rank below dim = {draft.dim} is needed", rank, hint))
        if given.get("lora_activation") is not None and _activation(given["lora_activation"]) is None:
            known_names = ", ".join(ACTIVATIONS)
            found.append(Problem(f"{at}.lora_activation", f"one of {known_names}, or the module of torch", hint=""))
    return found


def _activation(given: Any) -> str | None:
    """The name of an activation given by name, as a function or as a module of torch."""
    if given is None:
        return "none"
    if isinstance(given, str):
        return given if given in ACTIVATIONS else None
    return known_activation(given) or next((n for n, function in ACTIVATIONS.items() if function is given), None)


def with_history(draft: LayersDraft, types: Sequence[str], steps: Sequence[Spec]) -> list[Spec]:
    """The residual steps with what their branches read, of earlier layers and of neighbouring tokens."""
    shifts = _shifts(draft, len(types))
    first = {letter: types.index(letter) for letter in set(types)}
    return [
        _step(draft, step, letter, place, place == first[letter], shift)
        for place, (step, letter, shift) in enumerate(zip(steps, types, shifts, strict=False))
    ]


def _shifts(draft: LayersDraft, count: int) -> tuple[int, ...]:
    given = draft.options["shift_tokens"]
    shifts = given if isinstance(given, tuple) else (given,) * count
    if len(shifts) != count:
        message = f"one amount for each of the {count} sublayers is needed, not {len(shifts)}"
        draft.problems.append(Problem("shift_tokens", message, given))
    if any(not isinstance(shift, int) or isinstance(shift, bool) or shift < 0 for shift in shifts):
        draft.problems.append(Problem("shift_tokens", "a number of tokens, 0 or more", given))
    return shifts


def _step(draft: LayersDraft, step: Spec, letter: str, place: int, first: bool, shift: int) -> Spec:
    body, entry = step.args.get("body"), _entry(draft, letter, place, first)
    if not isinstance(body, Spec):  # it has a problem
        return step
    if draft.options["add_value_residual"] and letter in "ac":
        learned = letter == "a" and not first and draft.options["learned_value_residual_mix"]
        stream = "first_values" if letter == "a" else "first_context_values"
        body = with_attention(body, lambda inner: _mixed_values(inner, learned, stream))
    scores = "residual_attn" if letter == "a" else "cross_residual_attn"
    if letter in "ac" and draft.options[scores]:
        stream = "scores" if letter == "a" else "context_scores"
        body = with_attention(body, lambda inner: _innermost(inner, stream))
    if letter == "c" and draft.options["cross_attn_tokens_dropout"]:
        body = ContextDropout.spec(body=body, rate=float(draft.options["cross_attn_tokens_dropout"]))
    if shift:
        residual = step.args.get("residual")
        mixes = residual if isinstance(residual, Spec) and issubclass(residual.part, MultiResidual) else None
        views = max(part.part.views(part.args) for part in (entry, mixes) if part) if entry or mixes else 1
        body = _shifted(body, shift, views)
    return step.replace(body=body, **({} if entry is None else {"entry": entry}))


def _shifted(body: Spec, amount: int, views: int) -> Spec:
    """Token shift right around what does the work: upstream's factors stand around it."""
    inner = body.args.get("body")
    if body.part in (ScaledBranch, AdaptiveBranch) and isinstance(inner, Spec):
        return body.replace(body=_shifted(inner, amount, views))
    return TokenShift.spec(body=body, amount=amount, **({} if views == 1 else {"inputs": views}))


def with_attention(body: Spec, change: Callable[[Spec], Spec]) -> Spec:
    """A body whose attention, wherever in it that stands, is another."""
    for slot in ("attention", "body"):
        inner = described(body.args.get(slot))
        if isinstance(inner, Spec):
            return body.replace(**{slot: change(inner) if slot == "attention" else with_attention(inner, change)})
    return body


def _innermost(attention: Spec, stream: str) -> Spec:
    """Scores are handed on by the innermost attention, whose they are."""
    inner = described(attention.args.get("attention"))
    if isinstance(inner, Spec):
        return attention.replace(attention=_innermost(inner, stream))
    return ScoreResidual.spec(attention=attention, stream=stream)


def _mixed_values(attention: Spec, learned: bool, stream: str) -> Spec:
    """Values are mixed before they are attended, and projected away as they were."""
    inner = described(attention.args.get("attention"))
    if attention.part is OrthogonalValues and isinstance(inner, Spec):
        return attention.replace(attention=_mixed_values(inner, learned, stream))
    return ValueResidual.spec(attention=attention, learned=learned, stream=stream)


def _entry(draft: LayersDraft, letter: str, place: int, first: bool) -> Spec | None:
    on = draft.options
    if on["integrate_layers"]:
        return LayerMixture.spec(
            count=place + 1,
            views=3 if letter == "a" and not first else 1,
            weights="softmax" if on["layer_integrate_use_softmax"] else "relu",
            norm=RMSNorm.spec(eps=TINY),
        )
    views = 3 if letter == "a" and draft.residuals.qkv_receive_diff_residuals else 1
    if on["attn_residuals_last_output_as_query"] is not None:
        return _pooling(draft, views, learned=not on["attn_residuals_last_output_as_query"])
    if on["attn_aggregated_residuals"]:
        norm, given = RMSNorm.spec(eps=MACHINE), on["attn_aggregated_residual_kwargs"]
        return LayerAttention.spec(
            views=views,
            rank=given.get("lora_rank") or RANK,
            activation=_activation(given.get("lora_activation")),
            norm=norm,
            query_norm=norm,
            key_norm=norm,
        )
    return None


def _pooling(draft: LayersDraft, views: int, learned: bool) -> Spec:
    """Attention over layers as 2.26 has it, with the heads of the layers' own attention."""
    size = draft.dim_head
    turned = RotaryRotation.spec(layout="interleaved", max_seq_len=None, rotary_dim=size)
    return LayerPooling.spec(
        views=views,
        norm=None if learned else RMSNorm.spec(eps=MACHINE),
        key_norm=RMSNorm.spec(eps=TINY, per_head=draft.heads),
        rotation=turned if draft.positions.rotary_pos_emb else None,
        dim_head=size,
    )


def beginnings(draft: LayersDraft) -> list[Spec]:
    """What stands before the first step."""
    on = draft.options
    streams = {
        "history": on["integrate_layers"] or on["attn_aggregated_residuals"],
        "skips": on["unet_skips"],
        "scores": on["residual_attn"] and not draft.only_cross,
        "context_scores": on["cross_residual_attn"],
        "first_values": on["add_value_residual"] and not draft.only_cross,
        "first_context_values": on["add_value_residual"] and draft.cross_attend,
    }
    for part in (*_each(draft.inner["attn_"].get("part")), *_each(draft.inner["cross_attn_"].get("part"))):
        if part is not None:
            streams |= dict.fromkeys(handed_on(mixing_spec(part)), True)
    found = [BeginHistory.spec(stream=name) for name, wanted in streams.items() if wanted]
    if on["reinject_input"] or on["learned_reinject_input_gate"]:
        found.append(InjectInput.spec(project=on["reinject_input"], gate=on["learned_reinject_input_gate"]))
    return found


def with_skips(draft: LayersDraft, blocks: Sequence[Sequence[Spec]]) -> list[list[Spec]]:
    """Blocks of the first half put their input aside, those of the second join it, the last with the first."""
    if not draft.options["unet_skips"]:
        return [list(block) for block in blocks]
    depth = len(blocks)
    joins = [[KeepSkip.spec()]] * (depth // 2) + [[]] * (depth % 2) + [[JoinSkip.spec()]] * (depth // 2)
    return [[*join, *block] for join, block in zip(joins, blocks, strict=True)]
