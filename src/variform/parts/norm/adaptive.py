"""Norms whose gain is read off a condition."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT
from variform.core.part import use
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.kinds import Norm
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("adaptive")
class AdaptiveNorm(Norm):
    """A norm with a gain that a condition sets (DiT, Peebles and Xie 2022, arXiv:2212.09748): y = norm(x) (1 + W c).

    W starts at zero, so that the condition has no effect at first.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]; condition: [B, dim_condition], or [B, L, dim_condition] for each token its own

    Args:
        dim: size of the last dimension.
        dim_condition: features of the condition.
        norm: what normalises; its own gain is better left out.

    Raises:
        ShapeError: there is no condition, or it does not fit.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"condition"})

    def __init__(
        self,
        dim: Size = INHERIT,
        dim_condition: Size = INHERIT,
        norm: Norm = use("layer_norm", gain=False, bias=False),
    ) -> None:
        super().__init__()
        self.norm = norm
        self.gain = Linear(dim_condition, dim, bias=False, std=0.0)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalise, then scale by what the condition says."""
        return self.norm(x) * (self.gain(by_token(condition, x, self.gain.in_features, "an adaptive norm")) + 1)


def by_token(condition: Tensor | None, x: Tensor, dim: int, owner: str) -> Tensor:
    """A condition with an axis for the tokens of `x`, [B, 1, C] or [B, L, C].

    Raises:
        ShapeError: there is none, or it does not fit.
    """
    if condition is None:
        raise ShapeError(f"{owner} needs the stream 'condition', [batch, {dim}]: pass condition=... to the model")
    whole = condition.unsqueeze(1) if condition.dim() == 2 else condition
    if x.dim() != 3 or whole.dim() != 3 or whole.shape[2] != dim or whole.shape[1] not in (1, x.shape[1]):
        wanted = f"[{x.shape[0]}, {dim}] or [{x.shape[0]}, {x.shape[1]}, {dim}]"
        raise ShapeError(f"the condition is of shape {wanted}, not {list(condition.shape)}")
    return whole
