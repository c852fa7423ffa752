"""Multi-head attention whose maps into and out of the heads are slots, over the sequence itself or over a context."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT
from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.core.spec import Spec, described
from variform.errors import Problem
from variform.parts.key_values.latent import LatentKeyValues
from variform.parts.kinds import (
    Attention,
    Bias,
    KeyValues,
    Mixer,
    Norm,
    Output,
    Projection,
    Rotation,
    State,
    Streams,
)
from variform.parts.mixer.deltas import changed_keys, changed_query
from variform.parts.mixer.further import keys_beside, with_added
from variform.parts.mixer.latents import attend_latents
from variform.parts.mixer.multi_head import (
    bias_problems,
    head_facts,
    head_problems,
    join_heads,
    key_size,
    keys_input,
    own_sides,
    self_problems,
    slot_abilities,
    slot_problems,
    split_heads,
    value_times,
    without_padding,
)

Size = Annotated[int, Field(gt=0)]


@register("projected_attention")
class ProjectedAttention(Mixer):
    """Multi-head self-attention with any maps into and out of the heads.

    y = output(concat_h attention_h(query(x), keys(x))). With `keys: latent` it is multi-head latent attention
    (DeepSeek-V2, arXiv:2405.04434): decoding keeps the latent, and few queries are multiplied with it as it is; an
    attention that has to keep something of each key itself (`local`, scores by what tokens are) keeps keys and values.
    With the plain maps by default it is `multi_head`, which is faster to read.

    Shapes:
        x: [B, L, dim] -> [B, L, dim], or as many features as the output map says, outside of residual steps

    Args:
        dim: features in, and out.
        heads: number of query heads.
        dim_head: features of a query and key; dim / heads by default.
        kv_heads: number of key and value heads, a divisor of `heads`; as many as `heads` by default.
        keys: how keys and values are made, and what of them decoding keeps; its `dim_value` are the features of a
            value, as many as `dim_head` by default.
        query: the map to the heads' queries.
        output: the map from the heads' values; its `outputs` are the features out, `dim` by default.
        attention: what happens between the heads' q, k and v.
        rotation: position code that rotates q and k.
        position_bias: position code that biases the scores.
        q_norm: a norm on each head's q.
        k_norm: a norm on each head's k.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"positions", "valid", "segments", "mask", "bias", "beside"})
    takes_views: ClassVar[bool] = True

    def __init__(
        self,
        dim: Size = INHERIT,
        heads: Size = INHERIT,
        dim_head: Size | None = None,
        kv_heads: Size | None = None,
        keys: KeyValues = use("linear"),
        query: Projection = use("linear"),
        output: Projection = use("linear"),
        attention: Attention = use("softmax"),
        rotation: Rotation | None = None,
        position_bias: Bias | None = None,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads or heads
        self.dim_head = dim_head or dim // heads
        self.dim_value = keys.dim_value
        self.keys = keys
        self.query = query
        self.output = output
        self.attention = attention
        self.rotation = rotation
        self.position_bias = position_bias
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
        """The sizes of the maps, and those of a head for all but a rotation, to which the keys say what is rotated."""
        return {} if slot == "rotation" else slot_facts(slot, facts, facts["dim"])

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Heads must divide what they split, and a bias needs scores."""
        return projected_problems(facts) + self_problems(facts["attention"]) + bias_problems(facts)

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What the attention can do."""
        return slot_abilities(args)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Attend over `x` itself."""
        watch = streams.get("watch")
        if watch is not None:
            watch.enters(self, x, streams)
        valid = streams.get("valid")
        x = without_padding(x, valid)
        of_k, of_v = keys_input(x, streams)
        of_k, of_v = with_added(self, of_k, streams), with_added(self, of_v, streams)
        q = split_heads(changed_query(self.query(x), self.attention, streams), self.heads)
        q = q if self.q_norm is None else self.q_norm(q)
        sides = own_sides(self.attention, self.position_bias, x, streams)
        if streams.get("beside") is not None:
            sides.beside = keys_beside(self, self.attention, streams)
        first, second = changed_keys(self.keys, self.keys(of_k, of_v), streams)
        out: Tensor | tuple[Tensor, State]
        if isinstance(self.keys, LatentKeyValues):
            made = q, first, second
            out = attend_latents(self.keys, self.attention, self.rotation, self.k_norm, made, sides)
        else:
            k = first if self.k_norm is None else self.k_norm(first)
            if self.rotation is not None:
                q, k = self.rotation(q, k, sides.q_positions, sides.k_positions)
            out = self.attention(q, k, second, sides)
        joined, state = out if isinstance(out, tuple) else (out, None)
        y = self.output(join_heads(joined))
        if state is None:
            return (y, sides.published) if sides.published else y
        return y, {**sides.published, "state": state}

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """Buffers for latents and own keys, or the attention's own state."""
        keys = self.keys
        if isinstance(keys, LatentKeyValues) and self.attention.takes_joined:
            return keys.init_state(batch, max_len)
        like = next(keys.parameters())
        size = self.dim_head if self.rotation is None else self.dim_head * self.rotation.widening
        return self.attention.init_state(batch, max_len, like, self.kv_heads, size, self.dim_value)

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether the attention keeps state, or latents are kept for it."""
        return self.attention.stateful


def told(facts: Facts, slot: str, name: str) -> int | None:
    """A size that the part in a slot is given; None where it is left open."""
    part = described(facts.get(slot))
    size = part.args.get(name) if isinstance(part, Spec) else None
    return size if isinstance(size, int) else None


def _sizes(facts: Facts) -> dict[str, Any]:
    """The sizes of a head, given or derived."""
    sizes = head_facts(facts)
    return {**sizes, "dim_value": told(facts, "keys", "dim_value") or sizes["dim_head"]}


def slot_facts(slot: str, facts: Facts, inputs: int) -> dict[str, Any]:
    """The sizes that the part in a slot of such a mixer sees.

    Args:
        slot: its name.
        facts: of the mixer.
        inputs: features that keys and values are made of.
    """
    sizes = _sizes(facts)
    dim, heads = facts["dim"], facts["heads"]
    own: dict[str, Any] = {
        "keys": {"inputs": inputs},
        "query": {"inputs": dim, "outputs": heads * sizes["dim_head"], "writes": None},
        "output": {
            "inputs": heads * sizes["dim_value"] * value_times(facts),
            "outputs": told(facts, "output", "outputs") or dim,
        },
        "q_norm": {"dim": sizes["dim_head"]},
        "k_norm": {"dim": sizes["dim_head"]},
        "attention": {"dim_head": key_size(facts)},
    }.get(slot, {})
    return {**sizes, **own}


def projected_problems(facts: Facts) -> list[Problem]:
    """Heads must divide what they split, and the attention must be made for such heads."""
    sizes = _sizes(facts)
    found = head_problems(facts) + slot_problems(
        facts, facts["heads"], key_size(facts), sizes["dim_value"], any_width=True
    )
    if key_size(facts) != sizes["dim_head"] and compresses(facts):
        message = "latents are multiplied as they are kept, and this rotation changes what features mean"
        found.append(Problem("rotation", message, hint="take a rotary one"))
    return found


def compresses(args: Facts) -> bool:
    """Whether keys and values are made through something smaller that decoding may keep."""
    keys = described(args.get("keys"))
    return isinstance(keys, Spec) and issubclass(keys.part, KeyValues) and keys.part.compressed
