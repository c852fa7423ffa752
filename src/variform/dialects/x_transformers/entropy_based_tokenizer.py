"""`EntropyBasedTokenizer`: sequences cut where a model is surprised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.decoding import in_upstream_terms
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.lens import checked_lens
from variform.dialects.x_transformers.table import REQUIRED, Table, problems_of, raise_any, table_of
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.wrappers.entropy import EntropyTokenizer, pieces

KEYWORDS: Table = table_of(
    {
        "entropy_threshold": (REQUIRED, (int, float)),
        "accumulate_entropy": (False, (bool,)),
        "ignore_entropy_below": (0.0, (int, float)),
        "max_token_size": (None, (int,)),
    }
)


class EntropyBasedTokenizer(nn.Module):
    """Cuts sequences where the entropy of the next token reaches a threshold (Pagnoni et al. 2024, arXiv:2412.09871).

    Shapes:
        seq: [L] or [B, L] token ids -> [N] or [B, N], how many tokens each piece has, filled up with zeros

    Args:
        decoder: from ids to logits of the next tokens; a `TransformerWrapper` around a causal stack, or another module.
        entropy_threshold: in nats.
        accumulate_entropy: add the entropies up from end to end.
        ignore_entropy_below: entropies that do not count for the sum.
        max_token_size: the most tokens of a piece.
        **keywords: none; unknown ones are refused.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    def __init__(
        self,
        decoder: nn.Module,
        entropy_threshold: float,
        accumulate_entropy: bool = False,
        ignore_entropy_below: float = 0.0,
        max_token_size: int | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__()
        given = {
            "entropy_threshold": entropy_threshold,
            "accumulate_entropy": accumulate_entropy,
            "ignore_entropy_below": ignore_entropy_below,
            "max_token_size": max_token_size,
            **keywords,
        }
        raise_any(problems_of(type(self).__name__, KEYWORDS, given, KEYWORDS))
        if isinstance(decoder, TransformerWrapper) and not decoder.native.causal:
            hint = "build the wrapper around a Decoder"
            raise KeywordError("the next token cannot be told by layers that see it", path="decoder", hint=hint)
        if ignore_entropy_below > 0 and not accumulate_entropy:
            message = "ignore_entropy_below has no effect without accumulate_entropy"
            raise KeywordError(message, path="ignore_entropy_below", value=ignore_entropy_below)
        with in_upstream_terms():
            self.inner = EntropyTokenizer(
                decoder, entropy_threshold, accumulate_entropy, ignore_entropy_below, max_token_size
            )

    @property
    def decoder(self) -> nn.Module:
        """The model whose entropies are taken."""
        return self.inner.model

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Where upstream's checkpoints have what."""
        return {"decoder.": self.decoder}

    @torch.no_grad()
    def forward(
        self,
        seq: Tensor,
        lens: Tensor | None = None,
        return_segmented_seq: bool = False,
        decoder_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The sizes of the pieces.

        Args:
            seq: token ids.
            lens: [B] real tokens of rows padded on the right.
            return_segmented_seq: the pieces themselves, a tuple of tensors a row.
            decoder_forward_kwargs: further arguments of the decoder.
        """
        if seq.dim() not in (1, 2) or not seq.shape[-1]:
            raise InputError(f"token ids are [length] or [batch, length], at least one; got {list(seq.shape)}")
        rows = seq.reshape(-1, seq.shape[-1])
        if lens is not None:
            lens = checked_lens(lens, *rows.shape)
        sizes: Tensor = self.inner(rows, lens, decoder_forward_kwargs)
        if not return_segmented_seq:
            return sizes[0] if seq.dim() == 1 else sizes
        cut = [pieces(row, own) for row, own in zip(rows, sizes, strict=True)]
        return cut[0] if seq.dim() == 1 else cut
