"""Multi-head attention over another sequence."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.dims import Shape, parse_shape
from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.core.spec import Spec, described
from variform.errors import Problem, ShapeError
from variform.ops.masks import Mask
from variform.parts.beside import Beside
from variform.parts.kinds import Attention, Mixer, Norm, Output, Sides, State, Streams
from variform.parts.linear import Linear
from variform.parts.mixer.further import keys_beside, refuse_deltas, with_added
from variform.parts.mixer.multi_head import (
    context_without_padding,
    head_facts,
    head_problems,
    refuse_streams,
    slot_abilities,
    slot_problems,
)

Size = Annotated[int, Field(gt=0)]


@register("cross_attention")
class CrossMultiHead(Mixer):
    """Multi-head attention from `x` to the stream `context` (Vaswani et al. 2017, arXiv:1706.03762).

    It uses only the context's mask and positions, and never inherits `causal`. When decoding, keys and values of
    the context are computed once.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]; context: [B, Lc, dim_context]; context_mask: [B, Lc] bool, or a mask

    Args:
        dim: features in and out.
        heads: number of query heads.
        dim_head: features of one head; dim / heads by default.
        kv_heads: number of key and value heads; as many as `heads` by default.
        dim_context: features of the context; `dim` by default.
        bias: learn offsets in W_q, W_k, W_v.
        out_bias: learn an offset in W_o.
        attention: what happens between the heads' q, k and v.
        q_norm: a norm on each head's q.
        k_norm: a norm on each head's k.
        context_norm: a norm on the context; give it as `Shared` where it is the sublayer's own.
        init_std: standard deviation of the initial weights; torch's default when None.
        writes: residual writes of the model, for the initial scale of W_o.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"context", "context_mask", "beside"})
    stateful: ClassVar[bool] = True
    answers_for_slots: ClassVar[bool] = True

    def __init__(
        self,
        dim: Size = INHERIT,
        heads: Size = INHERIT,
        dim_head: Size | None = None,
        kv_heads: Size | None = None,
        dim_context: Size | None = INHERIT,
        bias: bool = False,
        out_bias: bool = False,
        attention: Attention = use("softmax"),
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
        context_norm: Norm | None = None,
        init_std: float | None = INHERIT,
        writes: int | None = INHERIT,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads or heads
        self.dim_head = dim_head or dim // heads
        inner, kv_inner = heads * self.dim_head, self.kv_heads * self.dim_head
        self.q = Linear(dim, inner, bias, std=init_std)
        self.k = Linear(dim_context or dim, kv_inner, bias, std=init_std)
        self.v = Linear(dim_context or dim, kv_inner, bias, std=init_std)
        self.out = Linear(inner, dim, out_bias, std=init_std, writes=writes)
        self.attention = attention
        self.placed = attention.takes_positions
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.context_norm = context_norm

    @classmethod
    def derive(cls, facts: Facts) -> Facts:
        """The children see the size of a head."""
        return head_facts(facts)

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The attention does not inherit `causal`: it reads another sequence."""
        if slot == "context_norm":
            return {"dim": facts.get("dim_context") or facts["dim"]}
        return {"dim": head_facts(facts)["dim_head"]} if slot in ("q_norm", "k_norm") else of_queries(facts)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Heads must divide what they split, and the attention must accept another sequence."""
        found, attention = head_problems(facts), facts["attention"]
        size = head_facts(facts)["dim_head"]
        found += slot_problems(facts, facts["heads"], size, size)
        if not attention.part.abilities(dict(attention.args)).cross:
            found.append(Problem("attention", f"{attention.name!r} cannot attend to another sequence"))
        return found

    @classmethod
    def in_streams(cls, args: Facts) -> dict[str, Shape]:
        """A context of any length."""
        return {"context": parse_shape(("B", "L_context", args["dim_context"] or args["dim"]))}

    @classmethod
    def reads_streams(cls, args: Facts) -> frozenset[str]:
        """The own positions too, where the attention goes by them."""
        return cls.reads | positions_read(args)

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """Nothing of the own sequence is read, so causality is kept, unless the attention mixes queries."""
        return cross_abilities(args)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Attend to the context."""
        watch = streams.get("watch")
        if watch is not None:
            watch.enters(self, x, streams)
        if streams.get("deltas") is not None:
            refuse_deltas(self)
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.heads, self.dim_head).transpose(1, 2)
        if self.q_norm is not None:
            q = self.q_norm(q)
        state = streams.get("state")
        if state is None:
            k, v = self._keys_values(streams)
        else:
            k, v = state["k"], state["v"]
        refuse_unequal(self.attention, length, k.shape[2])
        sides = context_sides(self.attention, self.placed, x, streams)
        if streams.get("beside") is not None:
            sides.beside = beside_context(self, self.attention, streams)
        out, state = with_own(self.attention(q, k, v, sides), state)
        y = self.out(out.transpose(1, 2).reshape(batch, length, -1))
        if state is None:
            return (y, sides.published) if sides.published else y
        return y, {**sides.published, "state": state}

    def _keys_values(self, streams: Streams) -> tuple[Tensor, Tensor]:
        context = streams.get("context")
        if context is None:
            raise ShapeError("cross attention needs the stream 'context': pass context=... to the model")
        context = context_without_padding(context, streams)
        if self.context_norm is not None:
            context = self.context_norm(context)
        batch, length, dim = context.shape
        if dim != self.k.in_features:
            raise ShapeError(f"the context must have {self.k.in_features} features, and has {dim}")
        context = with_added(self, context, streams)
        k = self.k(context).view(batch, length, self.kv_heads, self.dim_head).transpose(1, 2)
        v = self.v(context).view(batch, length, self.kv_heads, self.dim_head).transpose(1, 2)
        return (k if self.k_norm is None else self.k_norm(k)), v

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """The context's keys and values, computed once."""
        k, v = self._keys_values(streams)
        own = self.attention.own_state(batch, max_len)
        return {"k": k, "v": v, **told_positions(streams, batch, self.placed), **({"own": own} if own else {})}


def of_queries(facts: Facts) -> Facts:
    """The attention does not inherit `causal`, which is of the sequence that its queries are of."""
    return {"causal": False, "causal_queries": facts.get("causal", False)}


def with_own(out: Tensor | tuple[Tensor, State], state: State | None) -> tuple[Tensor, State | None]:
    """What an attention gave, and the decode state of its mixer with what it keeps of the own sequence."""
    if isinstance(out, Tensor):
        return out, state
    return out[0], None if state is None else {**state, "own": out[1]}


def positions_read(args: Facts) -> frozenset[str]:
    """The streams of positions, where the attention of such a mixer goes by them."""
    slot = described(args.get("attention"))
    takes = isinstance(slot, Spec) and issubclass(slot.part, Attention) and slot.part.positions_taken(slot.args)
    return frozenset({"positions", "context_positions"} if takes else ())


def cross_abilities(args: Facts) -> Can:
    """Those of a mixer over a context, by the attention in its slot."""
    can, slot = slot_abilities(args), described(args.get("attention"))
    if not isinstance(slot, Spec) or not issubclass(slot.part, Attention):
        return Can(True, can.key_padding, can.attention_mask, can.packed, can.cross, can.lengths, True)
    own, alone = slot.part.own_abilities(slot.args) or Can(), not slot.part.queries_mixed(slot.args)
    causal, decode = alone and own.causal, alone and own.decode
    return Can(causal, can.key_padding, can.attention_mask, can.packed, can.cross, can.lengths, decode)


def told_positions(streams: Streams, batch: int, placed: bool) -> State:
    """What a decode state keeps of where the context's tokens stand, [B, Lc], where the attention goes by it."""
    positions = streams.get("context_positions") if placed else None
    return {} if positions is None else {"context_positions": positions.expand(batch, -1)}


def context_sides(attention: Attention, placed: bool, x: Tensor, streams: Streams) -> Sides:
    """What an attention over the stream `context` knows beside q, k and v.

    Args:
        attention: it.
        placed: whether it goes by positions.
        x: [B, L, dim] what the queries are made of.
        streams: of the mixer.

    Raises:
        ShapeError: it cannot honour `context_mask`.
    """
    given = streams.get("context_mask")
    mask, valid = (given, None) if isinstance(given, Mask) else (None, given)
    refuse_streams(attention, valid, None, mask, ("context_mask", "segments", "a mask as context_mask"), across=True)
    sides = Sides(mask=mask, k_valid=valid, x=x, streams=streams)
    state = streams.get("state")
    sides.state = None if state is None else state.get("own")
    if placed:
        told = streams if state is None else state
        sides.q_positions, sides.k_positions = _in_segment(x, streams), told.get("context_positions")
    return sides


def _in_segment(x: Tensor, streams: Streams) -> Tensor | None:
    """Positions of the queries beside a context, which begins with the segment: those before it are not counted."""
    positions: Tensor | None = streams.get("positions")
    recalled = streams.get("recalled")
    if recalled is None:
        return positions
    positions = torch.arange(x.shape[1], device=x.device) if positions is None else positions
    return torch.clamp(positions - recalled, min=0)  # padding, or what is remembered


def beside_context(mixer: nn.Module, attention: Attention, streams: Streams) -> Beside | None:
    """The further keys and values that the stream `beside` has for a mixer over a context.

    Raises:
        ShapeError: its attention takes none, or a decode state has the context's keys and values already.
    """
    found = keys_beside(mixer, attention, streams)
    if found is not None and found.added is not None and streams.get("state") is not None:
        raise ShapeError("keys and values of the context were made before decoding began: nothing is added to them now")
    return found


def refuse_unequal(attention: Attention, queries: int, keys: int) -> None:
    """Refuse a context of another length where attention is causal.

    Raises:
        ShapeError: naming both lengths.
    """
    if getattr(attention, "causal", False) and keys != queries:
        raise ShapeError(f"causal cross attention needs equal lengths, not {queries} queries and {keys} context tokens")
