"""`NextLatentWrapper`: hidden states that tell the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.decoding import in_upstream_terms
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.learned import (
    causal_net,
    left_out,
    refuse_losses,
    sigreg_loss,
    sketch_of,
    token_table,
)
from variform.dialects.x_transformers.table import REQUIRED, Table, table_of, values_of
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.wrappers.next_latent import (
    ERRORS,
    LatentLosses,
    NextLatent,
    RecurrentDynamics,
    ResidualDynamics,
    SquaredAndCosine,
    residual_network,
)

NUMBER = (int, float)
KEYWORDS: Table = table_of(
    {
        "dim": (REQUIRED, (int,)),
        "num_rollouts": (1, (int,)),
        "loss_type": ("smooth_l1", (str, nn.Module)),
        "dynamics_type": ("residual", (str,)),
        "dynamics_network": (None, (nn.Module,)),
        "dynamics_hidden_dim": (None, (int,)),
        "dynamics_num_layers": (3, (int,)),
        "next_latent_loss_weight": (1.0, NUMBER),
        "kl_loss_weight": (1.0, NUMBER),
        "ignore_index": (-100, (int,)),
        "pad_value": (0, (int,)),
        "rollout_weights": (None, (tuple, list)),
        "sigreg_loss_weight": (0.0, NUMBER),
        "sigreg_loss_kwargs": ({}, (dict,)),
        "dynamic_rollout_loss_weight": (True, (bool,)),
        "dynamic_loss_decay": (1.0, NUMBER),
        "dynamic_loss_threshold": (None, NUMBER),
    }
)
RolloutGRU = RecurrentDynamics
MSECosineSimLoss = SquaredAndCosine
DYNAMICS = ("residual", "gru", "custom")


class Losses(NamedTuple):
    """The parts of the loss, without their weights."""

    ce: Tensor
    next_latent: Tensor
    kl: Tensor
    sigreg: Tensor


class NextLatentWrapper(nn.Module):
    """Trains a model to predict its next hidden states too; see `variform.wrappers.next_latent.NextLatent`.

    Shapes:
        x: [B, L] token ids -> the loss, a scalar

    Args:
        net: a causal `TransformerWrapper`.
        **keywords: `dim` of the model; `num_rollouts` steps ahead with `rollout_weights`; `loss_type`;
            `dynamics_type` "residual" (with `dynamics_hidden_dim` and `dynamics_num_layers`, or another
            `dynamics_network` from 2 dim to dim), "gru", or "custom", which is `dynamics_network` itself;
            `next_latent_loss_weight`, `kl_loss_weight`, `sigreg_loss_weight` and `sigreg_loss_kwargs` (`num_slices`,
            `domain`, `num_knots`); `ignore_index` and `pad_value`; `dynamic_rollout_loss_weight` and
            `dynamic_loss_decay`; `dynamic_loss_threshold` weighs steps as the releases before 2.27 do.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    net: TransformerWrapper
    sigreg_loss = staticmethod(sigreg_loss)

    def __init__(self, net: nn.Module, **keywords: Any) -> None:
        super().__init__()
        given = values_of(type(self).__name__, KEYWORDS, keywords)
        # Not registered: its parameters are the objective's, and must not be listed twice.
        self.__dict__["net"] = causal_net(net, given["dim"])
        refuse_losses(given)
        for name, known in (("dynamics_type", DYNAMICS), ("loss_type", tuple(ERRORS))):
            if isinstance(given[name], str) and given[name] not in known:
                raise KeywordError(f"one of {', '.join(known)} is needed", path=name, value=given[name])
        decay = given["dynamic_loss_decay"] if given["dynamic_rollout_loss_weight"] else None
        with in_upstream_terms():
            self.objective = NextLatent(
                self.net.native,
                _dynamics(given, keywords),
                given["loss_type"],
                given["num_rollouts"],
                _weights(given["rollout_weights"], given["num_rollouts"]),
                given["next_latent_loss_weight"],
                given["kl_loss_weight"],
                given["sigreg_loss_weight"],
                sketch_of(given["sigreg_loss_kwargs"]),
                decay,
                given["dynamic_loss_threshold"],
            )
        self.ignore_index: int = given["ignore_index"]
        self.pad_value: int = given["pad_value"]
        self.num_rollouts: int = given["num_rollouts"]

    @property
    def dynamics_model(self) -> nn.Module:
        """What predicts the next states."""
        return self.objective.dynamics

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module | Tensor]:
        """Where upstream's checkpoints have what; the embedding stands there twice."""
        held: dict[str, nn.Module | Tensor] = {"net.": self.net, "dynamics_model.": self.dynamics_model}
        return {**held, **token_table(self.net)}

    def forward(self, x: Tensor, return_loss_breakdown: bool = False, **streams: Any) -> Any:
        """The loss.

        Args:
            x: token ids.
            return_loss_breakdown: return (loss, `Losses`).
            **streams: arguments of the model (`mask`, `context`, `prepend_embeds`, ...).
        """
        if x.dim() != 2 or x.shape[1] <= self.num_rollouts + 1:
            least = self.num_rollouts + 2
            raise InputError(f"rows of at least {least} tokens are needed, [batch, length]; got {list(x.shape)}")
        inputs = torch.where(x == self.ignore_index, self.pad_value, x)
        hidden = left_out(self.net(inputs, return_embeddings=True, **streams), x)
        parts: LatentLosses = self.objective.losses(hidden, inputs, x[:, 1:] != self.ignore_index)
        loss = self.objective.total(parts)
        return (loss, Losses(*parts)) if return_loss_breakdown else loss


def _weights(weights: Sequence[float] | None, count: int) -> Sequence[float] | None:
    if weights is not None and (len(weights) != count or sum(weights) <= 0):
        message = f"one for each of the {count} steps, of a positive sum"
        raise KeywordError(message, path="rollout_weights", value=weights)
    return weights


def _dynamics(given: Mapping[str, Any], chosen: Mapping[str, Any]) -> nn.Module:
    """What predicts the next states.

    Raises:
        KeywordError: keywords that have no effect, or such as are missing.
    """
    kind, network, dim = given["dynamics_type"], given["dynamics_network"], given["dim"]
    for name in ("dynamics_hidden_dim", "dynamics_num_layers"):
        if name in chosen and (kind != "residual" or network is not None):
            raise KeywordError("has no effect on a network that is given, or a gru", path=name, value=chosen[name])
        if given[name] is not None and given[name] < 1:
            raise KeywordError("must be positive", path=name, value=given[name])
    if kind == "gru":
        if network is not None:
            raise KeywordError("has no effect with dynamics_type='gru'", path="dynamics_network")
        return RecurrentDynamics(dim)
    if kind == "custom":
        if network is None:
            raise KeywordError("dynamics_type='custom' needs it", path="dynamics_network")
        found: nn.Module = network
        return found
    hidden = given["dynamics_hidden_dim"] or dim
    return ResidualDynamics(network or residual_network(dim, hidden, given["dynamics_num_layers"]))
