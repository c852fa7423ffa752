"""Multi-head attention over another sequence, whose maps into and out of the heads are slots."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.dims import Shape, parse_shape
from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.errors import Problem, ShapeError
from variform.parts.key_values.latent import LatentKeyValues
from variform.parts.kinds import Attention, KeyValues, Mixer, Norm, Output, Projection, State, Streams
from variform.parts.mixer.cross import (
    beside_context,
    context_sides,
    cross_abilities,
    of_queries,
    positions_read,
    refuse_unequal,
    told_positions,
    with_own,
)
from variform.parts.mixer.deltas import changed_keys, changed_query
from variform.parts.mixer.further import with_added
from variform.parts.mixer.latents import absorbs, attend_absorbed
from variform.parts.mixer.multi_head import (
    context_without_padding,
    head_facts,
    join_heads,
    split_heads,
)
from variform.parts.mixer.projected import projected_problems, slot_facts, told

Size = Annotated[int, Field(gt=0)]


@register("projected_cross_attention")
class ProjectedCrossAttention(Mixer):
    """Multi-head attention from `x` to the stream `context`, with any maps into and out of the heads.

    With the plain maps by default it is `cross_attention`. With `keys: latent`, decoding keeps the latents of the
    context instead of its keys and values.

    Shapes:
        x: [B, L, dim] -> [B, L, dim], or as many features as the output map says, outside of residual steps;
        context: [B, Lc, dim_context]; context_mask: [B, Lc] bool, or a mask

    Args:
        dim: features in, and out.
        heads: number of query heads.
        dim_head: features of a query and key; dim / heads by default.
        kv_heads: number of key and value heads, a divisor of `heads`; as many as `heads` by default.
        dim_context: features of the context; `dim` by default.
        keys: how keys and values are made, and what of them decoding keeps; its `dim_value` are the features of a
            value, as many as `dim_head` by default.
        query: the map to the heads' queries.
        output: the map from the heads' values; its `outputs` are the features out, `dim` by default.
        attention: what happens between the heads' q, k and v.
        q_norm: a norm on each head's q.
        k_norm: a norm on each head's k.
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
        keys: KeyValues = use("linear"),
        query: Projection = use("linear"),
        output: Projection = use("linear"),
        attention: Attention = use("softmax"),
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads or heads
        self.dim_head = dim_head or dim // heads
        self.dim_value = keys.dim_value
        self.dim_context = dim_context or dim
        self.keys = keys
        self.query = query
        self.output = output
        self.attention = attention
        self.placed = attention.takes_positions
        self.q_norm = q_norm
        self.k_norm = k_norm

    @classmethod
    def derive(cls, facts: Facts) -> Facts:
        """The children see the sizes of a head."""
        return head_facts(facts)

    @classmethod
    def features_out(cls, args: Facts) -> int | None:
        """Those of the output map."""
        return told(args, "output", "outputs")

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The sizes of the maps; the attention does not inherit `causal`: it reads another sequence."""
        return {**slot_facts(slot, facts, facts.get("dim_context") or facts["dim"]), **of_queries(facts)}

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Heads must divide what they split, and the attention must accept another sequence, joined or not."""
        found, attention = projected_problems(facts), facts["attention"]
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
        q = split_heads(changed_query(self.query(x), self.attention, streams), self.heads)
        q = q if self.q_norm is None else self.q_norm(q)
        state = streams.get("state")
        kept = self._of_context(streams) if state is None else (state["k"], state["v"])
        refuse_unequal(self.attention, x.shape[1], kept[0].shape[2])
        sides = context_sides(self.attention, self.placed, x, streams)
        if streams.get("beside") is not None:
            sides.beside = beside_context(self, self.attention, streams)
        keys, length = self.keys, x.shape[1]
        if (
            isinstance(keys, LatentKeyValues)
            and state is not None
            and absorbs(keys, self.attention, self.k_norm, sides, length)
        ):
            out = attend_absorbed(keys, self.attention, (q, *kept), sides)
        else:
            k, v = keys.expand(*kept)
            attended = self.attention(q, k if self.k_norm is None else self.k_norm(k), v, sides)
            out, state = with_own(attended, state)
        y = self.output(join_heads(out))
        if state is None:
            return (y, sides.published) if sides.published else y
        return y, {**sides.published, "state": state}

    def _of_context(self, streams: Streams) -> tuple[Tensor, Tensor]:
        context = streams.get("context")
        if context is None:
            raise ShapeError("cross attention needs the stream 'context': pass context=... to the model")
        if context.shape[-1] != self.dim_context:
            raise ShapeError(f"the context must have {self.dim_context} features, and has {context.shape[-1]}")
        context = context_without_padding(context, streams)
        of = with_added(self, context, streams)
        return changed_keys(self.keys, self.keys(of, of), streams)

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """What is kept of the context's tokens, computed once."""
        first, second = self._of_context(streams)
        own, told_places = self.attention.own_state(batch, max_len), told_positions(streams, batch, self.placed)
        return {"k": first, "v": second, **told_places, **({"own": own} if own else {})}
