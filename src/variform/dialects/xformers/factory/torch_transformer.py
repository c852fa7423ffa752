"""Models of this dialect as `custom_encoder` and `custom_decoder` of `torch.nn.Transformer`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from variform.dialects.xformers.components.attention.attention_mask import AttentionMask
from variform.dialects.xformers.components.attention.masking import AttMask
from variform.dialects.xformers.errors import CallError, ConfigTypeError
from variform.dialects.xformers.factory.model_factory import xFormer
from variform.ops.masks import Causal


class _Side(nn.Module):
    """One side of a `torch.nn.Transformer`.

    Args:
        model: the stacks of this side.
        batch_first: as of the `torch.nn.Transformer`: [batch, length, features] instead of [length, batch, features].

    Raises:
        ConfigError: the model has the other side too, or instead.
    """

    side = ""

    def __init__(self, model: xFormer, batch_first: bool = False) -> None:
        super().__init__()
        sides = [name for name in ("encoders", "decoders") if len(getattr(model, name, ()))]
        if sides != [self.side]:
            raise ConfigTypeError(f"an xFormer with {self.side} alone is needed", value=sides or type(model))
        self.model = model
        self.batch_first = batch_first

    def _rows(self, x: Tensor) -> Tensor:
        """Inputs with the batch first; one sequence alone is a batch of one."""
        return x.unsqueeze(0) if x.dim() == 2 else x if self.batch_first else x.transpose(0, 1)

    def _back(self, y: Tensor, like: Tensor) -> Tensor:
        return y.squeeze(0) if like.dim() == 2 else y if self.batch_first else y.transpose(0, 1)


class TorchEncoder(_Side):
    """An encoder for `torch.nn.Transformer(custom_encoder=...)`, with PyTorch's conventions of masks and axes.

    Mind that `torch.nn.Transformer` draws the weights of all matrices anew when it is made: load weights after that.

    Args:
        model: encoder stacks that take features.
        batch_first: as of the `torch.nn.Transformer`.
    """

    side = "encoders"

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Encode.

        Args:
            src: [S, B, E], [B, S, E] or [S, E] features.
            mask: what may not attend to what (bool, True = may not), or what is added to the scores (floats).
            src_key_padding_mask: which tokens are padding (bool, True = padding; or 0 and -inf).
            is_causal: the mask is causal, also where none is given.
        """
        y = self.model(
            self._rows(src),
            encoder_att_mask=_allowed(mask, is_causal),
            encoder_key_padding_mask=_real(src_key_padding_mask, "src_key_padding_mask"),
        )
        return self._back(y, src)


class TorchDecoder(_Side):
    """A decoder for `torch.nn.Transformer(custom_decoder=...)`, with PyTorch's conventions of masks and axes.

    Args:
        model: decoder stacks that take features.
        batch_first: as of the `torch.nn.Transformer`.
    """

    side = "decoders"

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Decode.

        Args:
            tgt: [T, B, E], [B, T, E] or [T, E] features.
            memory: the encoder's output, laid out alike.
            tgt_mask: what may not attend to what within the target; see `TorchEncoder`.
            memory_mask: which target position may not attend to which of the memory.
            tgt_key_padding_mask: which target tokens are padding.
            memory_key_padding_mask: which tokens of the memory are padding.
            tgt_is_causal: the target's mask is causal, also where none is given.
            memory_is_causal: likewise for the memory's.
        """
        y = self.model(
            self._rows(memory),
            self._rows(tgt),
            decoder_att_mask=_allowed(tgt_mask, tgt_is_causal),
            cross_att_mask=_allowed(memory_mask, memory_is_causal),
            decoder_key_padding_mask=_real(tgt_key_padding_mask, "tgt_key_padding_mask"),
            encoder_key_padding_mask=_real(memory_key_padding_mask, "memory_key_padding_mask"),
        )
        return self._back(y, tgt)


def _allowed(mask: Tensor | None, causal: bool | None) -> AttMask | None:
    """PyTorch's attention mask in this dialect's convention."""
    if mask is None:
        return Causal() if causal else None
    if mask.dtype == torch.bool:
        return ~mask
    return mask if mask.requires_grad else AttentionMask(mask)


def _real(padding: Tensor | None, name: str) -> Tensor | None:
    """PyTorch's padding mask as bool, True = a real token."""
    if padding is None:
        return None
    real = ~padding if padding.dtype == torch.bool else padding == 0
    if padding.dtype != torch.bool and not bool((real | (padding == -torch.inf)).all()):
        raise CallError(f"{name} marks padding: bool, or 0 and -inf; it holds other values")
    return real
