"""Score modifiers that depend on what the tokens hold, and on other scores."""

from variform.ops.learned_scores.changing import Changing
from variform.ops.learned_scores.content import ContextualBias, DistanceCurves, Suppression
from variform.ops.learned_scores.forgetting import ForgetBias, ForgetRows, ForgetSeen, at_or_before, from_the_right
from variform.ops.learned_scores.given import AddedScores, ObservedScores
from variform.ops.learned_scores.heads import TalkingScores, mixed_heads, square

__all__ = [
    "AddedScores",
    "Changing",
    "ContextualBias",
    "DistanceCurves",
    "ForgetBias",
    "ForgetRows",
    "ForgetSeen",
    "ObservedScores",
    "Suppression",
    "TalkingScores",
    "at_or_before",
    "from_the_right",
    "mixed_heads",
    "square",
]
