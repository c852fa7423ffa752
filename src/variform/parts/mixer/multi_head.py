"""Multi-head attention: projections around a head-level attention, over the sequence itself or over a context."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.fields import fields_of
from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.core.spec import Spec, described
from variform.errors import Problem, ShapeError, nearest_divisors
from variform.ops.scores import DenseBias, ScoreMod
from variform.parts.kinds import Attention, Bias, Mixer, Norm, Output, Rotation, Sides, State, Streams
from variform.parts.linear import Linear
from variform.parts.mixer.further import keys_beside, refuse_deltas, with_added

Size = Annotated[int, Field(gt=0)]


@register("multi_head")
class MultiHead(Mixer):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762), with grouped keys and values.

    y = W_o concat_h attention_h(W_q x, W_k x, W_v x). The attention, a rotation of queries and keys, a bias on the
    scores and a norm on queries and keys are slots.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        dim: features in and out.
        heads: number of query heads.
        dim_head: features of one head; dim / heads by default.
        kv_heads: number of key and value heads, a divisor of `heads`; as many as `heads` by default.
        bias: learn offsets in W_q, W_k, W_v.
        out_bias: learn an offset in W_o.
        attention: what happens between the heads' q, k and v.
        rotation: position code that rotates q and k.
        position_bias: position code that biases the scores.
        q_norm: a norm on each head's q.
        k_norm: a norm on each head's k.
        init_std: standard deviation of the initial weights; torch's default when None.
        writes: residual writes of the model, for the initial scale of W_o.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"positions", "valid", "segments", "mask", "bias", "beside"})
    takes_views: ClassVar[bool] = True

    def __init__(
        self,
        dim: Size = INHERIT,
        heads: Size = INHERIT,
        dim_head: Size | None = None,
        kv_heads: Size | None = None,
        bias: bool = False,
        out_bias: bool = False,
        attention: Attention = use("softmax"),
        rotation: Rotation | None = None,
        position_bias: Bias | None = None,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
        init_std: float | None = INHERIT,
        writes: int | None = INHERIT,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads or heads
        self.dim_head = dim_head or dim // heads
        inner, kv_inner = heads * self.dim_head, self.kv_heads * self.dim_head
        self.q = Linear(dim, inner, bias, std=init_std)
        self.k = Linear(dim, kv_inner, bias, std=init_std)
        self.v = Linear(dim, kv_inner, bias, std=init_std)
        self.out = Linear(inner, dim, out_bias, std=init_std, writes=writes)
        self.attention = attention
        self.rotation = rotation
        self.position_bias = position_bias
        self.q_norm = q_norm
        self.k_norm = k_norm

    @classmethod
    def derive(cls, facts: Facts) -> Facts:
        """The children see the size of a head."""
        return head_facts(facts)

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """A norm on queries or keys works on one head's features; the attention sees those that a rotation gives."""
        size = head_facts(facts)["dim_head"]
        if slot == "attention" and key_size(facts) != size:
            return {"dim_head": key_size(facts), "dim_value": size}
        return {"dim": size} if slot in ("q_norm", "k_norm") else {}

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Heads must divide what they split, and a bias needs scores."""
        size = head_facts(facts)["dim_head"]
        found = head_problems(facts) + slot_problems(facts, facts["heads"], key_size(facts), size)
        return found + self_problems(facts["attention"]) + bias_problems(facts)

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What the attention in the slot can do."""
        return slot_abilities(args)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Attend over `x` itself."""
        watch = streams.get("watch")
        if watch is not None:
            watch.enters(self, x, streams)
        if streams.get("deltas") is not None:
            refuse_deltas(self)
        own: dict[str, Any] = self._modules  # attributes of a module are looked up by a slow Python function
        valid = streams.get("valid")
        x = without_padding(x, valid)
        of_k, of_v = keys_input(x, streams)
        given = streams.get("beside") is not None
        if given:
            of_k, of_v = with_added(self, of_k, streams), with_added(self, of_v, streams)
        q = split_heads(own["q"](x), self.heads)
        k, v = split_heads(own["k"](of_k), self.kv_heads), split_heads(own["v"](of_v), self.kv_heads)
        if self.q_norm is not None:
            q = self.q_norm(q)
        if self.k_norm is not None:
            k = self.k_norm(k)
        positions = streams.get("positions")
        if self.rotation is not None:
            q, k = self.rotation(q, k, positions, positions)
        sides = own_sides(self.attention, self.position_bias, x, streams)
        if given:
            sides.beside = keys_beside(self, self.attention, streams)
        out = own["attention"](q, k, v, sides)
        joined, state = out if isinstance(out, tuple) else (out, None)
        y: Tensor = own["out"](join_heads(joined))
        if state is None:
            return (y, sides.published) if sides.published else y
        return y, {**sides.published, "state": state}

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """The attention's own state."""
        size = self.dim_head if self.rotation is None else self.dim_head * self.rotation.widening
        return self.attention.init_state(batch, max_len, self.k.weight, self.kv_heads, size, self.dim_head)

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether the attention in the slot keeps state."""
        return self.attention.stateful


def keys_input(x: Tensor, streams: Streams) -> tuple[Tensor, Tensor]:
    """What keys and what values are made of: x, or the views that a sublayer hands over for them."""
    keys, values, valid = streams.get("key_input"), streams.get("value_input"), streams.get("valid")
    of_k = x if keys is None else without_padding(keys, valid)
    of_v = x if values is None else without_padding(values, valid)
    return of_k, of_v


def given_bias(attention: Attention, bias: Tensor) -> DenseBias:
    """The stream `bias`, [Lq, Lk], [H, Lq, Lk] or [B, H, Lq, Lk] floats, as a change of an attention's scores.

    Raises:
        ShapeError: the attention has no scores.
    """
    if not attention.takes_scores:
        message = f"the attention {attention.name!r} has no scores that the stream 'bias' could change"
        raise ShapeError(f"{message}; leave it out, or take an attention with scores, such as 'softmax'")
    return DenseBias(bias, per="head" if bias.dim() == 3 else None)


def own_sides(attention: Attention, bias: Bias | None, x: Tensor, streams: Streams) -> Sides:
    """What an attention over the sequence itself knows beside q, k and v.

    Raises:
        ShapeError: it cannot honour one of the streams.
    """
    valid, segments, mask = streams.get("valid"), streams.get("segments"), streams.get("mask")
    if valid is not None or segments is not None or mask is not None:
        refuse_streams(attention, valid, segments, mask)
    scores: tuple[ScoreMod, ...] = () if bias is None else (bias(),)
    if streams.get("bias") is not None:
        scores = (*scores, given_bias(attention, streams["bias"]))
    return Sides(
        q_positions=streams.get("positions"),
        k_positions=streams.get("positions"),
        q_segments=segments,
        k_segments=segments,
        q_valid=valid,
        k_valid=valid,
        mask=mask,
        scores=scores,
        cache=streams.get("cache"),
        state=streams.get("state"),
        x=x,
        streams=streams,
    )


def without_padding(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zeros in place of padding that is not finite: a weight of 0 would not keep NaN from other tokens.

    Shapes:
        x: [B, L, dim], valid: [B, L] -> [B, L, dim]
    """
    if valid is None:
        return x
    return x.masked_fill((valid | x.isfinite().all(-1)).logical_not().unsqueeze(-1), 0)


