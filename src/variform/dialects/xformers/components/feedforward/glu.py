"""The gated family (Shazeer 2020, arXiv:2002.05202), which upstream did not offer here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.feedforward.base import Feedforward
from variform.dialects.xformers.components.feedforward.registry import FEEDFORWARD_REGISTRY, register_feedforward
from variform.parts.activation import Activation as NativeName
from variform.parts.feedforward.mlp import GLU

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]


@dataclass
class GatedMlpConfig:
    """The configuration of the gated feedforwards; their name says the activation."""

    name: str
    dim_model: int
    dropout: float | None = None
    hidden_layer_multiplier: int | None = None
    bias: bool | None = None


class Gated(Feedforward):
    """W3 drop(act(W1 x) * (W2 x)), position by position.

    Args:
        dim_model: features in and out.
        dropout: probability of zeroing an inner feature, in training.
        hidden_layer_multiplier: sets the inner features, 2 / 3 of this multiple of `dim_model`: as many weights as an
            `MLP` of this multiplier has.
        bias: learn offsets.
        **superset: keys of other feedforwards, listed in `dropped`.
    """

    act: ClassVar[NativeName]

    def __init__(
        self,
        dim_model: Size,
        dropout: Rate = 0.0,
        hidden_layer_multiplier: Size = 4,
        bias: bool = True,
        **superset: Any,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in locals().items() if name not in ("self", "superset", "__class__")}
        verify(Gated, **given)
        self.dropped = superset_keys(FEEDFORWARD_REGISTRY, superset, "SwiGLU")
        self.gated: GLU = build(
            GLU.spec(
                dim=dim_model,
                hidden=max(1, 2 * hidden_layer_multiplier * dim_model // 3),
                activation=self.act,
                bias=bias,
                dropout=dropout,
            )
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Transform each token."""
        return self.gated(inputs, {})  # type: ignore[return-value]

    @property
    def spec(self) -> Spec:
        """The native feedforward."""
        return self.gated.spec


@register_feedforward("SwiGLU", GatedMlpConfig)
class SwiGLU(Gated):
    """Gated by SiLU."""

    act = "silu"


@register_feedforward("GEGLU", GatedMlpConfig)
class GEGLU(Gated):
    """Gated by GELU."""

    act = "gelu"


@register_feedforward("ReGLU", GatedMlpConfig)
class ReGLU(Gated):
    """Gated by ReLU."""

    act = "relu"


@register_feedforward("SiGLU", GatedMlpConfig)
class SiGLU(Gated):
    """Gated by the logistic function: the first of the family (Dauphin et al. 2016, arXiv:1612.08083)."""

    act = "sigmoid"


@register_feedforward("Bilinear", GatedMlpConfig)
class Bilinear(Gated):
    """The product of two linear maps."""

    act = "none"
