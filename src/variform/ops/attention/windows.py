"""Attention within the windows of a grid: each window's tokens side by side, and one fused call over all windows."""

from __future__ import annotations

import functools
import math
import operator

import torch
from torch import Tensor

from variform.ops.attention.call import Call
from variform.ops.attention.plan import conjuncts
from variform.ops.attention.sdpa import fused, without_empty_rows
from variform.ops.masks import Mask, ShiftedWindows
from variform.ops.masks.view import point_view
from variform.ops.scores import ScoreMod

__all__ = ["WindowsBackend"]


class WindowsBackend:
    """Computes the pairs within the windows that a mask is made of, and no others, on every device.

    As in Swin (arXiv:2103.14030): the grid is rolled by the shift, so that all windows are whole; a mask parts what the
    roll has put together.
    """

    name = "windows"

    def refuses(self, call: Call, training: bool) -> str | None:
        """No windows over exactly these tokens, positions, modifiers that are not an added bias of pairs."""
        if not call.aligned:
            return "with positions given, which tokens share a window is not known beforehand"
        if any(not (modifier.is_additive and modifier.is_pointwise) for modifier in call.scores):
            return "a score modifier is not an added bias, or not one that is told pair by pair"
        found = _windows(call)
        if found is None:
            return "the mask has no windows of a grid (ShiftedWindows)"
        tokens = math.prod(found.sizes)
        if call.q.shape[2] != tokens or call.k.shape[2] != tokens:
            return f"the windows are those of a grid of {tokens} tokens"
        return None

    def advantage(self, call: Call, training: bool) -> str | None:
        """More windows than one."""
        found = _windows(call)
        if found is None or self.refuses(call, training) is not None:
            return None
        size, tokens = found.window ** len(found.sizes), math.prod(found.sizes)
        return f"{tokens // size} windows of {size} tokens: {size / tokens:.2%} of the pairs" if size < tokens else None

    def run(self, call: Call) -> Tensor:
        """Compute the call."""
        call.check()
        found = _windows(call)
        assert found is not None, "refuses() lets calls with windows through only"
        batch, heads, tokens, _ = call.q.shape
        order = _order(found, call.q.device)
        q, k, v = (_gathered(t, order) for t in (call.q, *call.expanded()))
        mask, empty = _mask(call, found, order), None
        if mask is not None and mask.device.type != "cpu":
            mask, empty = without_empty_rows(mask)
        out = fused(q, k, v, mask, dropout=call.dropout, scale=call.softmax_scale)
        out = out if empty is None else out.masked_fill(empty, 0.0)
        return out.reshape(batch, heads, tokens, -1).index_select(2, order.flatten().argsort())


def _windows(call: Call) -> ShiftedWindows | None:
    """The windows that everything else the call asks for lies within."""
    masks = (part for whole in (call.structure, call.mask) if whole is not None for part in conjuncts(whole))
    return next((part for part in masks if isinstance(part, ShiftedWindows)), None)


def _order(windows: ShiftedWindows, device: torch.device) -> Tensor:
    """The positions of each window: [windows, tokens of one]."""
    axes, size = len(windows.sizes), windows.window
    positions = torch.arange(math.prod(windows.sizes), device=device).view(windows.sizes)
    positions = positions.roll([-windows.shift] * axes, list(range(axes)))
    tiles = positions.view([part for length in windows.sizes for part in (length // size, size)])
    return tiles.permute([*range(0, 2 * axes, 2), *range(1, 2 * axes, 2)]).reshape(-1, size**axes)


def _gathered(x: Tensor, order: Tensor) -> Tensor:
    """[B, H, L, D] -> [B, H * windows, tokens of one, D]."""
    return x.index_select(2, order.flatten()).view(x.shape[0], -1, order.shape[1], x.shape[3])


def _mask(call: Call, windows: ShiftedWindows, order: Tensor) -> Tensor | None:
    """What hides pairs within windows, with the added bias: [B | 1, H * windows, tokens, tokens], or None."""
    batch, heads = call.q.shape[:2]
    b = torch.arange(batch, device=order.device).view(-1, 1, 1, 1, 1)
    h = torch.arange(heads, device=order.device).view(1, -1, 1, 1, 1)
    q, k = order[:, :, None], order[:, None, :]
    view = point_view(b, h, q, k, q_seg=call.q_segments, k_seg=call.k_segments)
    kept = [part._visit(view) for part in _rest(call, windows)]
    if view.q_seg is not None and view.k_seg is not None:
        kept.append(view.q_seg == view.k_seg)
    if call.k_valid is not None:
        kept.append(call.k_valid[b, k])
    mask = functools.reduce(operator.and_, kept) if kept else None
    if call.scores:
        bias = _bias(call, windows, b, h, order)
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    if mask is None:
        return None
    mask = mask.view(*[1] * (5 - mask.dim()), *mask.shape)
    return mask.expand(mask.shape[0], heads, len(order), -1, -1).flatten(1, 2)


def _rest(call: Call, windows: ShiftedWindows) -> list[Mask]:
    """The masks that windows do not fulfil by themselves."""
    masks = [part for whole in (call.structure, call.mask) if whole is not None for part in conjuncts(whole)]
    return [part for part in masks if part.band() != (None, None) and (part is not windows or windows.shift)]


def _bias(call: Call, windows: ShiftedWindows, b: Tensor, h: Tensor, order: Tensor) -> Tensor:
    dtype = torch.float32 if call.q.dtype.itemsize < 4 else call.q.dtype
    # Where the first window is one piece, offsets within it are those of all pairs that attend in any window.
    whole = not windows.shift or min(windows.sizes) > windows.window
    total = torch.zeros((), dtype=dtype, device=call.q.device)
    for modifier in call.scores:
        places = order[:1] if whole and modifier.is_relative else order
        total = total + _added(modifier, b, h, places, dtype)
    return total.to(dtype)


def _added(modifier: ScoreMod, b: Tensor, h: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
    function = modifier.score_mod()
    assert function is not None, "refuses() lets modifiers with a point-wise form through only"
    return function(torch.zeros((), dtype=dtype, device=places.device), b, h, places[:, :, None], places[:, None, :])
