"""Checks of what a model is called with, so that a mistake is named here and not by a kernel far below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from variform.core.part import Part
from variform.errors import ConfigError, ShapeError, did_you_mean
from variform.ops.masks import Dense, Mask

UNCHECKED = ("losses", "further_ids", "embedding_options", "added", "bias", "passes", "exit", "beside", "watch")
"""Streams that the parts which read them check."""


def as_mask(mask: Mask | Tensor | None) -> Mask | None:
    """A mask from what a caller gives: a bool tensor, True = may attend, becomes `Dense`.

    Raises:
        ShapeError: something else, or a tensor that is no mask.
    """
    if mask is None or isinstance(mask, Mask):
        return mask
    try:
        return Dense(tensor_of("mask", mask))
    except ShapeError as error:
        raise ShapeError(f"mask: {error}") from None


def tensor_of(name: str, value: Any) -> Tensor:
    """The value, if it is a tensor.

    Raises:
        ShapeError: it is something else.
    """
    if not isinstance(value, Tensor):
        raise ShapeError(f"{name} must be a tensor, not a {type(value).__name__}; make one with torch.as_tensor")
    return value


def check_inputs(inputs: Any, embeds: bool, dim: int, max_seq_len: int | None) -> None:
    """Refuse main inputs that no model takes.

    Args:
        inputs: [B, L] ids, [B, L, dim] features or [B, C, H, W] images.
        embeds: whether there is an embedding, which knows best what it takes.
        dim: features, where there is none.
        max_seq_len: longest sequence.

    Raises:
        ShapeError: saying what is wrong.
    """
    axes = tensor_of("the input", inputs).dim()
    if axes not in (2, 3, 4) or (not embeds and axes != 3):
        wanted = "[B, L] ids, [B, L, features] or [B, C, H, W] images" if embeds else f"features [B, L, {dim}]"
        raise ShapeError(f"the input is {wanted}, not {about(inputs)}; a single sequence is a batch of one: x[None]")
    if not embeds and inputs.shape[2] != dim:
        raise ShapeError(f"without an embedding the input is features [B, L, {dim}], not {about(inputs)}")
    if axes > 2 and not inputs.is_floating_point():
        raise ShapeError(f"features and images are floats, not {about(inputs)}")
    if inputs.shape[0] == 0:
        raise ShapeError("the batch is empty: at least one row is needed")
    if inputs.shape[1] == 0:
        raise ShapeError("the sequence is empty: at least one token is needed")
    if axes != 4 and max_seq_len is not None and inputs.shape[1] > max_seq_len:
        raise ShapeError(f"the sequence has {inputs.shape[1]} tokens, and max_seq_len is {max_seq_len}")


def check_streams(given: Mapping[str, Any], batch: int, length: int, device: torch.device, longest: int | None) -> None:
    """Refuse side inputs of the wrong kind, size or place.

    Args:
        given: the streams by name; None where one is not given.
        batch: rows of the main input.
        length: its tokens a row.
        device: where it is.
        longest: the model's max_seq_len.

    Raises:
        ShapeError: naming the stream.
    """
    for name, value in given.items():
        if value is None or isinstance(value, Mask):
            continue
        if tensor_of(name, value).device != device:
            raise ShapeError(f"{name} is on {value.device} and the input on {device}; move it: {name}.to({device})")
        if name in ("valid", "segments"):
            _check_rows(name, value, batch, length)
        elif name == "positions":
            _check_positions(value, batch, length, longest)
        elif name == "context":
            _check_context(value, given["context_mask"], batch)
        elif name == "context_positions":
            _check_context_positions(value, given.get("context"), batch)
        elif name == "context_mask" and value.dtype != torch.bool:
            raise ShapeError(f"context_mask is bool, True at real tokens, not {value.dtype}")
        elif name == "injected":
            ahead = given.get("prefix")
            _check_injected(value, batch, length + (0 if ahead is None else ahead.shape[1]))
        elif name == "condition":
            _check_condition(value, given.get("prefix"), batch, length)


def _check_injected(value: Tensor, batch: int, length: int) -> None:
    if value.dim() != 3 or value.shape[0] != batch or value.shape[1] not in (1, length):
        wanted = f"[{batch}, {length}, dim] or [{batch}, 1, dim]"
        raise ShapeError(f"what is injected is floats of shape {wanted}, not {about(value)}")


def _check_condition(condition: Tensor, prefix: Any, batch: int, length: int) -> None:
    total = length + (prefix.shape[1] if isinstance(prefix, Tensor) and prefix.dim() == 3 else 0)
    fits = condition.dim() == 2 or (condition.dim() == 3 and condition.shape[1] in (1, total))
    if not fits or condition.shape[0] != batch or not condition.is_floating_point():
        wanted = f"[{batch}, features] or [{batch}, {total}, features]"
        raise ShapeError(f"the condition is floats {wanted}, not {about(condition)}")


def _check_rows(name: str, value: Tensor, batch: int, length: int) -> None:
    fits = tuple(value.shape) == (batch, length)
    if name == "valid" and not (fits and value.dtype == torch.bool):
        raise ShapeError(
            f"valid is a bool tensor of shape [{batch}, {length}], True at real tokens, not {about(value)}"
        )
    if name == "segments" and not (fits and _is_integer(value)):
        raise ShapeError(f"segments are integers of shape [{batch}, {length}], not {about(value)}")


def _check_positions(positions: Tensor, batch: int, length: int, longest: int | None) -> None:
    if not _is_integer(positions) or tuple(positions.shape) not in ((length,), (batch, length)):
        raise ShapeError(f"positions are integers of shape [{length}] or [{batch}, {length}], not {about(positions)}")
    # Values are looked at where that costs no synchronisation: plain tensors on the CPU, outside of compiled graphs.
    if torch.compiler.is_compiling() or type(positions) is not Tensor or positions.device.type != "cpu":
        return
    low, high = int(positions.min()), int(positions.max())
    if low < 0:
        raise ShapeError(f"positions count from 0, and the smallest given is {low}")
    if longest is not None and high >= longest:
        raise ShapeError(f"positions must be below max_seq_len = {longest}, and the largest given is {high}")


def _check_context_positions(positions: Tensor, context: Any, batch: int) -> None:
    if not isinstance(context, Tensor):
        raise ShapeError("context_positions was given without a context, which is read once where there is a state")
    length = context.shape[1]
    if not _is_integer(positions) or tuple(positions.shape) not in ((length,), (batch, length)):
        wanted = f"[{length}] or [{batch}, {length}]"
        raise ShapeError(f"context_positions are integers of shape {wanted}, not {about(positions)}")


def _check_context(context: Tensor, mask: Any, batch: int) -> None:
    if context.dim() != 3 or context.shape[0] != batch or not context.is_floating_point():
        raise ShapeError(f"the context is floats of shape [{batch}, length, features], not {about(context)}")
    wanted = (batch, context.shape[1])
    if isinstance(mask, Tensor) and tuple(mask.shape) != wanted:
        raise ShapeError(
            f"context_mask is bool of shape {list(wanted)}, True at real tokens, not {about(mask)}; what may differ "
            "from query to query is a mask: Dense(tensor)"
        )


def misfit(error: Exception, model: nn.Module, tensors: Iterable[tuple[str, Any]]) -> ShapeError | None:
    """What a failed run tells about its tensors: another device or dtype than all parameters'; None if nothing."""
    parameters = list(model.parameters())
    devices = {p.device for p in parameters}
    dtypes = {p.dtype for p in parameters}
    for name, value in tensors:
        if not isinstance(value, Tensor) or not parameters:
            continue
        if value.device not in devices:
            return ShapeError(f"{name} is on {value.device}, and the model on {parameters[0].device}: {error}")
        if value.is_floating_point() and value.dtype not in dtypes:
            wanted = str(parameters[0].dtype)
            return ShapeError(f"{name} is {value.dtype}, and the model {wanted}; convert it: {name}.to({wanted})")
    return None