def context_without_padding(context: Tensor, streams: Streams) -> Tensor:
    """The same for a context, where `context_mask` tells its padding."""
    valid = streams.get("context_mask")
    return without_padding(context, valid) if isinstance(valid, Tensor) else context


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, H * D] to [B, H, L, D]."""
    batch, length, _ = x.shape
    if length == 1:
        return x.view(batch, heads, 1, -1)
    return x.view(batch, length, heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, H, L, D] to [B, L, H * D]."""
    batch, _, length, _ = x.shape
    return x.reshape(batch, 1, -1) if length == 1 else x.transpose(1, 2).reshape(batch, length, -1)


def takes_scores(attention: Spec) -> bool:
    """Whether an attention has scores that a position bias can change."""
    return issubclass(attention.part, Attention) and attention.part.scores_taken(attention.args)


def head_facts(facts: Facts) -> dict[str, Any]:
    """The size of a head and the number of key heads, given or derived."""
    return {
        "dim_head": facts["dim_head"] or max(1, facts["dim"] // facts["heads"]),
        "kv_heads": facts["kv_heads"] or facts["heads"],
    }


def key_size(facts: Facts) -> int:
    """Features of a query or key behind the rotation in the slot `rotation`, if there is one."""
    rotation = described(facts.get("rotation"))
    size: int = head_facts(facts)["dim_head"]
    return size * rotation.part.widening if isinstance(rotation, Spec) else size


def head_problems(facts: Facts) -> list[Problem]:
    """Heads must divide the dimension they are cut from, and key heads the heads."""
    found = []
    dim, heads, kv_heads = facts["dim"], facts["heads"], facts["kv_heads"]
    if facts["dim_head"] is None and dim % heads:
        hint = f"{nearest_divisors(dim, heads)}; or give dim_head"
        found.append(Problem("heads", f"must divide dim = {dim}, because dim_head is derived from it", heads, hint))
    if kv_heads is not None and heads % kv_heads:
        found.append(Problem("kv_heads", f"must divide heads = {heads}", kv_heads, nearest_divisors(heads, kv_heads)))
    return found


def self_problems(attention: Spec) -> list[Problem]:
    """An attention over the sequence itself is not made for the keys of another."""
    if not (issubclass(attention.part, Attention) and attention.part.of_context):
        return []
    return [Problem("attention", f"{attention.name!r} is for the keys of another sequence", hint="take a rotation")]


def bias_problems(facts: Facts) -> list[Problem]:
    """A bias in the slot `position_bias` needs scores."""
    attention = facts["attention"]
    if facts["position_bias"] is None or takes_scores(attention):
        return []
    message = f"the attention {attention.name!r} has no scores that a bias could change"
    return [Problem("position_bias", message, hint="take a rotation, or another attention")]


def slot_problems(facts: Facts, heads: int, dim_head: int, dim_value: int, any_width: bool = False) -> list[Problem]:
    """The attention in the slot `attention` is made for the heads that it is given.

    Args:
        facts: of the mixer.
        heads: query heads.
        dim_head: features of a query.
        dim_value: features of a value.
        any_width: whether the attention may give more features than a value has.
    """
    attention: Spec = facts["attention"]
    inherited = {f.name for f in fields_of(attention.part) if f.inherits}
    problems = []
    for name, size in (("heads", heads), ("dim_head", dim_head)):
        own = attention.args.get(name)
        if name in inherited and own not in (None, size):
            problems.append(Problem(f"attention.{name}", f"the mixer around it has {size}", own, "leave it out"))
    wanted = attention.part.value_size(attention.args) if issubclass(attention.part, Attention) else None
    if not problems and wanted not in (None, dim_value):
        message = f"{attention.name!r} is made for values of {wanted} features, and a value has {dim_value} here"
        problems.append(Problem("attention", message))
    if not any_width and value_times(facts) != 1:
        message = f"{attention.name!r} gives more features than a value has, and the output map is for as many"
        problems.append(Problem("attention", message, hint="take projected_attention"))
    return problems


def value_times(facts: Facts) -> int:
    """How many times the features of a value the attention in the slot `attention` gives."""
    slot = described(facts.get("attention"))
    return slot.part.value_times(slot.args) if isinstance(slot, Spec) and issubclass(slot.part, Attention) else 1


def slot_abilities(args: Facts) -> Can:
    """The abilities of the attention in the slot `attention`."""
    slot = described(args.get("attention"))
    return slot.part.abilities(dict(slot.args)) if isinstance(slot, Spec) else Can()


def refuse_streams(
    attention: Attention,
    valid: object,
    segments: object,
    mask: object,
    names: tuple[str, str, str] = ("valid", "segments", "mask"),
    across: bool = False,
) -> None:
    """Refuse a stream that the attention would ignore; `names` is what the caller calls the three.

    Args:
        across: whether they are of another sequence.

    Raises:
        ShapeError: naming the stream.
    """
    can = attention.able_across if across else attention.able
    able = (can.key_padding, can.packed, can.attention_mask)
    for name, stream, honoured in zip(names, (valid, segments, mask), able, strict=True):
        if stream is not None and not honoured:
            raise ShapeError(
                f"the attention {attention.name!r} cannot honour the stream {name!r}; leave it out, or "
                "take an attention that can (`variform parts --kind attention` lists them)"
            )


__all__ = ["MultiHead"]
