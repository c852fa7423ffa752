"""What changes the scores of an attention, and how they become weights."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from variform.core.part import Facts, Part
from variform.ops.scores import ScoreMod
from variform.ops.weightings import Normaliser
from variform.parts.kinds.attention import Sides


class Bias(Part):
    """A position-dependent change of attention scores: `forward() -> ScoreMod`."""

    kind: ClassVar[str] = "bias"
    follows: ClassVar[frozenset[str]] = frozenset({"heads"})

    @abstractmethod
    def forward(self) -> ScoreMod:
        """The score modifier with the current parameters."""

    if TYPE_CHECKING:

        def __call__(self) -> ScoreMod: ...


class Scoring(Part):
    """A change of attention scores, which may go by queries, keys and tokens: `forward(q, k, sides, kept) -> ScoreMod`.

    Class attributes:
        first: whether it comes before position biases, on the products of queries and keys.
        positioned: whether it goes by positions.
        accumulates: whether queries change what later queries see, and it keeps the sum while decoding.
    """

    kind: ClassVar[str] = "scoring"
    follows: ClassVar[frozenset[str]] = frozenset({"heads", "dim", "dim_head"})
    first: ClassVar[bool] = False
    positioned: ClassVar[bool] = False
    accumulates: ClassVar[bool] = False

    @property
    def kept_size(self) -> int:
        """How many numbers of each token are kept beside its keys, of all query heads together."""
        return 0

    def keep(self, sides: Sides) -> Tensor | None:
        """What is to be known of the new tokens as keys: [B, H, L, kept_size / H]; None where nothing is."""
        return None

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, sides: Sides, kept: Tensor | None) -> ScoreMod:
        """The score modifier of a call.

        Args:
            q: [B, H, Lq, D].
            k: [B, Hk, Lk, D], those cached before included.
            sides: of the call, with positions and padding of all keys.
            kept: what `keep` answered for all keys, [B, H, Lk, kept_size / H]; of an accumulating part the sum so far.
        """

    if TYPE_CHECKING:

        def __call__(self, q: Tensor, k: Tensor, sides: Sides, kept: Tensor | None) -> ScoreMod: ...


class Weighting(Part):
    """How the scores of a row become weights, in the place of a softmax: `forward(sides) -> Normaliser`.

    Class attributes:
        mixes_queries: whether a query's weights depend on other queries, so that nothing of it is causal.
    """

    kind: ClassVar[str] = "weighting"
    follows: ClassVar[frozenset[str]] = frozenset({"heads"})
    mixes_queries: ClassVar[bool] = False

    @abstractmethod
    def forward(self, sides: Sides) -> Normaliser:
        """The normaliser with the current parameters."""

    @classmethod
    def queries_mixed(cls, args: Facts) -> bool:
        """`mixes_queries` with these arguments."""
        return cls.mixes_queries

    if TYPE_CHECKING:

        def __call__(self, sides: Sides) -> Normaliser: ...
