"""Attention beside another mixer, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.core.spec import Spec, described
from variform.errors import Problem, ShapeError
from variform.ops.blend import blend
from variform.parts.attention.around import AroundAttention, wide_inside
from variform.parts.attention.gated import to_heads, token_features
from variform.parts.kinds import Attention, Mixer, Norm, Projection, Sides, State, holds_state

Size = Annotated[int, Field(gt=0)]


@register("hybrid")
class HybridAttention(AroundAttention):
    """What the heads attend to, mixed with what a mixer makes of the same tokens (Hymba, Dong et al. 2024,
    arXiv:2411.13676): o = (1 - m) norm(o) + m norm'(mixer(x)), m = 1/2 or sigmoid(W x) for each head.

    The mixer may be any: a recurrence, a state space, a module of torch's own. In cross attention it reads the sequence
    of the queries, and is causal where that is.

    Shapes:
        q, k, v: as the inner attention's; `sides.x` [B, L, dim]; the mixer gives [B, L, heads * dim_value]

    Args:
        attention: the attention.
        mixer: what stands beside it.
        norm: of the attended values of a head.
        mixer_norm: of the mixer's features of a head.
        mix: W, a map to one number a head; None for the mean.
        head_order: for each head, which part of the mixer's features is its own; in order by default.
        dim: features of a token.
        heads: number of query heads.
        dim_value: features of a head's value; `dim_head` by default.
        dim_head: features of a head.
    """

    def __init__(
        self,
        attention: Attention = use("softmax"),
        mixer: Mixer = use("gru"),
        norm: Norm | None = use("rms_norm"),
        mixer_norm: Norm | None = use("rms_norm"),
        mix: Projection | None = None,
        head_order: Sequence[int] | None = None,
        dim: Size = INHERIT,
        heads: Size = INHERIT,
        dim_value: Size | None = inherit(None),
        dim_head: Size = INHERIT,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.mixer = mixer
        self.norm = norm
        self.mixer_norm = mixer_norm
        self.mix = mix
        self.head_order = None if head_order is None else list(head_order)
        self.heads = heads

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """Norms see a head's value, and the mixing map gives one number a head."""
        if slot in ("norm", "mixer_norm"):
            return {"dim": facts.get("dim_value") or facts["dim_head"]}
        if slot == "mixer":  # of the queries, whatever is asked of the keys of another sequence
            return {"causal": facts["causal_queries"]} if "causal_queries" in facts else {}
        return {"inputs": facts["dim"], "outputs": facts["heads"], "writes": None} if slot == "mix" else {}

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """An order holds each head once, and both sides are as wide as values."""
        order = facts["head_order"]
        if order is not None and sorted(order) != list(range(facts["heads"])):
            return [Problem("head_order", f"each of 0..{facts['heads'] - 1} once", order)]
        return wide_inside(cls.inner(facts))

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What the attention and the mixer can both do."""
        mixer, can = described(args.get("mixer")), super().abilities(args)
        if not isinstance(mixer, Spec):
            return can
        return can & replace(mixer.part.abilities(mixer.args), cross=True)

    @classmethod
    def own_abilities(cls, args: Facts) -> Can | None:
        """What the mixer can do."""
        mixer, inner = described(args.get("mixer")), super().own_abilities(args)
        own = mixer.part.abilities(mixer.args) if isinstance(mixer, Spec) else Can()
        return own if inner is None else own & inner

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend, run the mixer, and mix."""
        x, state = token_features(sides, self.name), sides.state
        streams: dict[str, Any] = {**(sides.streams or {})}
        if state is not None:
            streams["state"] = state["mixer"]
            sides = replace(sides, state=(state["attention"] or None) if self.attention.stateful else None)
        attended = self.attention(q, k, v, sides)
        beside = self.mixer(x, streams)
        out, kept = attended if isinstance(attended, tuple) else (attended, state["attention"] if state else {})
        told, published = beside if isinstance(beside, tuple) else (beside, {})
        new = {"attention": kept, "mixer": published.get("state", {})}
        sides.published.update({name: stream for name, stream in published.items() if name != "state"})
        y = self._mixed(x, out, told)
        return y if state is None else (y, new)

    def _mixed(self, x: Tensor, out: Tensor, told: Tensor) -> Tensor:
        if told.shape[-1] != out.shape[1] * out.shape[3]:
            raise ShapeError(
                f"the mixer beside an attention must give {out.shape[1]} heads of {out.shape[3]} features each, and "
                f"gives {told.shape[-1]} features"
            )
        told = to_heads(told, out.shape[1])
        told = told if self.head_order is None else told[:, self.head_order]
        out = out if self.norm is None else self.norm(out)
        told = told if self.mixer_norm is None else self.mixer_norm(told)
        if self.mix is None:
            return 0.5 * (out + told)
        return blend(out, told, self.mix(x).sigmoid().transpose(1, 2).unsqueeze(-1))

    @property
    def able(self) -> Can:
        """What the attention and the mixer can both do."""
        return self.can & self.attention.able & replace(self.mixer.can, cross=True)

    @property
    def able_across(self) -> Can:
        """The attention's: the mixer does not see the other sequence."""
        return self.attention.able_across

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether either keeps state."""
        return self.attention.stateful or holds_state(self.mixer)

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """That of each."""
        inner = self.attention.init_state(batch, max_len, like, heads, dim_key, dim_value)
        return {"attention": inner, "mixer": self.mixer.init_state(batch, max_len, {})}

    def own_state(self, batch: int, max_len: int) -> State:
        """The mixer's, and what the attention keeps beside."""
        mixer = self.mixer.init_state(batch, max_len, {}) if holds_state(self.mixer) else {}
        return {"attention": self.attention.own_state(batch, max_len), "mixer": mixer}
