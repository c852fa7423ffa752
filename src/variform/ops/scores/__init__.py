"""Score modifiers: what is done to scaled attention scores before the mask and the softmax."""

from variform.ops.scores.base import Additive, Behind, ScoreFunction, ScoreMod, by_row, position_at
from variform.ops.scores.given import DenseBias, SoftCap
from variform.ops.scores.relative import Alibi, BucketBias, GridBias, alibi_slopes, relative_positions, t5_bucket

__all__ = [
    "Additive",
    "Alibi",
    "Behind",
    "BucketBias",
    "DenseBias",
    "GridBias",
    "ScoreFunction",
    "ScoreMod",
    "SoftCap",
    "alibi_slopes",
    "by_row",
    "position_at",
    "relative_positions",
    "t5_bucket",
]