def check_two_way(
    counts: Any, batch: int, length: int, state: Mapping[str, Any] | None, positions: Tensor | None
) -> None:
    """Refuse a prefix that is none, or that a decode state would see in pieces.

    Args:
        counts: how many tokens of each row belong to it; the position it ends before, where positions are given.
        batch: rows.
        length: tokens of the call, those in front included.
        state: the decode state of the call.
        positions: [L] or [B, L], where the tokens of the call stand, those in front counted; None for the next places.

    Raises:
        ShapeError: saying what is wrong.
    """
    counts = tensor_of("two_way", counts)
    if not _is_integer(counts) or tuple(counts.shape) != (batch,):
        raise ShapeError(f"two_way is integers [{batch}], the length of each row's prefix, not {about(counts)}")
    if state is None or torch.compiler.is_compiling() or counts.device.type != "cpu":
        return
    seen = torch.as_tensor(state["count"] if state["seen"] is None else state["seen"])
    begin, end = (seen, length) if positions is None else (positions.amin(-1), positions.amax(-1) + 1)
    if bool((counts > torch.where(seen > 0, begin, end)).any()):
        raise ShapeError("while decoding, the whole prefix of a row (two_way) lies in its first call")


def check_beside(given: Mapping[object, Any], model: nn.Module) -> None:
    """Refuse further keys and values for what is no attention of the model: nobody would read them.

    Raises:
        ShapeError: saying for what they are.
    """
    if torch.compiler.is_compiling():  # which has seen the model before
        return
    readers = {module for module in model.modules() if isinstance(module, Part) and "beside" in module.reads}
    for mixer in given:
        if mixer not in readers:
            raise ShapeError(f"beside is for the attentions of this model, by mixer, and {mixer!r} is none of them")


