"""The kinds: abstract base classes, one a slot type, each with its own `forward`."""

from variform.parts.kinds.attention import Attention, Sides
from variform.parts.kinds.calls import call, join
from variform.parts.kinds.features import Gate, Nonlinearity, Norm, Position, Projection
from variform.parts.kinds.keys import KeyValues, Memory, Rotation
from variform.parts.kinds.model import Embedding, Head, Model
from variform.parts.kinds.op import CONTENTS, Op
from variform.parts.kinds.residual import Entry, MultiResidual, Residual
from variform.parts.kinds.scores import Bias, Scoring, Weighting
from variform.parts.kinds.streams import (
    FeedForward,
    Layer,
    Mixer,
    Output,
    Stack,
    State,
    StreamPart,
    Streams,
    holds_state,
    positions_of,
)

__all__ = [
    "CONTENTS",
    "Attention",
    "Bias",
    "Embedding",
    "Entry",
    "FeedForward",
    "Gate",
    "Head",
    "KeyValues",
    "Layer",
    "Memory",
    "Mixer",
    "Model",
    "MultiResidual",
    "Nonlinearity",
    "Norm",
    "Op",
    "Output",
    "Position",
    "Projection",
    "Residual",
    "Rotation",
    "Scoring",
    "Sides",
    "Stack",
    "State",
    "StreamPart",
    "Streams",
    "Weighting",
    "call",
    "holds_state",
    "join",
    "positions_of",
]
