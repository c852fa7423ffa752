"""The two-layer feedforward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from variform.core.spec import Spec
from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.activations import Activation, build_activation, native_name
from variform.dialects.xformers.components.feedforward.base import Feedforward, FeedforwardConfig
from variform.dialects.xformers.components.feedforward.registry import FEEDFORWARD_REGISTRY, register_feedforward
from variform.dialects.xformers.errors import Wrong, config_error
from variform.parts.feedforward.mlp import MLP as NativeMLP

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]


@dataclass
class MlpConfig(FeedforwardConfig):
    """The configuration of `MLP`."""

    hidden_layer_multiplier: int
    bias: bool | None = None


@register_feedforward("MLP", MlpConfig)
class MLP(Feedforward):
    """drop(W2 drop(act(W1 x + b1)) + b2), position by position (Vaswani et al. 2017, arXiv:1706.03762).

    Args:
        dim_model: features in and out.
        dropout: probability of zeroing an inner or an output feature, in training.
        activation: act, by name; None for none.
        hidden_layer_multiplier: inner features as a multiple of `dim_model`.
        bias: learn b1 and b2.
        **superset: keys of other feedforwards, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "mlp"

    def __init__(
        self,
        dim_model: Size,
        dropout: Rate,
        activation: Activation | None,
        hidden_layer_multiplier: Size,
        bias: bool = True,
        **superset: Any,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in locals().items() if name not in ("self", "superset", "__class__")}
        verify(MLP, **given)
        self.dropped = superset_keys(FEEDFORWARD_REGISTRY, superset, "MLP")
        hidden = hidden_layer_multiplier * dim_model
        self.mlp = nn.Sequential(
            nn.Linear(dim_model, hidden, bias),
            build_activation(activation),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim_model, bias),
            nn.Dropout(dropout),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Transform each token."""
        return self.mlp(inputs)  # type: ignore[no-any-return]

    @property
    def spec(self) -> Spec:
        """The native feedforward; the dropout of its output belongs to the sublayer around it.

        Raises:
            ConfigError: its modules were replaced by others.
        """
        up, act, inner, down, _ = self.mlp
        name = native_name(act)
        if name is None or not isinstance(up, nn.Linear) or not isinstance(down, nn.Linear):
            raise config_error([Wrong("", "this MLP holds modules without a native equivalent")])
        assert isinstance(inner, nn.Dropout)
        return NativeMLP.spec(
            dim=up.in_features, hidden=up.out_features, activation=name, bias=up.bias is not None, dropout=inner.p
        )

    @property
    def output_dropout(self) -> float:
        """The dropout rate of its output."""
        last = self.mlp[4]
        assert isinstance(last, nn.Dropout)
        return last.p
