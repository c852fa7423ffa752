"""Stacks as `custom_encoder` and `custom_decoder` of `torch.nn.Transformer`, in PyTorch's conventions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from variform.core.build import build
from variform.core.part import Part
from variform.errors import ConfigError, ShapeError
from variform.ops.masks import Causal, Dense, KeyPadding, Mask, from_additive
from variform.parts.kinds import Stack
from variform.stack.model import Transformer

__all__ = ["TorchDecoder", "TorchEncoder"]


class _Side(nn.Module):
    """One side of a `torch.nn.Transformer`.

    Args:
        model: a stack, or a model of features without a head; or what `build` takes.
        batch_first: as of the `torch.nn.Transformer`: [batch, length, features] instead of [length, batch, features].

    Raises:
        ConfigError: it takes other inputs than features, or gives something else.
    """

    def __init__(self, model: Any, batch_first: bool = False) -> None:
        super().__init__()
        part = model if isinstance(model, nn.Module) else build(model)
        if isinstance(part, Stack):
            part = _around(part)
        if not isinstance(part, Transformer) or part.embedding is not None or part.head is not None:
            raise ConfigError(
                "a stack, or a transformer without embedding and head, is needed",
                value=type(part).__name__,
                hint="torch.nn.Transformer hands it features, and takes features back",
            )
        self.model = part
        self.batch_first = batch_first

    def _rows(self, x: Tensor) -> Tensor:
        """Inputs with the batch first; one sequence alone is a batch of one."""
        return x.unsqueeze(0) if x.dim() == 2 else x if self.batch_first else x.transpose(0, 1)

    def _back(self, y: Tensor, like: Tensor) -> Tensor:
        return y.squeeze(0) if like.dim() == 2 else y if self.batch_first else y.transpose(0, 1)


class TorchEncoder(_Side):
    """An encoder for `torch.nn.Transformer(custom_encoder=...)`.

    Mind that `torch.nn.Transformer` draws the weights of all matrices anew when it is made: load weights after that.

    Shapes:
        src: [S, B, dim]; [B, S, dim] with `batch_first`; or [S, dim] -> the same

    Args:
        model: a stack, or a model of features without a head; or what `build` takes.
        batch_first: as of the `torch.nn.Transformer`.
    """

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Encode.

        Args:
            src: features.
            mask: [S, S] or [B * heads, S, S], what may not attend to what: bool, True = may not; or 0 and -inf.
            src_key_padding_mask: [B, S], which tokens are padding: bool, True = padding; or 0 and -inf.
            is_causal: the mask is causal, also where none is given.

        Raises:
            ShapeError: a mask of other values, or one that a part of the model cannot honour.
        """
        x = self._rows(src)
        valid = _real(src_key_padding_mask, "src_key_padding_mask", x)
        y = self.model(x, mask=_allowed(mask, is_causal, "mask", x), valid=valid)
        return self._back(y, src)


class TorchDecoder(_Side):
    """A decoder for `torch.nn.Transformer(custom_decoder=...)`; see `TorchEncoder`.

    Shapes:
        tgt: [T, B, dim]; [B, T, dim] with `batch_first`; or [T, dim] -> the same; memory: laid out alike

    Args:
        model: a stack with cross attention, or a model of features without a head; or what `build` takes.
        batch_first: as of the `torch.nn.Transformer`.
    """

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
            tgt: features of the target.
            memory: the encoder's output.
            tgt_mask: what may not attend to what within the target; see `TorchEncoder`.
            memory_mask: which target position may not attend to which of the memory.
            tgt_key_padding_mask: which target tokens are padding.
            memory_key_padding_mask: which tokens of the memory are padding.
            tgt_is_causal: the target's mask is causal, also where none is given.
            memory_is_causal: likewise for the memory's.

        Raises:
            ShapeError: a mask of other values, or one that a part of the model cannot honour.
        """
        x, context = self._rows(tgt), self._rows(memory)
        allowed = _allowed(memory_mask, memory_is_causal, "memory_mask", x)
        real = _real(memory_key_padding_mask, "memory_key_padding_mask", context)
        both = KeyPadding(real) & allowed if allowed is not None and real is not None else allowed
        y = self.model(
            x,
            context=context,
            mask=_allowed(tgt_mask, tgt_is_causal, "tgt_mask", x),
            valid=_real(tgt_key_padding_mask, "tgt_key_padding_mask", x),
            context_mask=real if both is None else both,
        )
        return self._back(y, tgt)


def _around(stack: Stack) -> Transformer:
    """A model of a stack alone, so that inputs are checked and positions counted."""
    sizes = [part.spec.get("dim") for part in stack.modules() if isinstance(part, Part)]
    dim = next((size for size in sizes if size is not None), None)
    if dim is None:
        raise ConfigError("no part of this stack has a number of features", hint="give a model: transformer, with dim")
    return Transformer(
        embedding=None,
        stacks=[stack],
        dim=dim,
        heads=None,
        vocab_size=None,
        dim_context=None,
        dim_condition=None,
        init_std=None,
    )


def _allowed(mask: Tensor | None, causal: bool | None, name: str, x: Tensor) -> Mask | None:
    """PyTorch's attention mask in the library's convention; the hint counts where there is no mask."""
    if mask is None:
        return Causal() if causal else None
    if mask.dim() == 3:  # rows, then heads
        mask = mask.view(x.shape[0], -1, *mask.shape[1:])
    if mask.dtype == torch.bool:
        return Dense(~mask)
    try:
        return from_additive(mask)
    except ShapeError:
        raise ShapeError(
            f"{name} holds other values than 0 and -inf, and a stack has no input for what is added to scores: "
            "give it a position bias, or use the xFormers dialect's TorchEncoder and TorchDecoder"
        ) from None


def _real(padding: Tensor | None, name: str, x: Tensor) -> Tensor | None:
    """PyTorch's padding mask as bool [B, L], True = a real token."""
    if padding is None:
        return None
    real = ~padding if padding.dtype == torch.bool else padding == 0
    if padding.dtype != torch.bool and not bool((real | (padding == -torch.inf)).all()):
        raise ShapeError(f"{name} marks padding: bool, True at padding, or 0 and -inf; it holds other values")
    return real.expand(x.shape[0], -1) if real.dim() == 1 else real
