"""Keywords of what surrounds the heads: norms, gates, values, projections, latent and hybrid attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from variform.core.spec import Spec, described
from variform.dialects.x_transformers.attention import hybrid
from variform.dialects.x_transformers.eps import TINY
from variform.dialects.x_transformers.table import Route, Table, keep
from variform.errors import Problem
from variform.parts.attention.delta import DeltaAttention
from variform.parts.attention.distance import DistanceAttention, LengthMemory
from variform.parts.attention.gated import GatedAttention, HeadScaleAttention
from variform.parts.attention.memory import JoinedMemory, ZeroMemory
from variform.parts.attention.values import ExponentialMemory, LaserAttention, NormedValues, OrthogonalValues
from variform.parts.key_values.latent import LatentKeyValues
from variform.parts.key_values.linear import LinearKeyValues
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.mixer.projected import ProjectedAttention
from variform.parts.mixer.projected_cross import ProjectedCrossAttention
from variform.parts.norm.norms import RMSNorm
from variform.parts.projection.maps import (
    GatedProjection,
    HeadOrder,
    IdentityProjection,
    LinearProjection,
    LowRankProjection,
)
from variform.weights.x_transformers import tiled_heads

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention.draft import AttentionDraft


def _flags(*names: str) -> dict[str, Route]:
    return {name: Route(False, keep(name)) for name in names}


ROUTES: Table = {
    **_flags("head_scale", "gate_value_heads", "gate_values", "output_gate"),
    "swiglu_values": Route(False, keep("swiglu_values")),
    "gate_values_rank": Route(None, keep("gate_values_rank"), needs="gate_values", types=(int,)),
    "gate_values_headwise": Route(False, keep("gate_values_headwise"), needs="gate_values"),
    "output_gate_rank": Route(None, keep("output_gate_rank"), needs="output_gate", types=(int,)),
    "output_gate_headwise": Route(False, keep("output_gate_headwise"), needs="output_gate"),
    "low_rank_silu_gates": Route(True, keep("low_rank_silu_gates")),
    "qk_norm_groups": Route(1, keep("qk_norm_groups"), needs="qk_norm", types=(int,)),
    **_flags("value_rmsnorm", "l2_distance", "laser"),
    "laser_softclamp_value": Route(15.0, keep("laser_softclamp_value"), needs="laser", types=(int, float)),
    **_flags("orthog_projected_values", "orthog_projected_values_per_head"),
    **hybrid.ROUTES,
    "on_attn": Route(False, keep("on_attn")),
    "value_dim_head": Route(None, keep("value_dim_head"), types=(int,)),
    "dim_out": Route(None, keep("dim_out"), types=(int,)),
    "use_latent_q": Route(False, keep("use_latent_q")),
    "dim_latent_q": Route(None, keep("dim_latent_q"), needs="use_latent_q", types=(int,)),
    "use_latent_kv": Route(False, keep("use_latent_kv")),
    "dim_latent_kv": Route(None, keep("dim_latent_kv"), needs="use_latent_kv", types=(int,)),
    "latent_rope_subheads": Route(None, keep("latent_rope_subheads"), needs="use_latent_kv", types=(int,)),
}
"""Keyword (without `attn_`) -> what it does to an `AttentionDraft`."""

ORTHOGONAL = ("orthog_projected_values", "orthog_projected_values_per_head")
"""Keywords of projections away from a token's own values; with both, heads give twice as many features."""


def check(draft: AttentionDraft, cross: bool) -> list[Problem]:
    """The rules that concern several keywords."""
    return [*_gate_problems(draft), *_value_problems(draft, cross), *_map_problems(draft), *hybrid.check(draft, cross)]


def _gate_problems(draft: AttentionDraft) -> list[Problem]:
    at, given, found = draft.prefix, draft.options, []
    gated = given.get("gate_values") or given.get("output_gate")
    if given.get("swiglu_values") and not gated:
        message = "the activation of gates that are not there: it needs gate_values or output_gate"
        found.append(Problem(f"{at}swiglu_values", message, True))
    ranks = [given.get(f"{gate}_rank") for gate in ("gate_values", "output_gate")]
    if not given.get("low_rank_silu_gates", True) and ranks == [None, None]:
        message = "has no effect without a gate of low rank"
        found.append(Problem(f"{at}low_rank_silu_gates", message, False, "give gate_values_rank or output_gate_rank"))
    inner = draft.heads * draft.dim_head
    for gate, rank, inputs in zip(("gate_values", "output_gate"), ranks, (draft.dim, inner), strict=True):
        if rank is None:
            continue
        if given.get(f"{gate}_headwise"):
            message = f"a gate a head has no rank: it excludes {at}{gate}_headwise"
            found.append(Problem(f"{at}{gate}_rank", message, rank))
        if not 0 < rank < max(inputs, inner):
            message = f"a rank below {max(inputs, inner)} is needed, of a map from {inputs} to {inner} features"
            found.append(Problem(f"{at}{gate}_rank", message, rank))
    return found


