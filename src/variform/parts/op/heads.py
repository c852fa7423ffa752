"""Steps of multi-head attention: split and merge heads, scores, offsets, the weighted sum."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from variform.core.dims import Dim, Shape, shape_text
from variform.core.inherit import inherit
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import ShapeError, nearest_divisors
from variform.parts.attention.kv_cache import write
from variform.parts.flows import MASKED, Flow, merged
from variform.parts.kinds import Norm, Op, State, Streams
from variform.parts.op.chunks import hidden_keys, lowered, scores_flow, sum_flow, without
from variform.parts.op.pending import PendingScores, trimmed

Size = Annotated[int, Field(gt=0)]
FEATURES, HEADS, MASKS = frozenset({"features"}), frozenset({"heads"}), frozenset({"mask", "scores"})
SCORES = frozenset({"scores"})

NO_STREAMS = Can(key_padding=False, attention_mask=False, packed=False, decode=False)
"""What a step that mixes rows of the sequence can do: it knows nothing of padding, masks or documents."""

STEPWISE = Can(key_padding=False, attention_mask=False, packed=False)
"""The same of a step that decodes."""


@register("split_heads")
class SplitHeads(Op):
    """Cuts the features into heads.

    Shapes:
        x: [B, L, H * D] -> [B, H, L, D]

    Args:
        heads: H.
    """

    accepts: ClassVar[tuple[frozenset[str], ...]] = (FEATURES,)

    def __init__(self, heads: Size = 1) -> None:
        super().__init__()
        self.heads = heads

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The features are divided."""
        batch, length, dim = ranked("splitting heads", inputs[0], "[B, L, dim]")
        return ((batch, args["heads"], length, divided(dim, args["heads"])),)

    @classmethod
    def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
        """Heads."""
        return ("heads",)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Split."""
        return split(inputs[0], self.heads)


@register("merge_heads")
class MergeHeads(Op):
    """Puts the heads' features side by side.

    Shapes:
        x: [B, H, L, D] -> [B, L, H * D]
    """

    accepts: ClassVar[tuple[frozenset[str], ...]] = (HEADS,)

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The features are multiplied."""
        batch, heads, length, dim = ranked("merging heads", inputs[0], "[B, H, L, D]")
        return ((batch, length, heads * dim),)

    @classmethod
    def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
        """Features."""
        return ("features",)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Merge."""
        return inputs[0].transpose(1, 2).flatten(-2)


@register("scores")
class Scores(Op):
    """Scaled dot products: S_ij = q_i . k_j / sqrt(D) (Vaswani et al. 2017, arXiv:1706.03762).

    Shapes:
        q: [B, H, Lq, D]
        k: [B, H, Lk, D] -> [B, H, Lq, Lk]
    """

    arity: ClassVar[int] = 2
    accepts: ClassVar[tuple[frozenset[str], ...]] = (HEADS, HEADS)
    stateful: ClassVar[bool] = True
    can: ClassVar[Can] = STEPWISE

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """Heads and their features must be equal."""
        q = ranked("attention", inputs[0], "queries of [B, H, Lq, D]")
        k = ranked("attention", inputs[1], "keys of [B, H, Lk, D]")
        for what, place in (("batch sizes", 0), ("number of heads", 1), ("features of a head", 3)):
            if q[place] != k[place]:
                raise ShapeError(f"queries and keys need equal {what}, and {q[place]} is not {k[place]}")
        return ((*q[:3], k[2]),)

    @classmethod
    def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
        """Scores."""
        return ("scores",)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compare every query with every key."""
        return self.pending(*inputs).computed()

    def pending(self, *inputs: Tensor) -> PendingScores:
        """The same, not computed yet."""
        q, k = inputs
        return PendingScores(q, k, float(q.shape[-1] ** -0.5))

    def flow(self, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
        """Scores of a chunk's queries and all keys so far."""
        return scores_flow(inputs, outputs)

    def init_state(self, batch: int, max_len: int, like: Tensor, inputs: tuple[Flow, ...]) -> State | None:
        """A buffer for keys; none for those of another sequence."""
        if inputs[1].held:
            return None
        heads, dim = inputs[1].sizes(1, 3)
        return {"k": like.new_zeros(batch, heads, max_len + 1, dim)}

    def step(self, inputs: tuple[Tensor, ...], state: State, streams: Streams) -> tuple[tuple[Tensor, ...], State]:
        """Compare the new queries with every key so far."""
        q, k = inputs
        keys = write(state["k"], k, streams["cache"])
        return (self(q, keys[:, :, : streams["cache"]["length"]]),), {"k": keys}


@register("offset")
class Offset(Op):
    """Adds an offset to attention scores: S + O, or b S + O with a learned b.

    The offset may be longer than the scores, and is trimmed; its batch size may be 1.

    Shapes:
        scores: [B, H, Lq, Lk]
        offset: [1 or B, H, >= Lq, >= Lk] -> [B, H, Lq, Lk]

    Args:
        scaled: learn b, which starts at 1.
    """

    arity: ClassVar[int] = 2
    spare: ClassVar[tuple[int, ...]] = (1,)
    accepts: ClassVar[tuple[frozenset[str], ...]] = (SCORES, MASKS)
    pairwise: ClassVar[bool] = True
    can: ClassVar[Can] = STEPWISE

    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.empty(1)) if scaled else None
        self.reset_parameters()

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """Heads must be equal; lengths that are numbers must suffice."""
        scores = ranked("an offset", inputs[0], "scores of [B, H, Lq, Lk]")
        offset = ranked("an offset", inputs[1], "an offset of [B, H, Lq, Lk]")
        if offset[1] != scores[1]:
            raise ShapeError(f"the offset is for {offset[1]} heads, the scores have {scores[1]}")
        if offset[0] not in (1, scores[0]):
            raise ShapeError(f"the offset's batch size must be 1 or that of the scores, {scores[0]}, not {offset[0]}")
        for have, need in zip(offset[2:], scores[2:], strict=True):
            lack = need - have
            if isinstance(lack, int) and lack > 0:
                raise ShapeError(f"the offset covers {have} positions, and {need} are needed")
        return (scores,)

    @classmethod
    def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
        """Scores."""
        return ("scores",)

    def reset_parameters(self) -> None:
        """No scaling."""
        if self.scale is not None:
            torch.nn.init.ones_(self.scale)

    def forward(self, *inputs: Any) -> Any:
        """Trim the offset and add it, to scores that are there or pending."""
        scores, offset = inputs
        if isinstance(scores, PendingScores):
            return scores.trim_and_add(offset, self.scale)
        return (scores if self.scale is None else self.scale * scores) + trimmed(offset, scores.shape)

    def flow(self, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
        """The offset must be one of tokens, so that a chunk gets its own rows and columns."""
        scores, offset = inputs
        if not (scores.pairs and offset.pairs):
            raise ShapeError(
                f"the offset {shape_text(offset.shape)} of scores {shape_text(scores.shape)} cannot be cut for a "
                f"chunk: the last two sizes of both must be the tokens' length, {scores.length!r}"
            )
        return merged(self, "add", inputs, outputs)


@register("weighted_sum")
class WeightedSum(Op):
    """y = f(S) v: attention from scores that were computed before.

    With `causal`, scores of later keys do not count. Under tanh a score that a mask has pushed down (at or below
    -1e30, half the lowest number of a narrower type) weighs 0, not -1.

    Shapes:
        v: [B, Lk, H * Dv] -> [B, Lq, H * Dv], heads split and merged here; or [B, H, Lk, Dv] -> [B, H, Lq, Dv]
        scores: [B, H, Lq, Lk]; the weights f(S), of this shape, are a second output if asked for

    Args:
        function: f: "softmax" over the keys, "relu" or "tanh"; "none" for scores that are weights already, those of
            an earlier sum (LazyFormer, Ying et al. 2021, arXiv:2102.12702).
        norm: on each head's values.
        weights: give f(S) back as well.
        causal: position i sees positions <= i only.
    """

    arity: ClassVar[int] = 2
    stateful: ClassVar[bool] = True
    can: ClassVar[Can] = STEPWISE
    accepts: ClassVar[tuple[frozenset[str], ...]] = (FEATURES | HEADS, SCORES)

    def __init__(
        self,
        function: Literal["softmax", "relu", "tanh", "none"] = "softmax",
        norm: Norm | None = None,
        weights: bool = False,
        causal: bool = inherit(False),
    ) -> None:
        super().__init__()
        self.function = function
        self.norm = norm
        self.weights = weights
        self.causal = causal

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The norm works on one head's values."""
        shapes = facts.get("read_shapes", ())
        if len(shapes) == 2 and len(shapes[0]) == 3 and len(shapes[1]) == 4:
            features, heads = shapes[0][-1], shapes[1][1]
            if isinstance(features, int) and isinstance(heads, int) and features % heads == 0:
                return {"dim": features // heads}
        return {}

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """Values and scores must agree on batch, heads and keys."""
        v, scores = inputs[0], ranked("a weighted sum", inputs[1], "scores of [B, H, Lq, Lk]")
        batch, heads, queries, keys = scores
        if len(v) not in (3, 4):
            raise ShapeError(f"values are [B, Lk, dim] or [B, H, Lk, D], not {shape_text(v)}")
        flat = len(v) == 3
        if flat:
            divided(v[-1], heads)
        elif v[1] != heads:
            raise ShapeError(f"the values have {v[1]} heads, the scores {heads}")
        if v[0] != batch:
            raise ShapeError(f"values and scores need equal batch sizes, and {v[0]} is not {batch}")
        if v[-2] != keys:
            raise ShapeError(f"there are {v[-2]} values, and scores for {keys} keys")
        if args["causal"] and queries != keys:
            raise ShapeError(f"causal needs as many queries as keys, and {queries} is not {keys}")
        out: Shape = (batch, queries, v[-1]) if flat else (batch, heads, queries, v[-1])
        return (out, scores) if args["weights"] else (out,)

    @classmethod
    def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
        """What the values are, features or heads, and scores."""
        return (contents[0], "scores") if args["weights"] else (contents[0],)

    def forward(self, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        """Weigh the values, by scores that are there or pending."""
        v, scores = inputs
        if isinstance(scores, PendingScores):
            y = scores.weigh(self._heads(v, scores), self.causal)
            return y.transpose(1, 2).flatten(-2) if v.dim() == 3 else y
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, 0.0 if self.function == "none" else -torch.inf)
        out = self._sum(self._weights(scores), self._heads(v, scores), v.dim() == 3)
        return out if self.weights else out[0]

    def flow(self, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
        """Later keys must be hidden, by this op or by the scores."""
        return sum_flow(self, inputs, outputs, self.causal, _ENOUGH[self.function])

    def init_state(self, batch: int, max_len: int, like: Tensor, inputs: tuple[Flow, ...]) -> State | None:
        """A buffer for the heads' values; none for those of another sequence."""
        v, scores = inputs
        if not scores.pairs:
            return None
        (dim,), (heads,) = v.sizes(-1), scores.sizes(1)
        return {"v": like.new_zeros(batch, heads, max_len + 1, dim // heads if len(v.shape) == 3 else dim)}

    def step(self, inputs: tuple[Tensor, ...], state: State, streams: Streams) -> tuple[tuple[Tensor, ...], State]:
        """Weigh every value so far."""
        v, scores = inputs
        cache = streams["cache"]
        values = write(state["v"], self._heads(v, scores), cache)
        hidden = hidden_keys(streams, scores.shape[2], self.causal)
        weights = without(self._weights(lowered(scores, hidden)), hidden)
        return self._sum(weights, values[:, :, : cache["length"]], v.dim() == 3), {"v": values}

    def _heads(self, v: Tensor, scores: Tensor | PendingScores) -> Tensor:
        if v.dim() == 3:
            v = split(v, scores.shape[1])
        return v if self.norm is None else self.norm(v)

    def _sum(self, weights: Tensor, v: Tensor, flat: bool) -> tuple[Tensor, ...]:
        y = weights @ v
        if flat:
            y = y.transpose(1, 2).flatten(-2)
        return (y, weights) if self.weights else (y,)

    def _weights(self, scores: Tensor) -> Tensor:
        if self.function == "softmax":
            return scores.softmax(-1)
        if self.function == "relu":
            return scores.relu()
        if self.function == "none":
            return scores
        lowest = torch.finfo(scores.dtype).min
        return scores.tanh().masked_fill(scores <= max(-1e30, lowest / 2), 0.0)


_ENOUGH = {"softmax": MASKED, "relu": MASKED, "tanh": -1e30, "none": None}
"""How low a score must be for the key to weigh nothing; None where only a weight of 0 does it."""


def split(x: Tensor, heads: int) -> Tensor:
    """[B, L, H * D] -> [B, H, L, D]."""
    batch, length, dim = x.shape
    return x.view(batch, length, heads, dim // heads).transpose(1, 2)


def ranked(what: str, shape: Shape, form: str) -> Shape:
    """Refuse a shape of another rank than `form`, which is written "[B, H, L, D]" with or without words before it."""
    if len(shape) != form.count(",") + 1:
        raise ShapeError(f"{what} takes {form}, not {shape_text(shape)}")
    return shape


def divided(dim: int | Dim, heads: int | Dim, what: str = "heads") -> int | Dim:
    """The features of one head, or of another piece."""
    if not isinstance(dim, int) or not isinstance(heads, int):
        raise ShapeError(f"features and {what} must be numbers to divide them, not {dim} and {heads}")
    if dim % heads:
        raise ShapeError(f"{heads} {what} do not divide {dim} features; {nearest_divisors(dim, heads)}")
    return dim // heads
