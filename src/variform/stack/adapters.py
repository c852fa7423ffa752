"""The kinds of parts that a step can use beside ops: what each takes and gives, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from variform.core.dims import Shape
from variform.core.part import Facts
from variform.core.spec import Spec
from variform.errors import ShapeError
from variform.parts.kinds import CONTENTS, Sides, State, Streams, call, join
from variform.parts.mixer.multi_head import given_bias, refuse_streams

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
    facts: Callable[[tuple[Shape, ...]], Facts] = field(default=lambda shapes: numbers(dim=last(shapes[0])))
    reads: frozenset[str] | None = None


def numbers(**sizes: Any) -> dict[str, int]:
    """Those sizes that are known numbers."""
    return {name: size for name, size in sizes.items() if isinstance(size, int)}


def last(shape: Shape) -> Any:
    """The last size."""
    return shape[-1] if shape else 1


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
    wider = getattr(op.part, "widening", 1)
    return ((*q[:3], q[3] * wider), (*k[:3], k[3] * wider))


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


def _run_residual(part: Any, mains: Sequence[Any], streams: Streams, slot: str, published: State) -> Outputs:
    return (join(part, mains[0], mains[1], streams, slot, published),)


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
    given: dict[str, Any] = {name: _side(streams, name[0], name[2:]) for name in _SIDE_NAMES}
    refuse_streams(part, given["k_valid"], given["q_segments"], mask)
    scores = () if bias is None else (given_bias(part, bias),)
    state = None if states is None else states.get(slot)
    sides = Sides(mask=mask, scores=scores, cache=streams.get("cache"), state=state, streams=streams, **given)
    out = part(*mains, sides)
    if sides.published:
        told = ", ".join(sides.published)
        raise ShapeError(
            f"the attention {part.name!r} hands {told} on to later layers, which a step of a program has not"
        )
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
_POSITIONS = frozenset({"positions"})
_STREAM_PART = Adapter(1, (FEATURES,), ("features",), _run_stream_part, _same)
ADAPTERS: dict[str, Adapter] = {
    **dict.fromkeys(("layer", "mixer", "feedforward", "stack"), _STREAM_PART),
    "norm": Adapter(1, (ANY,), (), lambda *args: (), _same),
    "embedding": Adapter(
        1, (frozenset({"ids", "features"}),), ("features",), _run_embedding, _embedded, lambda shapes: {}
    ),
    "head": Adapter(1, (FEATURES,), ("features",), lambda p, xs, s, *_: (p(xs[0], s),), _answered),
    "residual": Adapter(2, (FEATURES, FEATURES), ("features",), _run_residual, _joined),
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
    "nonlinearity": "a nonlinearity shapes the inner features of a feedforward: a step takes the op 'activation'",
    "gate": "a gate belongs to a gated feedforward: put it into the field 'before' of a 'glu'",
    "entry": "an entry says what the branch of a sublayer reads: put it into the sublayer's field 'entry'",
    "memory": "a memory gives an attention more keys and values: put it into the attention's field 'memory'",
    "key_values": "keys and values are made within a mixer: a step takes the mixer, or the op 'linear'",
    "projection": "a projection maps features within other parts: a step takes the op 'linear'",
    "scoring": "a scoring changes the scores of an attention: put it into the attention's field 'scores'",
    "weighting": "a weighting makes weights of scores: put it into the attention's field 'weights'",
    "line": "a line is no part: a block of lines is given as a block, with 'repeat'",
    "model": "a model is a whole of its own: use its stacks, embedding and head, or lower it to a program",
}
"""Why parts of the other kinds cannot be steps."""
