"""Mixers and feedforwards, token embeddings and heads, cut into ops: only where this computes the very same."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from variform.core.part import Part
from variform.core.spec import Spec, described
from variform.lower.writer import Place, Writer
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.head.heads import LMHead
from variform.parts.kinds import Attention
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead, head_facts
from variform.parts.op.heads import MergeHeads, SplitHeads
from variform.parts.op.merging import CopyOp, MergeOp
from variform.parts.op.scale import DropoutOp
from variform.parts.op.tokenwise import ActivationOp, EmbeddingOp, LinearOp

Streams = Collection[str]


@dataclass(frozen=True)
class Opener:
    """How a part becomes ops.

    Args:
        fits: whether ops compute the very same, with these streams there.
        write: writes them; they start from the name given, and write `x`.
    """

    fits: Callable[[Spec, Streams], bool]
    write: Callable[[Writer, Spec, Place, str], None]


def linear(inputs: int, outputs: int, bias: bool, std: float | None, writes: int | None = None) -> Spec:
    """The op of a linear map that is initialised as `parts.linear.Linear` is."""
    scaled = std if std is None or writes is None else std / math.sqrt(writes)
    return LinearOp.spec(dim=inputs, out=None if outputs == inputs else outputs, bias=bias, init_std=scaled)


def _project(writer: Writer, op: Spec, source: str, reads: str, into: str, place: Place) -> None:
    writer.step(op, (reads,), (into,), place, {"project": source})


def _mlp(writer: Writer, part: Spec, place: Place, source: str) -> None:
    dim, hidden, std = part["dim"], _hidden(part), part["init_std"]
    _project(writer, linear(dim, hidden, part["bias"], std), "up", source, "x", place)
    writer.step(ActivationOp.spec(functions=(part["activation"],), dim=hidden))
    _inner(writer, part, place)
    _project(writer, linear(hidden, dim, part["bias"], std, part["writes"]), "down", "x", "x", place)


def _glu(writer: Writer, part: Spec, place: Place, source: str) -> None:
    dim, hidden, std, bias = part["dim"], _hidden(part), part["init_std"], part["bias"]
    _project(writer, linear(dim, hidden, bias, std), "gate", source, "gate", place)
    writer.step(ActivationOp.spec(functions=(part["activation"],), dim=hidden), ("gate",), ("gate",))
    _project(writer, linear(dim, hidden, bias, std), "up", source, "x", place)
    writer.step(MergeOp.spec(how="multiply"), ("gate", "x"))
    _inner(writer, part, place)
    out_bias = bias if part["out_bias"] is None else part["out_bias"]
    _project(writer, linear(hidden, dim, out_bias, std, part["writes"]), "down", "x", "x", place)


def _inner(writer: Writer, part: Spec, place: Place) -> None:
    if part["norm"] is not None:
        norm, where = place.child("norm", part["norm"])
        writer.step(norm, place=where)
    if part["dropout"]:
        writer.step(DropoutOp.spec(p=part["dropout"]))


def _is_plain(part: Spec, shaping: str) -> bool:
    return part[shaping] is None and part["dim_out"] is None


def _hidden(part: Spec) -> int:
    return int(part["hidden"] or int(part["mult"] * part["dim"]))


def _opens_self(part: Spec, streams: Streams) -> bool:
    """A bias on the scores is part of the attention's own call."""
    return part["position_bias"] is None and _hands_on(part, streams)


def _opens_cross(part: Spec, streams: Streams) -> bool:
    attention = described(part["attention"])
    return "context" in streams and not attention.get("causal") and _hands_on(part, streams)


def _hands_on(part: Spec, streams: Streams) -> bool:
    """Whether the attention is one that a step can call: a plain part of the kind."""
    attention: type[Part] = described(part["attention"]).part
    return issubclass(attention, Attention)


