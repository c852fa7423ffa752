"""The projections of queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.dialects.xformers.errors import Wrong, config_error


@dataclass
class InputProjectionConfig:
    """One projection.

    Args:
        in_features: features in.
        out_features: features out.
        bias: learn an offset.
    """

    in_features: int
    out_features: int
    bias: bool


class Offset(nn.Module):
    """What is left of a projection whose weight is another's: its own offset, if it has one."""

    def __init__(self, params: InputProjectionConfig) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(params.out_features)) if params.bias else None
        self.init_weights()

    def init_weights(self, gain: float = 1.0) -> None:
        """No offset at first."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class InputProjection(nn.Module):
    """Queries, keys and values, each by its own linear map.

    Shapes:
        query: [B, Sq, in_features], key, value: [B, Sk, in_features] -> the same with out_features

    Args:
        query_proj_params: the projection of the queries.
        key_proj_params: the projection of the keys; None takes the queries'.
        value_proj_params: the projection of the values; None takes the queries'.
        use_separate_proj_weight: False takes the weight of the queries for all three; offsets stay separate.

    Raises:
        ConfigError: one weight is asked for, and the sizes differ.
    """

    def __init__(
        self,
        query_proj_params: InputProjectionConfig,
        key_proj_params: InputProjectionConfig | None,
        value_proj_params: InputProjectionConfig | None,
        use_separate_proj_weight: bool = True,
    ) -> None:
        super().__init__()
        self.out_features = query_proj_params.out_features
        self.q_proj = _linear(query_proj_params)
        self.k_proj: nn.Module = self.q_proj
        self.v_proj: nn.Module = self.q_proj
        for name, params in (("k_proj", key_proj_params), ("v_proj", value_proj_params)):
            if params is not None:
                setattr(self, name, _linear(params) if use_separate_proj_weight else _tied(query_proj_params, params))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project."""
        return self.q_proj(query), self._project(self.k_proj, key), self._project(self.v_proj, value)

    def _project(self, module: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = F.linear(x, self.q_proj.weight, module.bias) if isinstance(module, Offset) else module(x)
        return y


def _linear(params: InputProjectionConfig) -> nn.Linear:
    return nn.Linear(params.in_features, params.out_features, params.bias)


def _tied(query: InputProjectionConfig, params: InputProjectionConfig) -> Offset:
    if (query.in_features, query.out_features) != (params.in_features, params.out_features):
        message = "one weight for queries, keys and values needs equal sizes"
        raise config_error([Wrong("use_separate_proj_weight", message, params)])
    return Offset(params)
