"""Residual paths and norms around a sublayer, in the styles upstream had."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

from torch import Tensor, nn

from variform.dialects.xformers.building import verify


class ResidualNormStyle(StrEnum):
    """Where the norm stands: before the sublayer, after the sum, or after a sum with a scaled stream (DeepNorm)."""

    Pre = "pre"
    Post = "post"
    DeepNorm = "deepnorm"


class NormalizationType(StrEnum):
    """Which norm; `skip` is none."""

    LayerNorm = "layernorm"
    Skip = "skip"


class Skip(nn.Module):
    """No norm."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """The input."""
        return x


def get_normalization_layer(normalization_type: NormalizationType) -> type[nn.Module]:
    """The class of a norm; it takes the number of features."""
    return {NormalizationType.LayerNorm: nn.LayerNorm, NormalizationType.Skip: Skip}[normalization_type]


class RequiresWrappedInputs:
    """Marks modules that take all their tensors as one list, `inputs`."""


class Residual(nn.Module, RequiresWrappedInputs):
    """x * scale + layer(x, ...), for inputs [x, ...].

    Args:
        layer: the branch.
        scale: factor on the stream; None for 1.
    """

    def __init__(self, layer: nn.Module, scale: float | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.scale = scale

    def forward(self, inputs: list[Tensor], **kwargs: Any) -> Tensor:
        """Add the branch to the stream."""
        stream = inputs[0] if self.scale is None else inputs[0] * self.scale
        return stream + _call(self.layer, inputs, kwargs)

    def extra_repr(self) -> str:
        """The scale."""
        return "" if self.scale is None else f"scale={self.scale:.6g}"


class Branch(nn.Module, RequiresWrappedInputs):
    """branch(x, ...): stands where a `Residual` would, for reversible layers, which form the sums themselves.

    Args:
        branch: what runs.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, inputs: list[Tensor], **kwargs: Any) -> Tensor:
        """Run it."""
        return _call(self.branch, inputs, kwargs)


class _Normed(nn.Module, RequiresWrappedInputs):
    """A sublayer with a norm; see `PreNorm` and `PostNorm`.

    Args:
        d_norm: features.
        sublayer: what runs.
        normalization: which norm.
        use_triton: changes nothing; kernels are chosen by the library.
    """

    def __init__(
        self,
        d_norm: int,
        sublayer: nn.Module,
        normalization: NormalizationType = NormalizationType.LayerNorm,
        use_triton: bool = True,
    ) -> None:
        super().__init__()
        given = {"d_norm": d_norm, "sublayer": sublayer, "normalization": normalization, "use_triton": use_triton}
        verify(_Normed, **given)
        self.norm = get_normalization_layer(NormalizationType(normalization))(d_norm)
        self.sublayer = sublayer


class PreNorm(_Normed):
    """sublayer(norm(x), ...); all inputs are normed, one that is passed several times only once."""

    def forward(self, inputs: list[Tensor], **kwargs: Any) -> Tensor:
        """Norm, then run."""
        normed: list[Tensor] = []
        for x in inputs:
            known = next((y for y, before in zip(normed, inputs, strict=False) if before is x), None)
            normed.append(self.norm(x) if known is None else known)
        return _call(self.sublayer, normed, kwargs)


class PostNorm(_Normed):
    """norm(sublayer(x, ...))."""

    def forward(self, inputs: list[Tensor], **kwargs: Any) -> Tensor:
        """Run, then norm."""
        return self.norm(_call(self.sublayer, inputs, kwargs))  # type: ignore[no-any-return]


class DeepNormCoefficients(NamedTuple):
    """DeepNorm's constants: the factor alpha on the stream, the gain beta of the initial weights."""

    alpha: float
    beta: float


def get_deepnorm_coefficients(
    encoder_layers: int, decoder_layers: int
) -> tuple[DeepNormCoefficients | None, DeepNormCoefficients | None]:
    """DeepNorm's constants for (encoder, decoder) of these depths (Wang et al. 2022, arXiv:2203.00555, table 1)."""
    n, m = encoder_layers, decoder_layers
    if m == 0:
        return DeepNormCoefficients((2 * n) ** 0.25, (8 * n) ** -0.25), None
    if n == 0:
        return None, DeepNormCoefficients((2 * m) ** 0.25, (8 * m) ** -0.25)
    both = (n**4 * m) ** (1 / 16)
    return (
        DeepNormCoefficients(0.81 * both, 0.87 / both),
        DeepNormCoefficients((3 * m) ** 0.25, (12 * m) ** -0.25),
    )


def _call(layer: nn.Module, inputs: list[Tensor], kwargs: dict[str, Any]) -> Tensor:
    wrapped = isinstance(layer, RequiresWrappedInputs)
    return layer(inputs=inputs, **kwargs) if wrapped else layer(*inputs, **kwargs)  # type: ignore[no-any-return]