def _value_problems(draft: AttentionDraft, cross: bool) -> list[Problem]:
    at, given, found = draft.prefix, draft.options, []
    groups = given.get("qk_norm_groups", 1)
    if draft.qk_norm and (groups < 1 or draft.dim_head % groups or draft.dim_head == groups):
        message = f"must divide the {draft.dim_head} features of a head into groups of two or more"
        found.append(Problem(f"{at}qk_norm_groups", message, groups))
    for name in ORTHOGONAL:
        if given.get(name) and cross:
            message = "in cross attention a token has no value of its own to project away"
            found.append(Problem(f"{at}{name}", message, True))
    if given.get("l2_distance") and given.get("use_cope"):
        message = "positions that are told by queries need products with keys, and these scores are distances"
        found.append(Problem(f"{at}use_cope", message, True, f"leave {at}l2_distance out"))
    if given.get("laser") and given["laser_softclamp_value"] <= 0:
        found.append(Problem(f"{at}laser_softclamp_value", "must be > 0", given["laser_softclamp_value"]))
    return found


def attention(draft: AttentionDraft, spec: Spec) -> Spec:
    """The head-level attention with what the keywords put around it: upstream's order, the innermost first."""
    given = draft.options
    if given.get("alone"):
        spec = DeltaAttention.spec(attention=spec, of="weights")
    if given.get("laser"):
        clamp = float(given["laser_softclamp_value"])
        spec = _with_memory(spec, lambda inner: ExponentialMemory.spec(memory=inner, clamp=clamp))
        spec = LaserAttention.spec(attention=spec, clamp=clamp)
    if given.get("l2_distance"):
        spec = DistanceAttention.spec(
            attention=_with_memory(spec, lambda inner: LengthMemory.spec(memory=inner), zeros=True)
        )
    if given.get("value_rmsnorm"):
        spec = NormedValues.spec(attention=spec, norm=RMSNorm.spec(eps=TINY, per_head=draft.key_heads))
    if given.get("head_scale"):
        spec = HeadScaleAttention.spec(attention=spec)
    if given.get("gate_value_heads"):
        gate = LinearProjection.spec(zero=True, bias=True, offset=10.0)
        spec = GatedAttention.spec(attention=spec, input_gate=gate, input_per_head=True)
    spec = hybrid.attention(draft, spec)
    if given.get("alone"):
        spec = DeltaAttention.spec(attention=spec)
    if given.get("gate_values") or given.get("output_gate"):
        spec = GatedAttention.spec(attention=spec, **_gates(given))
    over = {(True, False): "token", (False, True): "head", (True, True): "both"}
    projected = over.get((bool(given.get(ORTHOGONAL[0])), bool(given.get(ORTHOGONAL[1]))))
    return spec if projected is None else OrthogonalValues.spec(attention=spec, over=projected)


def _gates(given: dict[str, Any]) -> dict[str, Any]:
    """The gates of input and output, fields of a `GatedAttention`."""

    def gate(name: str) -> Spec | None:
        if not given.get(name):
            return None
        rank = given[f"{name}_rank"]
        if rank is None:
            return LinearProjection.spec(zero=True)
        return LowRankProjection.spec(
            rank=rank, zero=True, activation="silu" if given["low_rank_silu_gates"] else "none"
        )

    return {
        "input_gate": gate("gate_values"),
        "output_gate": gate("output_gate"),
        "input_per_head": given["gate_values_headwise"],
        "output_per_head": given["output_gate_headwise"],
        "activation": "silu" if given["swiglu_values"] else "sigmoid",
    }


def _with_memory(spec: Spec, change: Any, zeros: bool = False) -> Spec:
    """The attention with its memory changed, wherever in it the memory stands."""
    inner = described(spec.args.get("attention"))
    if isinstance(inner, Spec) and inner.kind == "attention":
        return spec.replace(attention=_with_memory(inner, change, zeros))
    memory = described(spec.args.get("memory"))
    if not isinstance(memory, Spec):
        return spec
    if zeros:
        return spec.replace(memory=change(memory))
    if memory.part is JoinedMemory:  # upstream's zeros are put in front of what is changed
        inner = [one if one.part is ZeroMemory else change(one) for one in map(described, memory.args["memories"])]
        return spec.replace(memory=memory.replace(memories=inner))
    return spec if memory.part is ZeroMemory else spec.replace(memory=change(memory))


