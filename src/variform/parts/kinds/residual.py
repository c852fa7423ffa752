"""What joins a branch to the residual stream, and what the branch reads of it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from variform.core.part import Facts, Part
from variform.parts.kinds.streams import Output, State, Streams


class Residual(Part):
    """Joins a branch to the residual stream: `forward(x, branch) -> x`.

    One that reads streams (`reads`) is given them, `forward(x, branch, streams)`; one that keeps decode state returns
    `(x, {"state": ...})` where `streams["state"]` is given. See `join`.
    """

    kind: ClassVar[str] = "residual"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @classmethod
    def adds(cls, args: Facts) -> bool:
        """Whether it adds something of the branch alone to the stream as it is, as reversible layers need it."""
        return False

    @abstractmethod
    def forward(self, x: Tensor, branch: Tensor, streams: Streams | None = None) -> Output:
        """Join [B, L, dim] and [B, L, dim]."""

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """Empty decode state, of residuals that keep one."""
        raise NotImplementedError(f"{type(self).__name__} keeps no decode state")

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, branch: Tensor, streams: Streams | None = None) -> Output: ...


class MultiResidual(Residual):
    """Several residual streams a token, between layers of a `multi_stream` stack: [B, L, S, dim].

    A branch reads a mixture of them (`open`), and what it gives is written to each with a factor (`forward`).
    """

    follows: ClassVar[frozenset[str]] = frozenset({"dim", "residual_streams"})

    @classmethod
    def views(cls, args: Facts) -> int:
        """How many mixtures it hands to the branch: one, or three, for queries, keys and values apart."""
        return 1

    @abstractmethod
    def open(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """What a branch reads, [B, L, dim] each; what it joins, [B, L, S, dim]; and its factors, [B, L, S]."""

    def forward(self, x: Tensor, branch: Tensor, streams: Streams | None = None, gains: Tensor | None = None) -> Tensor:
        """Write a branch [B, L, dim] to the streams [B, L, S, dim]; without `gains`, `x` is opened first."""
        if gains is None:
            _, x, gains = self.open(x)
        return x + gains.unsqueeze(-1) * branch.unsqueeze(-2)

    if TYPE_CHECKING:

        def __call__(
            self, x: Tensor, branch: Tensor, streams: Streams | None = None, gains: Tensor | None = None
        ) -> Tensor: ...


class Entry(Part):
    """What the branch of a residual step reads: `forward(x, streams) -> (views, published)`.

    It sees the residual stream and what earlier steps published; what it returns is normed and goes to the body, and
    the stream itself stays as it is. One view is the input of the body; of three, the first is what an attention makes
    its queries of, the second and third are what it makes its keys and values of (the body finds them in the streams
    `key_input` and `value_input`, which are of that call alone).
    """

    kind: ClassVar[str] = "entry"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @classmethod
    def views(cls, args: Facts) -> int:
        """How many inputs it gives the body: 1 or 3."""
        return 1

    @abstractmethod
    def forward(self, x: Tensor, streams: Streams) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """From [B, L, dim] to one or three of that shape, and what is published."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, streams: Streams) -> tuple[tuple[Tensor, ...], dict[str, Any]]: ...
