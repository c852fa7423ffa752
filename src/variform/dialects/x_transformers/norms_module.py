"""`RMSNorm` and `AdaptiveRMSNorm` by themselves."""

from __future__ import annotations

from torch import Tensor, nn

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.x_transformers.eps import TINY
from variform.dialects.x_transformers.errors import InputError
from variform.parts.kinds import Norm
from variform.parts.norm.adaptive import AdaptiveNorm
from variform.parts.norm.norms import RMSNorm as NativeRMSNorm


class RMSNorm(nn.Module):
    """Root mean square normalisation by itself (arXiv:1910.07467): y = sqrt(dim) x / |x| * g.

    Shapes:
        x: [..., dim] -> [..., dim]

    Args:
        dim: size of the last dimension.
        unit_offset: how upstream stores the gain, less one; the function is the same.
    """

    def __init__(self, dim: int, unit_offset: bool = False) -> None:
        super().__init__()
        self.unit_offset = unit_offset
        self.native: Norm = build(NativeRMSNorm.spec(eps=TINY), dim=dim)

    @property
    def spec(self) -> Spec:
        """The full description of the norm."""
        return self.native.spec

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return self.native(x)


class AdaptiveRMSNorm(nn.Module):
    """The same with a gain that a condition sets (DiT, arXiv:2212.09748): y = sqrt(dim) x / |x| * (1 + W c).

    Shapes:
        x: [B, L, dim] -> [B, L, dim]; condition: [B, dim_condition] or [B, L, dim_condition]

    Args:
        dim: size of the last dimension.
        dim_condition: features of the condition; `dim` by default.
    """

    def __init__(self, dim: int, dim_condition: int | None = None) -> None:
        super().__init__()
        spec = AdaptiveNorm.spec(norm=NativeRMSNorm.spec(eps=TINY, gain=False))
        self.native: Norm = build(spec, dim=dim, dim_condition=dim_condition or dim)

    @property
    def spec(self) -> Spec:
        """The full description of the norm."""
        return self.native.spec

    def forward(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """Normalise by the condition.

        Raises:
            InputError: there is none.
        """
        if condition is None:
            raise InputError("an adaptive norm goes by a condition: pass condition=...")
        return self.native(x, condition)