def mixer(draft: AttentionDraft, spec: Spec) -> Spec:
    """The mixer, with slots for its maps where they are not the plain ones."""
    fields = _maps(draft)
    if not fields or spec.part not in (MultiHead, CrossMultiHead):
        return spec
    return Spec(ProjectedAttention if spec.part is MultiHead else ProjectedCrossAttention, {**spec.args, **fields})


def _maps(draft: AttentionDraft) -> dict[str, Any]:
    """Maps into and out of the heads, fields of a `ProjectedAttention`."""
    given = draft.options
    fields: dict[str, Any] = {}
    values = {} if given.get("value_dim_head") is None else {"dim_value": given["value_dim_head"]}
    out = {} if given.get("dim_out") in (None, draft.dim) else {"outputs": given["dim_out"]}
    if given.get("use_latent_q"):
        fields["query"] = LowRankProjection.spec(rank=given["dim_latent_q"])
    if given.get("use_latent_kv"):
        own = given["latent_rope_subheads"] or 0
        fields["keys"] = LatentKeyValues.spec(dim_latent=given["dim_latent_kv"], own_heads=own, **values)
    elif values:
        fields["keys"] = LinearKeyValues.spec(**values)
    if given.get("on_attn"):
        fields["output"] = GatedProjection.spec(**out)
    elif not _maps_out(draft):
        order = _order_out(draft)
        fields["output"] = IdentityProjection.spec(**out) if order is None else HeadOrder.spec(order=order, **out)
    elif out or _times(draft) > 1:
        fields["output"] = LinearProjection.spec(**out)
    return fields


def _times(draft: AttentionDraft) -> int:
    """How many times the features of its value a head gives."""
    return 2 if all(draft.options.get(name) for name in ORTHOGONAL) else 1


def _order_out(draft: AttentionDraft) -> list[int] | None:
    """In which order upstream's heads go out, each with all it gives; None where it is that of the core."""
    order = tiled_heads(draft.heads, draft.key_heads)
    times = range(_times(draft))
    places = [order.index(head) * len(times) + one for one in times for head in range(draft.heads)]
    return None if places == list(range(len(places))) else places


def _maps_out(draft: AttentionDraft) -> bool:
    """Whether there is an output map; upstream leaves it out with one head, where it can."""
    if draft.project_out is not None:
        return draft.project_out
    widens = draft.options.get("dim_out") not in (None, draft.dim)
    return draft.heads != 1 or widens or bool(draft.options.get("on_attn"))


def _map_problems(draft: AttentionDraft) -> list[Problem]:
    at, given, found = draft.prefix, draft.options, []
    for name in ("q", "kv"):
        size = given.get(f"dim_latent_{name}")
        if given.get(f"use_latent_{name}") and (size is None or size < 1):
            message = f"use_latent_{name} needs the features of the latent: dim_latent_{name}"
            found.append(Problem(f"{at}dim_latent_{name}", message, size))
    own = given.get("latent_rope_subheads")
    if own is not None and not 0 < own <= draft.key_heads:
        message = f"must lie in 1..{draft.key_heads}, the heads of keys"
        found.append(Problem(f"{at}latent_rope_subheads", message, own))
    for name in ("value_dim_head", "dim_out"):
        if given.get(name) is not None and given[name] < 1:
            found.append(Problem(f"{at}{name}", "at least 1", given[name]))
    dim_out = given.get("dim_out") or draft.dim
    if dim_out != draft.dim and not given.get("alone"):
        message = f"what joins a residual stream of {draft.dim} features must have as many"
        found.append(Problem(f"{at}dim_out", message, dim_out, "an Attention by itself may have others"))
    if not _maps_out(draft):
        inner = draft.heads * (given.get("value_dim_head") or draft.dim_head) * _times(draft)
        found += _mapless_problems(draft, inner, dim_out)
    return found


def _mapless_problems(draft: AttentionDraft, inner: int, dim_out: int) -> list[Problem]:
    """What stands against leaving the output map out, from `inner` features to `dim_out`."""
    name, hint = f"{draft.prefix}project_out", f"give {draft.prefix}project_out=True, which keeps the map"
    if draft.options.get("on_attn"):
        return [Problem(name, "the gate of on_attn is part of the output map", False, hint)]
    if inner != dim_out:
        message = f"without an output map the heads' {inner} features must be the {dim_out} that go out"
        return [Problem(name, message, draft.project_out, hint)]
    return []