def _self_attention(writer: Writer, part: Spec, place: Place, source: str) -> None:
    _heads(writer, part, place, source, source, part["dim"])
    if part["rotation"] is not None:
        rotation, where = place.child("rotation", part["rotation"])
        writer.step(rotation, ("q", "k", *_there(writer, "positions")), ("q", "k"), where)
    attention, where = place.child("attention", part["attention"])
    sides = _there(writer, "mask", "positions", "segments", "valid")
    writer.step(attention, ("q", "k", "v", *sides), ("x",), where)
    _out(writer, part, place)


def _cross_attention(writer: Writer, part: Spec, place: Place, source: str) -> None:
    context = "context"
    if part["context_norm"] is not None:
        norm, where = place.child("context_norm", part["context_norm"])
        context = "normed"
        writer.step(norm, ("context",), (context,), where)
    _heads(writer, part, place, source, context, part["dim_context"] or part["dim"])
    masked = _there(writer, "context_mask")
    if masked:
        writer.step(CopyOp.spec(), masked, ("k_valid",))
    attention, where = place.child("attention", part["attention"])
    writer.step(attention, ("q", "k", "v", *(("k_valid",) if masked else ())), ("x",), where)
    _out(writer, part, place)


def _heads(writer: Writer, part: Spec, place: Place, source: str, other: str, width: int) -> None:
    """Queries of `source`, keys and values of `other`, in heads."""
    sizes: dict[str, Any] = head_facts({**part.args})
    dim, heads, kv_heads, head = part["dim"], part["heads"], sizes["kv_heads"], sizes["dim_head"]
    bias, std = part["bias"], part["init_std"]
    _project(writer, linear(dim, heads * head, bias, std), "q", source, "q", place)
    _project(writer, linear(width, kv_heads * head, bias, std), "k", other, "k", place)
    _project(writer, linear(width, kv_heads * head, bias, std), "v", other, "v", place)
    for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        writer.step(SplitHeads.spec(heads=count), (name,), (name,))
    for name in ("q", "k"):
        if part[f"{name}_norm"] is not None:
            norm, where = place.child(f"{name}_norm", part[f"{name}_norm"])
            writer.step(norm, (name,), (name,), where)


def _out(writer: Writer, part: Spec, place: Place) -> None:
    writer.step(MergeHeads.spec())
    inner = part["heads"] * head_facts({**part.args})["dim_head"]
    _project(
        writer, linear(inner, part["dim"], part["out_bias"], part["init_std"], part["writes"]), "out", "x", "x", place
    )


def _there(writer: Writer, *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in writer.streams)


def _opens_tokens(part: Spec, streams: Streams) -> bool:
    return not part["scale"] and (part["init_std"] is None or part["init_std"] > 0)


def _tokens(writer: Writer, part: Spec, place: Place, source: str) -> None:
    std = 0.02 if part["init_std"] is None else part["init_std"]
    writer.step(
        EmbeddingOp.spec(classes=part["vocab_size"], out=part["dim"], std=std),
        (source,),
        place=place,
        weights={"weight": "weight"},
    )
    if part["position"] is not None:
        position, where = place.child("position", part["position"])
        writer.step(position, ("x", *_there(writer, "positions")), place=where)
    _inner(writer, part, place)


def _logits(writer: Writer, part: Spec, place: Place, source: str) -> None:
    op = linear(part["dim"], part["vocab_size"], part["bias"], part["init_std"])
    _project(writer, op, "project", source, "x", place)


OPENERS: dict[type[Part], Opener] = {
    MLP: Opener(lambda part, streams: not part["out_dropout"] and _is_plain(part, "pre_act"), _mlp),
    GLU: Opener(lambda part, streams: _is_plain(part, "before"), _glu),
    MultiHead: Opener(_opens_self, _self_attention),
    CrossMultiHead: Opener(_opens_cross, _cross_attention),
    TokenEmbedding: Opener(_opens_tokens, _tokens),
    LMHead: Opener(lambda part, streams: True, _logits),
}
"""The parts that can be cut into ops."""
