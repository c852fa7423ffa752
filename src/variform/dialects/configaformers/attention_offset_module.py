"""Offsets for attention scores: ALiBi, with a causal mask or without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from variform.dialects.configaformers.errors import ConfigaformersError
from variform.errors import Problem, did_you_mean
from variform.ops.scores import alibi_slopes


def get_alibi(
    num_heads: int,
    max_length: int = 2048,
    slopes: Sequence[float] | None = None,
    mask: Literal["causal"] | None = "causal",
    mask_precision: Literal["full", "half"] = "full",
) -> Tensor:
    """Attention with linear biases (Press et al. 2021, arXiv:2108.12409) as an offset to add to attention scores.

    O[0, h, i, j] = -m_h |i - j|, and a large negative number where j > i if the mask is causal. With the paper's
    slopes that number is m_h times the lowest float32; other slopes keep it within the range of float32, and half
    precision takes half the lowest float16 for all heads, so that a sum with scores still masks.

    Shapes:
        returns: [1, num_heads, max_length, max_length], float32

    Args:
        num_heads: number of attention heads.
        max_length: the longest sequence; shorter ones trim the offset.
        slopes: m_h, one a head; the paper's by default.
        mask: "causal", or None for no mask.
        mask_precision: "half" keeps the mask within the range of float16.

    Raises:
        ConfigaformersError: numbers below 1, another number of slopes than heads, or an unknown mask or precision.
    """
    _check(num_heads, max_length, slopes, mask, mask_precision)
    steep = alibi_slopes(num_heads) if slopes is None else torch.tensor([float(m) for m in slopes])
    steep = steep.to(torch.get_default_device()).view(-1, 1, 1)
    rows = torch.arange(max_length)
    distance = (rows.unsqueeze(1) - rows).abs()
    offset = -distance * steep
    if mask == "causal":
        lowest = torch.finfo(torch.float32).min
        factor = steep.clamp(min=2.0**-20, max=1.0)
        masked = factor * lowest if mask_precision == "full" else torch.full_like(steep, -32752.0)
        offset = torch.where(rows > rows.unsqueeze(1), masked, offset)
    return offset.unsqueeze(0)


def _check(
    num_heads: int, max_length: int, slopes: Sequence[float] | None, mask: str | None, mask_precision: str
) -> None:
    problems = [
        Problem(name, "must be a positive integer", value)
        for name, value in (("num_heads", num_heads), ("max_length", max_length))
        if type(value) is not int or value < 1
    ]
    if slopes is not None and len(slopes) != num_heads:
        problems.append(Problem("slopes", f"one slope a head is needed: {num_heads}", list(slopes)))
    if mask not in ("causal", None):
        problems.append(Problem("mask", "must be 'causal' or None", mask, did_you_mean(str(mask), ["causal"])))
    if mask_precision not in ("full", "half"):
        hint = did_you_mean(str(mask_precision), ["full", "half"])
        problems.append(Problem("mask_precision", "must be 'full' or 'half'", mask_precision, hint))
    if problems:
        raise ConfigaformersError(problems)
