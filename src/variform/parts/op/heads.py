"""Steps of multi-head attention: split and merge heads, scores, offsets."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from variform.core.dims import Shape, shape_text
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.attention.kv_cache import write
from variform.parts.flows import Flow, merged
from variform.parts.kinds import Op, State, Streams
from variform.parts.op.chunks import scores_flow
from variform.parts.op.common import FEATURES, HEADS, MASKS, SCORES, STEPWISE, divided, ranked, split
from variform.parts.op.pending import PendingScores, trimmed
from variform.parts.op.weighted_sum import WeightedSum

__all__ = ["MergeHeads", "Offset", "Scores", "SplitHeads", "WeightedSum"]

Size = Annotated[int, Field(gt=0)]


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
