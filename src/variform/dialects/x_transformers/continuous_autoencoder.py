"""`ContinuousTransformerAutoencoder`: a sequence of features as one latent vector, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.continuous import ContinuousTransformerWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.latents import read, stacks
from variform.dialects.x_transformers.lens import real_tokens
from variform.dialects.x_transformers.table import REQUIRED, Table, table_of
from variform.parts.head.heads import pool_tokens
from variform.wrappers.latent import Deterministic, LatentToken, Variational
from variform.wrappers.next_features import absolute_error, squared_error


class VariationalLatentBottleneck(nn.Module):
    """A drawn latent vector and its divergence; see `variform.wrappers.latent.Variational`."""

    def __init__(self, dim: int, dim_latent: int, kl_div_floor: float = 0.0) -> None:
        super().__init__()
        self.inner = Variational(dim, dim_latent, kl_div_floor)

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Where upstream's checkpoints have what."""
        return {"to_mean_log_var.0.": self.inner.project}

    def forward(self, x: Tensor, return_unreduced_loss: bool = False) -> tuple[Tensor, Tensor]:
        """The latent vectors, and the mean of their divergence, or that of each."""
        latents, penalty = self.inner(x)
        return latents, penalty if return_unreduced_loss else penalty.mean()


class DeterministicLatentBottleneck(nn.Module):
    """A linear map and an activation; see `variform.wrappers.latent.Deterministic`."""

    def __init__(self, dim: int, dim_latent: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = Deterministic(dim, dim_latent, activation)

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Where upstream's checkpoints have what."""
        own = {"proj.": self.inner.project}
        return own if self.inner.activation is None else {**own, "activation.": self.inner.activation}

    def forward(self, x: Tensor, return_unreduced_loss: bool = False) -> tuple[Tensor, None]:
        """The latent vectors; there is no penalty."""
        latents: tuple[Tensor, None] = self.inner(x)
        return latents


BOTTLENECKS: dict[str, type[VariationalLatentBottleneck] | type[DeterministicLatentBottleneck]] = {
    "deterministic": DeterministicLatentBottleneck,
    "variational": VariationalLatentBottleneck,
}
ERRORS = {"l1": absolute_error, "l2": squared_error}

KEYWORDS: Table = table_of(
    {
        "dim": (REQUIRED, (int,)),
        "enc_depth": (REQUIRED, (int,)),
        "dec_depth": (REQUIRED, (int,)),
        "max_seq_len": (REQUIRED, (int,)),
        "dim_input": (None, (int,)),
        "dim_latent": (None, (int,)),
        "bottleneck": (None, (nn.Module,)),
        "bottleneck_type": ("deterministic", (str,)),
        "deterministic_bottleneck_kwargs": ({}, (dict,)),
        "variational_bottleneck_kwargs": ({}, (dict,)),
        "loss_type": ("l2", (str,)),
        "attn_dim_head": (64, (int,)),
        "heads": (8, (int,)),
        "enc_kwargs": ({}, (dict,)),
        "dec_kwargs": ({}, (dict,)),
        "latents_dropout_prob": (0.5, (int, float)),
    }
)
"""Own keywords; those of `Encoder` and `Decoder` are taken for both."""


class ContinuousTransformerAutoencoder(nn.Module):
    """A sequence of features is read to one latent vector, and predicted from it and what came before.

    The latent vector is a token in front of a causal decoder, whose answers at it and at feature i are compared with
    feature 0 and i + 1. In training it is hidden from some rows. Described by upstream's keywords.

    Shapes:
        seq: [B, L, dim_input] -> the loss, a scalar

    Args:
        **keywords: see `KEYWORDS`, and those of `Encoder` and `Decoder` for both; `enc_kwargs` and `dec_kwargs` are
            for one.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        given, both = read(type(self).__name__, KEYWORDS, keywords)
        for name, known in (("bottleneck_type", BOTTLENECKS), ("loss_type", ERRORS)):
            if given[name] not in known:
                raise KeywordError(f"one of {', '.join(known)} is needed", path=name, value=given[name])
        dim = given["dim"]
        dim_input, dim_latent = given["dim_input"] or dim, given["dim_latent"] or dim
        encoder, decoder = stacks(given, both, given["enc_depth"], given["dec_depth"])
        size = {"max_seq_len": given["max_seq_len"], "dim_in": dim_input, "use_identity_if_same_dim": True}
        self.encoder = ContinuousTransformerWrapper(attn_layers=encoder, **size)
        self.bottleneck: nn.Module = given["bottleneck"] or _bottleneck(given, dim, dim_latent)
        self.token = LatentToken(dim_latent, dim, given["latents_dropout_prob"])
        self.decoder = ContinuousTransformerWrapper(attn_layers=decoder, dim_out=dim_input, **size)
        self.loss_type: str = given["loss_type"]

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Where upstream's checkpoints have what."""
        return {
            "encoder.": self.encoder,
            "bottleneck.": self.bottleneck,
            "from_latent_to_prepend_token.0.": self.token.project,
            "decoder.": self.decoder,
        }

    def encode(
        self,
        seq: Tensor,
        lens: Tensor | None = None,
        return_aux_loss: bool = False,
        return_unreduced_loss: bool = False,
    ) -> Any:
        """The latent vectors, [B, dim_latent].

        Args:
            seq: features.
            lens: [B] real features of rows padded on the right.
            return_aux_loss: return (latents, penalty).
            return_unreduced_loss: the penalty of each row.
        """
        mask = _mask(seq, lens)
        pooled = pool_tokens(self.encoder(seq, mask=mask, return_embeddings=True), mask, "mean")
        latents, penalty = self.bottleneck(pooled, return_unreduced_loss=return_unreduced_loss)
        return (latents, penalty) if return_aux_loss else latents

    def forward(
        self,
        seq: Tensor,
        lens: Tensor | None = None,
        return_all_losses: bool = False,
        return_unreduced_loss: bool = False,
    ) -> Any:
        """The error of the reconstruction, and the penalty of the bottleneck.

        Args:
            seq: features.
            lens: [B] real features of rows padded on the right.
            return_all_losses: return (loss, (error, penalty)).
            return_unreduced_loss: of each row, [B].
        """
        latents, penalty = self.encode(seq, lens, True, return_unreduced_loss)
        token, seen = self.token(latents)
        answers = self.decoder(seq, prepend_embeds=token, prepend_mask=seen)[:, :-1]
        errors = ERRORS[self.loss_type](answers, seq).mean(-1)
        mask = _mask(seq, lens)
        counted = torch.ones(seq.shape[:2], dtype=torch.bool, device=seq.device) if mask is None else mask
        # Without the token nothing has been read where the first feature is to be told.
        counted = torch.cat((counted[:, :1] & seen, counted[:, 1:]), 1)
        if return_unreduced_loss:
            error = torch.where(counted, errors, 0.0).sum(1) / counted.sum(1).clamp(min=1)
        else:
            error = torch.where(counted, errors, 0.0).sum() / counted.sum().clamp(min=1)
        loss = error if penalty is None else error + penalty
        return (loss, (error, penalty)) if return_all_losses else loss


def _bottleneck(given: Mapping[str, Any], dim: int, dim_latent: int) -> nn.Module:
    chosen = given["bottleneck_type"]
    options = given[f"{chosen}_bottleneck_kwargs"]
    known = {"deterministic": ("activation",), "variational": ("kl_div_floor",)}[chosen]
    for name in options:
        if name not in known:
            message = f"the {chosen} bottleneck takes {', '.join(known)}"
            raise KeywordError(message, path=f"{chosen}_bottleneck_kwargs.{name}")
    return BOTTLENECKS[chosen](dim, dim_latent, **options)


def _mask(seq: Tensor, lens: Tensor | None) -> Tensor | None:
    if seq.dim() != 3:
        raise InputError(f"features are [batch, length, features]; got {list(seq.shape)}")
    return None if lens is None else real_tokens(lens, seq)
