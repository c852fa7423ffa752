"""A feedforward that looks at the neighbours on a square."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from variform.core.spec import Spec
from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.activations import Activation, build_activation, native_name
from variform.dialects.xformers.components.feedforward.base import Feedforward, FeedforwardConfig
from variform.dialects.xformers.components.feedforward.registry import FEEDFORWARD_REGISTRY, register_feedforward
from variform.dialects.xformers.errors import CallError, Wrong, config_error
from variform.parts.feedforward.conv2d import Conv2D
from variform.parts.grid import from_grid, to_grid

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]


@dataclass
class ConvMlpConfig(FeedforwardConfig):
    """The configuration of `Conv2DFeedforward`."""

    hidden_layer_multiplier: int
    dim_model: int
    dim_model_out: int | None = None
    act_layer: Activation | None = None
    dropout: float


@register_feedforward("Conv2DFeedforward", ConvMlpConfig)
class Conv2DFeedforward(Feedforward):
    """drop(W2 act(D3 * (W1 x))), D3 a depthwise convolution of 3 x 3 (PVTv2, arXiv:2106.13797; VAN, arXiv:2202.09741).

    Shapes:
        inputs: [B, S, dim_model] with a square S -> [B, S, dim_model_out]

    Args:
        dim_model: features in.
        hidden_layer_multiplier: inner features as a multiple of `dim_model`.
        dim_model_out: features out; `dim_model` by default.
        activation: act, by name.
        dropout: probability of zeroing an output feature, in training.
        act_layer: another name of `activation`.
        **superset: keys of other feedforwards, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "conv2d"
    causal = False

    def __init__(
        self,
        dim_model: Size,
        hidden_layer_multiplier: Size = 1,
        dim_model_out: Size | None = None,
        activation: Activation | None = None,
        dropout: Rate = 0.0,
        act_layer: Activation | None = None,
        **superset: Any,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in locals().items() if name not in ("self", "superset", "__class__")}
        verify(Conv2DFeedforward, **given)
        if activation is not None and act_layer is not None and Activation(activation) != Activation(act_layer):
            message = "is another name of activation: give one of them"
            raise config_error([Wrong("act_layer", message, act_layer)])
        self.dropped = superset_keys(FEEDFORWARD_REGISTRY, superset, "Conv2DFeedforward")
        hidden = hidden_layer_multiplier * dim_model
        self.conv_mlp = nn.Sequential(
            nn.Conv2d(dim_model, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            build_activation(activation or act_layer or Activation.GeLU),
            nn.Conv2d(hidden, dim_model_out or dim_model, 1),
            nn.Dropout(dropout),
        )
        self.requires_squared_context = True

    def init_weights(self) -> None:
        """Weights from N(0, 2 / fan_out), no offsets, as in PVTv2."""
        for module in self.conv_mlp:
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Transform each token with its neighbours."""
        side = math.isqrt(inputs.shape[1])
        if side * side != inputs.shape[1]:
            near = f"{side**2} and {(side + 1) ** 2}"
            raise CallError(
                f"Conv2DFeedforward needs a square number of tokens, and was given {inputs.shape[1]}; the nearest "
                f"are {near} (a class token counts)"
            )
        # Upstream's kernels lie across: their first axis runs along the rows.
        grid = to_grid(inputs, (side, side)).transpose(2, 3)
        return from_grid(self.conv_mlp(grid).transpose(2, 3))

    @property
    def spec(self) -> Spec:
        """The native feedforward.

        Raises:
            ConfigError: its modules were replaced by others, or its output has another size than its input.
        """
        up, _, act, down, drop = self.conv_mlp
        name = native_name(act)
        plain = isinstance(up, nn.Conv2d) and isinstance(down, nn.Conv2d) and isinstance(drop, nn.Dropout)
        if name is None or not plain:
            raise config_error([Wrong("", "this Conv2DFeedforward holds modules without a native equivalent")])
        if up.in_channels != down.out_channels:
            message = "a feedforward with another size of output has no native equivalent"
            raise config_error([Wrong("dim_model_out", message, down.out_channels)])
        return Conv2D.spec(dim=up.in_channels, hidden=up.out_channels, activation=name, dropout=drop.p)
