"""How a step of a program uses parts of each kind: what they take and give, and how they are called.

A part's own inputs come first among the names that a step reads: `x`; ids or images for an embedding; `x` and a branch
for a residual; q and k for a rotation; q, k and v for an attention; scores for a bias. Further names reach it as the
streams of those names (a norm takes one, its condition). What a part publishes is named after its result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from variform.core.dims import Shape, shape_text
from variform.core.part import Facts, Part
from variform.core.spec import Spec, described
from variform.errors import ShapeError, did_you_mean
from variform.ops.scores import DenseBias
from variform.parts.kinds import CONTENTS, Embedding, Op, Sides, State, StreamPart, Streams, call
from variform.parts.mixer.multi_head import refuse_streams
from variform.stack.declared import check_declared
from variform.stack.inputs import as_mask

Outputs = tuple[Any, ...]
Run = Callable[[Any, Sequence[Any], Streams, str, State], Outputs]

FEATURES = frozenset({"features"})
ANY = frozenset(CONTENTS) - {"ids"}
STREAM_CONTENTS = {"positions": "ids", "segments": "ids", "valid": "mask", "mask": "mask", "context_mask": "mask"}
"""What the streams of a model hold, where it is not features."""

SIDES = frozenset(
    {"positions", "valid", "segments", "mask", "bias"}
    | {f"{side}_{name}" for side in "qk" for name in ("positions", "valid", "segments")}
)
"""The streams of an attention step: for both sides, or for the queries or keys alone; `bias` is added to the scores."""


@dataclass(frozen=True)
class Adapter:
    """How a step uses the parts of one kind.

    Args:
        mains: how many tensors come before the streams.
        accepts: what each of them may hold, of `CONTENTS`.
        makes: what the results hold.
        run: calls the part: `(part, mains, streams, slot, published) -> results`.
        shapes: the results' shapes: `(part's spec, shapes of mains, shapes of streams) -> shapes`.
        facts: sizes that the part may inherit, from the shapes of its mains.
        reads: the streams it may be given; None for those that it and the parts below it declare.
    """

    mains: int
    accepts: tuple[frozenset[str], ...]
    makes: tuple[str, ...]
    run: Run
    shapes: Callable[[Spec, tuple[Shape, ...], Mapping[str, Shape]], tuple[Shape, ...]]
    facts: Callable[[tuple[Shape, ...]], Facts] = field(default=lambda shapes: numbers(dim=_last(shapes[0])))
    reads: frozenset[str] | None = None


def apply(
    part: Part,
    names: Sequence[str],
    inputs: Sequence[Any],
    into: Sequence[str],
    streams: Streams,
    slot: str,
    new: State,
) -> Outputs:
    """Call a part that is no op.

    Args:
        part: the part.
        names: what the step reads.
        inputs: the values of these names.
        into: what the step writes.
        streams: side inputs of the program as a whole.
        slot: the name of this place, for decode state.
        new: where new decode state goes; changed in place.

    Raises:
        ShapeError: the part published a stream that the step does not name.
    """
    adapter = ADAPTERS[part.kind]
    count = adapter.mains
    if len(inputs) > count:
        extra = zip(names[count:], inputs[count:], strict=True)
        streams = {**streams, **{name: as_mask(value) if name == "mask" else value for name, value in extra}}
    published: State = {}
    if part.kind == "norm":  # any name is that of the condition
        results: Outputs = (part(*inputs),)
    else:
        results = adapter.run(part, inputs[:count], streams, slot, published)
    if not published:
        return results
    state = published.pop("state", None)
    if state:
        new.setdefault("state", {}).update(state)
    results += tuple(published.pop(name) for name in into[len(results) :])
    lost = [name for name, value in published.items() if value is not None]
    if lost:
        raise ShapeError(f"{part.kind} {part.name!r} publishes {', '.join(lost)}: name it among what the step writes")
    return results


def output_shapes(op: Spec, names: Sequence[str], inputs: tuple[Shape, ...], into: Sequence[str]) -> tuple[Shape, ...]:
    """The shapes of all that a step with a part that is no op writes.

    Args:
        op: the resolved part.
        names: what the step reads.
        inputs: their shapes.
        into: what the step writes.

    Raises:
        ShapeError: the part does not take these shapes or streams, or its published streams are not named.
    """
    adapter = ADAPTERS[op.kind]
    mains, extra = inputs[: adapter.mains], inputs[adapter.mains :]
    streams = dict(zip(names[adapter.mains :], extra, strict=True))
    if op.kind == "norm" and len(streams) > 1:
        raise ShapeError("a norm takes one stream, and a condition at most")
    if op.kind != "norm":
        _refuse_unread(op, adapter, streams)
        _check_streams(op, mains, streams)
        check_declared(op, mains[0], streams)
    results = adapter.shapes(op, mains, streams)
    named, published = tuple(into[len(results) :]), published_shapes(op, mains[0], streams)
    if sorted(named) == sorted(published):
        return results + tuple(published[name] for name in named)
    if published:
        told = ", ".join(published)
        raise ShapeError(f"{op.kind} {op.name!r} publishes {told}: name just that after what it writes")
    return results


def published_shapes(op: Spec, main: Shape, streams: Mapping[str, Shape]) -> dict[str, Shape]:
    """The streams that a part and the parts below it publish, with their shapes.

    Args:
        op: the resolved part.
        main: the shape of its first input.
        streams: the shapes of the streams that it is given.
    """
    found: dict[str, Shape] = {}
    if not getattr(op.part, "ends_streams", False):
        for _, _, child in op.children():
            inner = described(child)
            if inner is not None and inner.kind in _PUBLISHING:
                found.update(published_shapes(inner, main, streams))
    if issubclass(op.part, (StreamPart, Embedding)):
        found.update(op.part.out_streams(op.args, main, streams))
    return found


def step_facts(part: type[Part], shapes: tuple[Shape, ...]) -> dict[str, Any]:
    """Sizes that a part in a step may inherit, from the shapes of what the step reads."""
    if issubclass(part, Op) or part.kind not in ADAPTERS:
        return dict(numbers(dim=_last(shapes[0])))
    adapter = ADAPTERS[part.kind]
    return dict(adapter.facts(shapes)) if len(shapes) >= adapter.mains else {}


def input_type(part: Part, name: str, place: int) -> torch.dtype | None:
    """The type of the tensors that a built part takes from the name at a place of its step; None for floats."""
    if isinstance(part, Op):
        return torch.long if place in part.ids else None
    if place < ADAPTERS[part.kind].mains:
        example = part.example_inputs(1, 1) if isinstance(part, Embedding) else None
        return None if example is None or example.is_floating_point() else example.dtype
    return {"ids": torch.long, "mask": torch.bool}.get(STREAM_CONTENTS.get(name, ""))


def numbers(**sizes: Any) -> dict[str, int]:
    """Those sizes that are known numbers."""
    return {name: size for name, size in sizes.items() if isinstance(size, int)}


def _last(shape: Shape) -> Any:
    return shape[-1] if shape else 1


def _declared_reads(op: Spec) -> frozenset[str]:
    return frozenset().union(*(spec.part.reads_streams(spec.args) for _, spec in op.walk()))


def _refuse_unread(op: Spec, adapter: Adapter, streams: Mapping[str, Shape]) -> None:
    if not streams:
        return
    known = (_declared_reads(op) if adapter.reads is None else adapter.reads) - {"state", "cache"}
    for name in streams:
        if name not in known:
            hint = did_you_mean(name, known) if known else "it reads no stream"
            raise ShapeError(f"{op.kind} {op.name!r} does not read the stream {name!r}; {hint}")


def _check_streams(op: Spec, mains: tuple[Shape, ...], streams: Mapping[str, Shape]) -> None:
    """The streams that belong to the rows and tokens of the part's own input must have its sizes."""
    x, tokens = mains[0], None
    if op.kind in ("attention", "rotation", "bias"):
        tokens = (x[0], x[2]) if len(x) == 4 else None
    else:
        tokens = (x[0], x[1]) if len(x) in (2, 3) else None
    for name, shape in streams.items():
        fits = tokens is None or {
            "positions": shape in (tokens, tokens[1:]),
            "valid": shape == tokens,
            "segments": shape == tokens,
            "context": len(shape) == 3 and shape[0] == tokens[0],
            "context_mask": len(shape) in (2, 4),
            "mask": len(shape) in (2, 4) and shape[-2] == tokens[1],
        }.get(name, True)
        if not fits:
            raise ShapeError(
                f"the stream {name!r} is {shape_text(shape)}, and the tokens are {shape_text(tokens or x)}"
            )


def _rank(op: Spec, shape: Shape, form: str) -> Shape:
    if len(shape) != form[form.index("[") :].count(",") + 1:
        raise ShapeError(f"{op.kind} {op.name!r} takes {form}")
    return shape


def _same(op: Spec, mains: tuple[Shape, ...], streams: Mapping[str, Shape]) -> tuple[Shape, ...]:
    """One tensor of `dim` features stays as it is."""
    x, dim = mains[0], op.get("dim")
    if isinstance(dim, int) and (not x or x[-1] != dim):
        raise ShapeError(f"{op.kind} {op.name!r} works on {dim} features")
    if op.kind != "norm":
        _rank(op, x, "[B, L, dim]")
        given = op.part.gives({**op.args})
        if given:
            raise ShapeError(f"{op.kind} {op.name!r} changes {', '.join(given)}, which a step cannot follow")
    return (x,)


def _embedded(op: Spec, mains: tuple[Shape, ...], streams: Mapping[str, Shape]) -> tuple[Shape, ...]:
    return (op.part.out_shape(op.args, mains[0], streams),)


def _answered(op: Spec, mains: tuple[Shape, ...], streams: Mapping[str, Shape]) -> tuple[Shape, ...]:
    _same(op, mains, streams)
    return (op.part.out_shape(op.args, mains[0]),)


def _joined(op: Spec, mains: tuple[Shape, ...], streams: Mapping[str, Shape]) -> tuple[Shape, ...]:
    if mains[0] != mains[1]:
        raise ShapeError(f"{op.kind} {op.name!r} joins two tensors of one shape")
    return _same(op, mains, streams)


def _rotated(op: Spec, mains: tuple[Shape, ...], streams: Mapping[str, Shape]) -> tuple[Shape, ...]:
    q, k = (_rank(op, shape, "queries and keys of [B, H, L, D]") for shape in mains)
    head = op.get("dim_head")
    if q[3] != k[3] or (isinstance(head, int) and q[3] != head):
        raise ShapeError(f"{op.kind} {op.name!r} works on {head} features of a head")
    return (q, k)


def _attended(op: Spec, mains: tuple[Shape, ...], streams: Mapping[str, Shape]) -> tuple[Shape, ...]:
    q, k, v = (_rank(op, shape, "queries, keys and values of [B, H, L, D]") for shape in mains)
    if q[3] != k[3] or len({q[0], k[0], v[0]}) > 1 or k[1:3] != v[1:3]:
        raise ShapeError("queries and keys need equal features, keys and values equal heads and lengths")
    if isinstance(q[1], int) and isinstance(k[1], int) and q[1] % k[1]:
        raise ShapeError(f"{k[1]} heads of keys must divide {q[1]} heads of queries")
    can = op.part.abilities(dict(op.args))
    if q[2] != k[2] and (not can.cross or op.get("causal")):
        raise ShapeError(f"attention {op.name!r} needs as many keys as queries here")
    return ((*q[:3], v[3]),)


def _biased(op: Spec, mains: tuple[Shape, ...], streams: Mapping[str, Shape]) -> tuple[Shape, ...]:
    scores, heads = _rank(op, mains[0], "scores of [B, H, Lq, Lk]"), op.get("heads")
    if isinstance(heads, int) and scores[1] != heads:
        raise ShapeError(f"bias {op.name!r} is for {heads} heads")
    return (scores,)


def _run_stream_part(part: Any, mains: Sequence[Any], streams: Streams, slot: str, published: State) -> Outputs:
    return (call(part, mains[0], streams, slot, published),)


def _run_embedding(part: Any, mains: Sequence[Any], streams: Streams, slot: str, published: State) -> Outputs:
    out = part(mains[0], streams)
    if isinstance(out, tuple):
        published.update(out[1])
        return (out[0],)
    return (out,)


def _run_position(part: Any, mains: Sequence[Any], streams: Streams, slot: str, published: State) -> Outputs:
    (x,) = mains
    return (x + part(streams.get("positions"), x.shape[1], x),)


def _run_rotation(part: Any, mains: Sequence[Any], streams: Streams, slot: str, published: State) -> Outputs:
    return tuple(part(*mains, _side(streams, "q", "positions"), _side(streams, "k", "positions")))


def _run_attention(part: Any, mains: Sequence[Any], streams: Streams, slot: str, published: State) -> Outputs:
    mask, bias, states = streams.get("mask"), streams.get("bias"), streams.get("state")
    given = {name: _side(streams, name[0], name[2:]) for name in _SIDE_NAMES}
    refuse_streams(part, given["k_valid"], given["q_segments"], mask)
    scores = () if bias is None else (DenseBias(bias),)
    if scores and not part.takes_scores:
        raise ShapeError(f"the attention {part.name!r} has no scores that a bias could change")
    state = None if states is None else states.get(slot)
    sides = Sides(mask=mask, scores=scores, cache=streams.get("cache"), state=state, **given)
    out = part(*mains, sides)
    if isinstance(out, tuple):
        published["state"] = {slot: out[1]}
        return (out[0],)
    return (out,)


def _run_bias(part: Any, mains: Sequence[Any], streams: Streams, slot: str, published: State) -> Outputs:
    (scores,) = mains
    q, k = _side(streams, "q", "positions"), _side(streams, "k", "positions")
    queries, keys = scores.shape[-2:]
    q = torch.arange(queries, device=scores.device) if q is None else q
    return (part().apply(scores, q, torch.arange(keys, device=scores.device) if k is None else k),)


def _side(streams: Streams, side: str, name: str) -> Tensor | None:
    """A stream of the queries' side or the keys': its own, or the one for both."""
    own: Tensor | None = streams.get(f"{side}_{name}")
    return streams.get(name) if own is None else own


def _head_sizes(shapes: tuple[Shape, ...]) -> Facts:
    if any(len(shape) != 4 for shape in shapes[:2]):
        return {}
    return numbers(heads=shapes[0][1], kv_heads=shapes[1][1], dim_head=shapes[0][3])


_SIDE_NAMES = sorted(name for name in SIDES if name[1] == "_")
_PUBLISHING = ("layer", "mixer", "feedforward", "stack", "embedding")
_POSITIONS = frozenset({"positions"})
_STREAM_PART = Adapter(1, (FEATURES,), ("features",), _run_stream_part, _same)
ADAPTERS: dict[str, Adapter] = {
    **dict.fromkeys(("layer", "mixer", "feedforward", "stack"), _STREAM_PART),
    "norm": Adapter(1, (ANY,), (), lambda *args: (), _same),
    "embedding": Adapter(
        1, (frozenset({"ids", "features"}),), ("features",), _run_embedding, _embedded, lambda shapes: {}
    ),
    "head": Adapter(1, (FEATURES,), ("features",), lambda p, xs, s, *_: (p(xs[0], s),), _answered),
    "residual": Adapter(
        2, (FEATURES, FEATURES), ("features",), lambda p, xs, *_: (p(*xs),), _joined, reads=frozenset()
    ),
    "position": Adapter(1, (FEATURES,), ("features",), _run_position, _same, reads=_POSITIONS),
    "rotation": Adapter(
        2,
        (frozenset({"heads"}),) * 2,
        ("heads", "heads"),
        _run_rotation,
        _rotated,
        _head_sizes,
        frozenset({"positions", "q_positions", "k_positions"}),
    ),
    "attention": Adapter(
        3, (frozenset({"heads"}),) * 3, ("heads",), _run_attention, _attended, _head_sizes, frozenset(SIDES)
    ),
    "bias": Adapter(
        1,
        (frozenset({"scores"}),),
        ("scores",),
        _run_bias,
        _biased,
        lambda shapes: numbers(heads=shapes[0][1]) if len(shapes[0]) == 4 else {},
        frozenset({"positions", "q_positions", "k_positions"}),
    ),
}
"""How a step uses the parts of each kind but ops."""

REFUSED = {
    "memory": "a memory gives an attention more keys and values: put it into the attention's field 'memory'",
    "line": "a line is no part: a block of lines is given as a block, with 'repeat'",
    "model": "a model is a whole of its own: use its stacks, embedding and head, or lower it to a program",
}
"""Why parts of the other kinds cannot be steps."""
