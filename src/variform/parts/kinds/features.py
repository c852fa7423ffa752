"""Functions of features, each token for itself, and codes that are added to them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from variform.core.part import Part


class Norm(Part):
    """Normalises the last dimension: `forward(x, condition=None) -> x`."""

    kind: ClassVar[str] = "norm"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalise; `condition`, [B, dim_condition] or [B, L, dim_condition], is used by adaptive norms alone."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, condition: Tensor | None = None) -> Tensor: ...


class Nonlinearity(Part):
    """A function of features, each token for itself: `forward(x) -> x`, [..., dim] -> the same."""

    kind: ClassVar[str] = "nonlinearity"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class Gate(Part):
    """What the two branches of a gated unit pass before they are multiplied: `forward(gate, up) -> (gate, up)`.

    Shapes:
        gate, up: [..., hidden] -> the same
    """

    kind: ClassVar[str] = "gate"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @abstractmethod
    def forward(self, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Change both branches."""

    if TYPE_CHECKING:

        def __call__(self, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]: ...


class Projection(Part):
    """A map of each token's features: `forward(x) -> y`, [..., inputs] to [..., outputs]."""

    kind: ClassVar[str] = "projection"
    follows: ClassVar[frozenset[str]] = frozenset({"inputs", "outputs"})

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class Position(Part):
    """A position code that is added to the embeddings: `forward(positions, length, like) -> [.., L, dim]`."""

    kind: ClassVar[str] = "position"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @abstractmethod
    def forward(self, positions: Tensor | None, length: int, like: Tensor) -> Tensor:
        """The codes of `positions` ([L] or [B, L]; None means 0..length-1), in the dtype of `like`."""

    if TYPE_CHECKING:

        def __call__(self, positions: Tensor | None, length: int, like: Tensor) -> Tensor: ...
