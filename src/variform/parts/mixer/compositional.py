"""Compositional attention: what is searched for and what is retrieved are chosen apart from each other."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.dims import Shape, parse_shape
from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.errors import Problem, ShapeError, nearest_divisors
from variform.parts.kinds import Attention, Mixer, Norm, Output, State, Streams
from variform.parts.linear import Linear
from variform.parts.mixer.cross import (
    context_sides,
    cross_abilities,
    positions_read,
    refuse_unequal,
    told_positions,
)
from variform.parts.mixer.further import refuse_deltas
from variform.parts.mixer.multi_head import (
    context_without_padding,
    join_heads,
    own_sides,
    slot_abilities,
    slot_problems,
    split_heads,
    without_padding,
)

Size = Annotated[int, Field(gt=0)]
Score = Literal["linear", "mlp", "dot"]


class Selection(nn.Module):
    """Which of the rules' retrievals each head takes, softly, told from the token and from what was retrieved.

    dot: s_r = q . (W_k o_r) / sqrt(dim_selection), the paper's; mlp: s_r = w . relu(W [q, o_r] + b);
    linear: s_r = u_r . q + c_r + w . o_r. The weights are softmax_r(s_r). An offset equal for all rules would cancel
    in the softmax, so there is none; and the linear score reads q by weights of each rule, because by weights that
    are equal for all rules it would cancel as well.

    Args:
        rules: number of rules.
        dim_value: features of a retrieval.
        dim_selection: features of q.
        score: "dot", "mlp" or "linear".
        bias: offsets b and c.
    """

    def __init__(self, rules: int, dim_value: int, dim_selection: int, score: Score, bias: bool) -> None:
        super().__init__()
        self.score, self.size, self.scale = score, dim_selection, dim_selection**-0.5
        if score == "dot":
            self.key = Linear(dim_value, dim_selection, bias=False)
        elif score == "mlp":
            self.hidden_query = Linear(dim_selection, dim_selection, bias)
            self.hidden_value = Linear(dim_value, dim_selection, bias=False)
            self.last = Linear(dim_selection, 1, bias=False)
        else:
            self.query_score = Linear(dim_selection, rules, bias)
            self.value_score = Linear(dim_value, 1, bias=False)

    def forward(self, query: Tensor, retrieved: Tensor) -> Tensor:
        """The retrieval of each head.

        Shapes:
            query: [B, H, L, dim_selection], retrieved: [B, H, L, R, dim_value] -> [B, H, L, dim_value]
        """
        if self.score == "dot":
            scores = (self.key(retrieved) @ (query * self.scale).unsqueeze(-1)).squeeze(-1)
        elif self.score == "mlp":
            hidden = F.relu(self.hidden_query(query).unsqueeze(3) + self.hidden_value(retrieved))
            scores = self.last(hidden).squeeze(-1)
        else:
            scores = self.query_score(query) + self.value_score(retrieved).squeeze(-1)
        chosen: Tensor = scores.softmax(-1).unsqueeze(-2) @ retrieved
        return chosen.squeeze(-2)


class Maps(nn.Module):
    """All maps around the attention, for the own sequence and for another.

    Args:
        dim: features in and out.
        heads: number of searches.
        source: features of what keys and values are made of.
        rules: number of retrievals.
        dim_attn: features of all heads' queries.
        dim_value: features of all rules' values.
        dim_selection: features of a head's query for the choice.
        score: how the choice is made.
        q_compose: the query for the choice is read off the head's own.
        bias: learn offsets.
        tied: one map for queries and keys, and for values too where their sizes allow.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        source: int,
        rules: int,
        dim_attn: int,
        dim_value: int,
        dim_selection: int,
        score: Score,
        q_compose: bool,
        bias: bool,
        tied: bool,
    ) -> None:
        super().__init__()
        self.heads, self.rules, self.compose = heads, rules, q_compose
        self.dim_head, self.dim_value = dim_attn // heads, dim_value // rules
        self.q = Linear(dim, dim_attn, bias)
        self.k = None if tied else Linear(source, dim_attn, bias)
        self.v = None if tied and dim_value == dim_attn else Linear(source, dim_value, bias)
        read, made = (self.dim_head, dim_selection) if q_compose else (dim, heads * dim_selection)
        self.value_q = Linear(read, made, bias)
        self.selection = Selection(rules, self.dim_value, dim_selection, score, bias)
        self.out = Linear(heads * self.dim_value, dim, bias)

    def keys_values(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys of all heads side by side, and values of all rules: [B, Lk, H * D], [B, Lk, R * Dv]."""
        k = self.q(key) if self.k is None else self.k(key)
        return k, self.q(value) if self.v is None else self.v(value)

    def by_head(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each head, [B, H, L, D]; the values are those of all rules for each."""
        values = v.unsqueeze(1).expand(-1, self.heads, -1, -1)
        return split_heads(q, self.heads), split_heads(k, self.heads), values

    def chosen(self, x: Tensor, q: Tensor, found: Tensor) -> Tensor:
        """The result, of what each head found by every rule.

        Shapes:
            x: [B, L, dim], q: [B, H, L, D], found: [B, H, L, R * Dv] -> [B, L, dim]
        """
        retrieved = found.view(found.shape[0], self.heads, found.shape[2], self.rules, self.dim_value)
        query = self.value_q(q) if self.compose else split_heads(self.value_q(x), self.heads)
        return self.out(join_heads(self.selection(query, retrieved)))


@register("compositional")
class Compositional(Mixer):
    """Compositional attention (Mittal et al. 2021, arXiv:2110.09419).

    Each of H heads searches: A_h = softmax(Q_h K_h^T / sqrt(D)). Each of R rules retrieves by every search:
    O_hr = A_h V_r. Each head of each token takes a mix of its retrievals, y_h = sum_r w_hr O_hr, with w_hr the softmax
    over the rules of a score of the token and O_hr; see `score`. y = W_o concat_h y_h.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        dim: features in and out.
        heads: number of searches H.
        rules: number of retrievals R; as many as heads by default.
        dim_attn: features of all heads' queries; `dim` by default.
        dim_value: features of all rules' values; `dim` by default.
        dim_selection: features of a head's query for the choice; dim / heads by default.
        score: "dot", the paper's; "mlp", a network of one inner layer; "linear".
        q_compose: the query for the choice is read off the head's own query, else off the token.
        bias: learn offsets.
        tied: one map for queries and keys, and for values too where their sizes allow.
        attention: what happens between queries, keys and values; its dropout is that of the search.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"positions", "valid", "segments", "mask"})

    def __init__(
        self,
        dim: Size = INHERIT,
        heads: Size = INHERIT,
        rules: Size | None = None,
        dim_attn: Size | None = None,
        dim_value: Size | None = None,
        dim_selection: Size | None = None,
        score: Score = "dot",
        q_compose: bool = False,
        bias: bool = True,
        tied: bool = False,
        attention: Attention = use("softmax"),
    ) -> None:
        super().__init__()
        self.maps = Maps(
            dim=dim,
            heads=heads,
            source=dim,
            rules=rules or heads,
            dim_attn=dim_attn or dim,
            dim_value=dim_value or dim,
            dim_selection=dim_selection or max(1, dim // heads),
            score=score,
            q_compose=q_compose,
            bias=bias,
            tied=tied,
        )
        self.attention = attention

    @classmethod
    def derive(cls, facts: Facts) -> Facts:
        """The children see the size of a head."""
        return _head_facts(facts)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Heads divide what they split."""
        return _problems(facts)

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What the attention in the slot can do."""
        return slot_abilities(args)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Attend over `x` itself."""
        if streams.get("deltas") is not None:
            refuse_deltas(self)
        x = without_padding(x, streams.get("valid"))
        sides = own_sides(self.attention, None, x, streams)
        q, k, v = self.maps.by_head(self.maps.q(x), *self.maps.keys_values(x, x))
        out = self.attention(q, k, v, sides)
        found, state = out if isinstance(out, tuple) else (out, None)
        y = self.maps.chosen(x, q, found)
        if state is None:
            return (y, sides.published) if sides.published else y
        return y, {**sides.published, "state": state}

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """The attention's own state."""
        maps = self.maps
        wide = maps.rules * maps.dim_value
        return self.attention.init_state(batch, max_len, maps.out.weight, maps.heads, maps.dim_head, wide)

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether the attention in the slot keeps state."""
        return self.attention.stateful


@register("cross_compositional")
class CrossCompositional(Mixer):
    """Compositional attention from `x` to the stream `context` (Mittal et al. 2021, arXiv:2110.09419).

    As `compositional`, with keys and values of the context, whose mask and positions alone it uses. When decoding,
    they are computed once.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]; context: [B, Lc, dim_context]; context_mask: [B, Lc] bool, or a mask

    Args:
        dim: features in and out.
        heads: number of searches H.
        dim_context: features of the context; `dim` by default.
        rules: number of retrievals R; as many as heads by default.
        dim_attn: features of all heads' queries; `dim` by default.
        dim_value: features of all rules' values; `dim` by default.
        dim_selection: features of a head's query for the choice; dim / heads by default.
        score: "dot", "mlp" or "linear"; see `compositional`.
        q_compose: the query for the choice is read off the head's own query, else off the token.
        bias: learn offsets.
        tied: one map for queries and keys, and for values too where their sizes allow.
        attention: what happens between queries, keys and values.
        context_norm: a norm on the context; give it as `Shared` where it is the sublayer's own.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"context", "context_mask"})
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        dim: Size = INHERIT,
        heads: Size = INHERIT,
        dim_context: Size | None = INHERIT,
        rules: Size | None = None,
        dim_attn: Size | None = None,
        dim_value: Size | None = None,
        dim_selection: Size | None = None,
        score: Score = "dot",
        q_compose: bool = False,
        bias: bool = True,
        tied: bool = False,
        attention: Attention = use("softmax"),
        context_norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.dim_context = dim_context or dim
        self.context_norm = context_norm
        self.maps = Maps(
            dim=dim,
            heads=heads,
            source=dim_context or dim,
            rules=rules or heads,
            dim_attn=dim_attn or dim,
            dim_value=dim_value or dim,
            dim_selection=dim_selection or max(1, dim // heads),
            score=score,
            q_compose=q_compose,
            bias=bias,
            tied=tied,
        )
        self.attention = attention
        self.placed = attention.takes_positions

    @classmethod
    def derive(cls, facts: Facts) -> Facts:
        """The children see the size of a head."""
        return _head_facts(facts)

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The attention does not inherit `causal`: it reads another sequence."""
        if slot == "context_norm":
            return {"dim": facts.get("dim_context") or facts["dim"]}
        return {"causal": False}

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The attention accepts another sequence, and one map serves both sides only if they are of one size."""
        found, attention = _problems(facts), facts["attention"]
        if not attention.part.abilities(dict(attention.args)).cross:
            found.append(Problem("attention", f"{attention.name!r} cannot attend to another sequence"))
        if attention.part.own_abilities(dict(attention.args)) is not None:
            message = (
                f"{attention.name!r} reads the sequence of the queries too, by heads that have values of their own"
            )
            found.append(Problem("attention", message, hint="take cross_attention"))
        size = facts["dim_context"] or facts["dim"]
        if facts["tied"] and size != facts["dim"]:
            message = f"one map cannot read {facts['dim']} features of the tokens and {size} of the context"
            found.append(Problem("tied", message, True, "leave it out"))
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
        """Causality towards the own sequence is kept, as in other cross attention."""
        return cross_abilities(args)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Attend to the context."""
        if streams.get("deltas") is not None:
            refuse_deltas(self)
        state = streams.get("state")
        k, v = self._read(streams) if state is None else (state["k"], state["v"])
        refuse_unequal(self.attention, x.shape[1], k.shape[1])
        sides = context_sides(self.attention, self.placed, x, streams)
        q, k, v = self.maps.by_head(self.maps.q(x), k, v)
        found = self.attention(q, k, v, sides)
        assert isinstance(found, Tensor)
        y = self.maps.chosen(x, q, found)
        if state is None:
            return (y, sides.published) if sides.published else y
        return y, {**sides.published, "state": state}

    def _read(self, streams: Streams) -> tuple[Tensor, Tensor]:
        context = streams.get("context")
        if context is None:
            raise ShapeError("cross attention needs the stream 'context': pass context=... to the model")
        if context.shape[-1] != self.dim_context:
            raise ShapeError(f"the context must have {self.dim_context} features, and has {context.shape[-1]}")
        context = context_without_padding(context, streams)
        if self.context_norm is not None:
            context = self.context_norm(context)
        return self.maps.keys_values(context, context)

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """The context's keys and values, computed once."""
        k, v = self._read(streams)
        return {"k": k, "v": v, **told_positions(streams, batch, self.placed)}


def _head_facts(facts: Facts) -> dict[str, int]:
    size = facts["dim_attn"] or facts["dim"]
    return {"dim_head": max(1, size // facts["heads"]), "kv_heads": facts["heads"]}


def _problems(facts: Facts) -> list[Problem]:
    """Heads divide the features of queries, and rules those of values."""
    found = []
    for divisor, name in (("heads", "dim_attn"), ("rules", "dim_value")):
        number, size = facts[divisor] or facts["heads"], facts[name] or facts["dim"]
        if size % number:
            told = name if facts[name] else f"{name} = dim"
            hint = f"{nearest_divisors(size, number)}; or give {name}"
            found.append(Problem(divisor, f"must divide {told} = {size}", number, hint))
    return found + slot_problems(
        facts, facts["heads"], _head_facts(facts)["dim_head"], facts["dim_value"] or facts["dim"]
    )


__all__ = ["Compositional", "CrossCompositional"]
