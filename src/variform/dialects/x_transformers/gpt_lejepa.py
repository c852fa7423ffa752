"""`LatentAutoregressive`: hidden states learned by predicting them, with the logits as a probe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from variform.core.build import build
from variform.dialects.x_transformers.decoding import in_upstream_terms
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.learned import causal_net, left_out, refuse_losses, sigreg_loss, sketch_of
from variform.dialects.x_transformers.model import stack_path
from variform.dialects.x_transformers.table import REQUIRED, Table, table_of, values_of
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.parts.head.probe import ModuleThenHead, ProbeHead
from variform.parts.norm.norms import RMSNorm
from variform.wrappers.latent_prediction import LatentPrediction, Predictor

NUMBER = (int, float)
KEYWORDS: Table = table_of(
    {
        "dim": (REQUIRED, (int,)),
        "sigreg_loss_weight": (0.05, NUMBER),
        "l2_loss_weight": (1.0, NUMBER),
        "num_rollouts": (1, (int,)),
        "rollout_loss_weights": (None, (tuple, list)),
        "sigreg_loss_kwargs": ({}, (dict,)),
        "frac_gradient": (0.0, NUMBER),
        "predict_next_cosine_sim": (True, (bool,)),
        "predictor_input_hiddens_index": (-1, (int, type(None))),
        "predict_next_embed_with_action": (True, (bool,)),
        "predict_next_embed_no_action": (False, (bool,)),
        "detach_target": (True, (bool,)),
        "ce_probe_module": (None, (nn.Module,)),
        "ignore_index": (-100, (int,)),
        "pad_value": (0, (int,)),
    }
)


class LatentAutoregressive(nn.Module):
    """Trains a model to predict its next hidden states; see `variform.wrappers.latent_prediction.LatentPrediction`.

    The head of `net` becomes a probe: a norm and three maps before what it was, so that `net` and what is generated
    with it go by the probe afterwards.

    Shapes:
        x: [B, L] token ids -> the loss, a scalar

    Args:
        net: a causal `TransformerWrapper`.
        **keywords: `dim` of the model; `sigreg_loss_weight` lambda, `l2_loss_weight` of the error,
            `sigreg_loss_kwargs` (`num_slices`, `domain`, `num_knots`); `num_rollouts` steps with
            `rollout_loss_weights`; `frac_gradient` of the cross entropy that reaches the model;
            `predict_next_cosine_sim`, whether vectors of unit length are compared; `predictor_input_hiddens_index`,
            the attention from whose input is predicted, None for the hidden states;
            `predict_next_embed_with_action` and `predict_next_embed_no_action`, with the next token and without;
            `detach_target`; `ce_probe_module`, which stands before the probe; `ignore_index` and `pad_value`.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    net: TransformerWrapper
    sigreg_loss = staticmethod(sigreg_loss)

    def __init__(self, net: nn.Module, **keywords: Any) -> None:
        super().__init__()
        given = values_of(type(self).__name__, KEYWORDS, keywords)
        made = causal_net(net, given["dim"])
        refuse_losses(given)
        _check(made, given)
        # Not registered: its parameters are the objective's, and must not be listed twice.
        self.__dict__["net"] = made
        made.native = _probed(made, given["ce_probe_module"])
        with in_upstream_terms():
            self.objective = LatentPrediction(
                made.native,
                given["num_rollouts"],
                given["rollout_loss_weights"],
                given["predict_next_embed_with_action"],
                given["predict_next_embed_no_action"],
                given["predict_next_cosine_sim"],
                given["detach_target"],
                given["frac_gradient"],
                given["l2_loss_weight"],
                given["sigreg_loss_weight"],
                sketch_of(given["sigreg_loss_kwargs"]),
            )
        self.predictor_input_hiddens_index: int | None = given["predictor_input_hiddens_index"]
        self.ignore_index: int = given["ignore_index"]
        self.pad_value: int = given["pad_value"]

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module | Tensor]:
        """Where upstream's checkpoints have what."""
        own = self.objective
        held: dict[str, nn.Module | Tensor] = {"net.": self.net}
        if own.told is not None and own.actions is not None:
            held |= {"action_emb.": own.actions, **_predictor("to_next_embed_pred.", own.told)}
        if own.untold is not None:
            held |= _predictor("to_next_embed_no_action_pred.", own.untold)
        return held

    def forward(self, x: Tensor, return_loss_breakdown: bool = False, **streams: Any) -> Any:
        """The loss.

        Args:
            x: token ids.
            return_loss_breakdown: return (loss, (cross entropy, error with the tokens, without them, SIGReg)).
            **streams: arguments of the model (`mask`, `context`, `prepend_embeds`, ...).
        """
        if x.dim() != 2 or x.shape[1] < 2:
            raise InputError(f"rows of at least two tokens are needed, [batch, length]; got {list(x.shape)}")
        inputs = torch.where(x == self.ignore_index, self.pad_value, x)
        index = self.predictor_input_hiddens_index
        answer = self.net(inputs, return_embeddings=True, return_intermediates=index is not None, **streams)
        hidden, found = (answer, None) if index is None else answer
        features = None if found is None or index is None else left_out(found.hiddens[index], x)
        counted = x[:, 1:] != self.ignore_index
        parts = self.objective.losses(left_out(hidden, x), features, inputs, counted)
        loss = self.objective.total(parts)
        return (loss, tuple(parts)) if return_loss_breakdown else loss


def _check(net: TransformerWrapper, given: Mapping[str, Any]) -> None:
    weights, count = given["rollout_loss_weights"], given["num_rollouts"]
    if weights is not None and (len(weights) != count or sum(weights) <= 0):
        message = f"one for each of the {count} steps, of a positive sum"
        raise KeywordError(message, path="rollout_loss_weights", value=weights)
    for name in ("frac_gradient", "sigreg_loss_weight"):
        if not 0 <= given[name] <= 1:
            raise KeywordError("a part in [0, 1] is needed", path=name, value=given[name])
    if not given["predict_next_embed_with_action"] and not given["predict_next_embed_no_action"]:
        raise KeywordError("at least one prediction must be on", path="predict_next_embed_with_action", value=False)
    if net.draft.memory_tokens_interspersed_every is not None and given["predictor_input_hiddens_index"] is not None:
        message = "memory tokens stand among the inputs of the attentions: predict from the hidden states, by None"
        raise KeywordError(message, path="predictor_input_hiddens_index")


def _probed(net: TransformerWrapper, module: nn.Module | None) -> Any:
    """The model, of the same parts, with a probe before its head."""
    native = net.native
    assert native.spec is not None
    probe = ProbeHead.spec(head=native.spec["head"], norm=RMSNorm.spec(eps=1e-24))
    head, inner = (
        (probe, "head.head") if module is None else (ModuleThenHead.spec(module=module, head=probe), "head.head.head")
    )
    path = stack_path(net.draft).split(".")[:2]
    ready: dict[str, Any] = {"embedding": native.embedding, ".".join(path): native.stacks[0], inner: native.head}
    return build(native.spec.replace(head=head), ready=ready)


def _predictor(key: str, made: Predictor) -> dict[str, nn.Module | Tensor]:
    gain = made.norm.weight
    assert gain is not None
    maps: dict[str, nn.Module | Tensor] = {f"{key}{2 * i + 1}.": one for i, one in enumerate(made.maps)}
    return {f"{key}0.g": gain, **maps}
