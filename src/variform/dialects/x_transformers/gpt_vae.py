"""`GPTVAE`: a language model steered by a latent vector of the whole text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.autoregressive_wrapper import AutoregressiveWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.latents import read, stacks
from variform.dialects.x_transformers.table import REQUIRED, Table, table_of
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.wrappers.latent import LatentToken, Variational, sample

KEYWORDS: Table = table_of(
    {
        "num_tokens": (REQUIRED, (int,)),
        "dim": (REQUIRED, (int,)),
        "depth": (REQUIRED, (int,)),
        "enc_depth": (REQUIRED, (int,)),
        "max_seq_len": (REQUIRED, (int,)),
        "dim_latent": (None, (int,)),
        "attn_dim_head": (64, (int,)),
        "heads": (8, (int,)),
        "enc_kwargs": ({}, (dict,)),
        "dec_kwargs": ({}, (dict,)),
        "vae_kl_loss_weight": (1.0, (int, float)),
        "vae_kl_div_floor": (0.0, (int, float)),
        "latents_dropout_prob": (0.5, (int, float)),
        "pad_id": (-1, (int,)),
        "encoder": (None, (nn.Module,)),
    }
)
"""Own keywords; those of `Encoder` and `Decoder` are taken for both."""


class GPTVAE(nn.Module):
    """A conditional variational autoencoder of texts, as ACT has one of actions (Zhao et al. 2023, arXiv:2304.13705).

    An encoder reads a text to a latent vector, which stands as one token before the decoder's. In training it is drawn,
    and hidden from some rows, so that the decoder also writes without. Described by upstream's keywords.

    Shapes:
        seq: [B, L] token ids -> the loss, a scalar

    Args:
        **keywords: see `KEYWORDS`, and those of `Encoder` and `Decoder` for both; `enc_kwargs` and `dec_kwargs` are
            for one. `encoder` is another, from ids and `mask=` to [B, dim].

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        given, both = read(type(self).__name__, KEYWORDS, keywords)
        if given["vae_kl_div_floor"] < 0:
            raise KeywordError("must not be negative", path="vae_kl_div_floor", value=given["vae_kl_div_floor"])
        if given["encoder"] is not None and given["enc_kwargs"]:
            raise KeywordError("there is an encoder already: keywords for one have no effect", path="enc_kwargs")
        dim, length = given["dim"], given["max_seq_len"]
        dim_latent = given["dim_latent"] or dim
        encoder, decoder = stacks(given, both, given["enc_depth"], given["depth"])
        size = {"num_tokens": given["num_tokens"]}
        pooled = {"return_only_embed": True, "average_pool_embed": True}
        self.encoder: nn.Module = given["encoder"] or TransformerWrapper(
            max_seq_len=length + 1, attn_layers=encoder, **pooled, **size
        )
        self.bottleneck = Variational(dim, dim_latent, float(given["vae_kl_div_floor"]))
        self.token = LatentToken(dim_latent, dim, float(given["latents_dropout_prob"]))
        self.ar_wrapped_decoder = AutoregressiveWrapper(
            TransformerWrapper(max_seq_len=length, attn_layers=decoder, **size), ignore_index=given["pad_id"]
        )
        self.pad_id: int = given["pad_id"]
        self.vae_kl_loss_weight: float = given["vae_kl_loss_weight"]

    @property
    def decoder(self) -> nn.Module:
        """The language model."""
        return self.ar_wrapped_decoder.net

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Where upstream's checkpoints have what; the decoder stands there twice."""
        return {
            "encoder.": self.encoder,
            "to_latent_mean_log_variance.0.": self.bottleneck.project,
            "from_latent_to_prepend_token.0.": self.token.project,
            "decoder.": self.decoder,
            "ar_wrapped_decoder.net.": self.decoder,
        }

    def encode_to_latents(self, seq: Tensor, return_mean_log_var: bool = False) -> Any:
        """Latent vectors of texts, drawn, [B, dim_latent].

        Args:
            seq: [B, L] token ids, filled up with `pad_id`.
            return_mean_log_var: return (latents, (mean, log variance)).
        """
        mask = seq != self.pad_id
        pooled = self.encoder(torch.where(mask, seq, 0), mask=mask)
        mean, log_variance = self.bottleneck.moments(pooled)
        latents = sample(mean, log_variance)
        return (latents, (mean, log_variance)) if return_mean_log_var else latents

    def forward(self, seq: Tensor, seq_for_latents: Tensor | None = None, return_all_losses: bool = False) -> Any:
        """The next-token loss and the divergence of the latent vectors.

        Args:
            seq: token ids, filled up with `pad_id`.
            seq_for_latents: the texts that the latent vectors are of; by default the same.
            return_all_losses: return (loss, (next-token loss, divergence)).
        """
        latents, (mean, log_variance) = self.encode_to_latents(
            seq if seq_for_latents is None else seq_for_latents, True
        )
        token, seen = self.token(latents)
        if token.shape[0] != seq.shape[0]:
            raise InputError(f"there are latent vectors of {token.shape[0]} texts, and {seq.shape[0]} texts to write")
        written = self.ar_wrapped_decoder(seq, prepend_embeds=token, prepend_mask=seen)
        divergence = self.bottleneck.divergence(mean, log_variance).mean()
        loss = written + divergence * self.vae_kl_loss_weight
        return (loss, (written, divergence)) if return_all_losses else loss

    @torch.no_grad()
    def generate(
        self,
        prompts: Tensor,
        seq_len: int,
        latents: Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
        seq_for_latents: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Continue prompts, with a latent vector or without; see `AutoregressiveWrapper.generate`.

        Args:
            prompts: [L] or [B, L] token ids.
            seq_len: how many tokens to add.
            latents: [dim_latent] for all, or [B, dim_latent].
            seq_for_latents: texts whose latent vectors are taken.
            **options: of `AutoregressiveWrapper.generate`.
        """
        if seq_for_latents is not None:
            if latents is not None:
                raise InputError("latents and seq_for_latents both say what to write like; give one")
            texts = seq_for_latents if seq_for_latents.dim() == 2 else seq_for_latents.unsqueeze(0)
            latents = self.encode_to_latents(texts)
        if latents is not None:
            rows = prompts.shape[0] if prompts.dim() == 2 else 1
            like = self.token.project.weight
            vectors = torch.as_tensor(latents, device=like.device, dtype=like.dtype)
            if vectors.dim() == 1 or vectors.shape[0] == 1:
                vectors = vectors.reshape(1, -1).expand(rows, -1)
            if vectors.shape != (rows, self.token.project.in_features):
                wanted = [rows, self.token.project.in_features]
                raise InputError(f"latent vectors are {wanted}, or one for all; got {list(vectors.shape)}")
            options["prepend_embeds"] = self.token.project(vectors).unsqueeze(1)
        return self.ar_wrapped_decoder.generate(prompts, seq_len, **options)