def check_kept(streams: Mapping[str, Any], batch: int, device: torch.device) -> None:
    """Refuse streams that a new decode state cannot keep.

    Raises:
        ConfigError: another stream than a context, its mask and its positions, a condition of each row, and passes.
        ShapeError: one that does not fit.
    """
    for name in streams:
        kept = ("context", "context_mask", "context_positions", "condition", "passes")
        if name not in kept:
            raise ConfigError(f"a decode state keeps no {name!r}", hint=did_you_mean(name, kept))
    condition = streams.get("condition")
    if isinstance(condition, Tensor) and condition.dim() != 2:
        raise ShapeError(f"a decode state keeps a condition of each row, [{batch}, features], not {about(condition)}")
    sides = {name: value for name, value in streams.items() if name != "passes"}
    check_streams({"context_mask": None, **sides}, batch, 0, device, None)


def check_state_sizes(batch: Any, max_len: Any, bucket: Any, ahead: Any = 0) -> None:
    """Refuse sizes of a decode state that are no sizes.

    Raises:
        ConfigError: naming the size.
    """
    sizes = (("batch", batch, 1), ("max_len", max_len, 1), ("bucket", bucket, 0), ("ahead", ahead, 0))
    for name, size, least in sizes:
        if not isinstance(size, int) or isinstance(size, bool) or size < least:
            raise ConfigError(f"{name} is an integer, at least {least}", value=size)


def streams_read(model: nn.Module) -> frozenset[str]:
    """All streams that a model's parts read of it; what a part gives its children itself is not among them."""
    found: set[str] = set()
    for child in model.children():
        found |= streams_read(child)
    if isinstance(model, Part):
        found = (found - model.closes) | model.reads
    return frozenset(found)


def about(x: Tensor) -> str:
    """A tensor in words."""
    return f"{str(x.dtype).removeprefix('torch.')} of shape {list(x.shape)}"


def _is_integer(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
