"""Upstream's filters of logits, and its contrast of two models, by their names there."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from variform.dialects.x_transformers.errors import KeywordError
from variform.errors import did_you_mean
from variform.generate.contrast import contrasted

Filter = Callable[..., Tensor]


def top_p(logits: Tensor, thres: float = 0.9) -> Tensor:
    """Keep the most probable tokens up to and with the one at which their sum passes `thres`; [B, V] -> [B, V]."""
    ordered, order = logits.sort(dim=-1, descending=True)
    before = F.pad(ordered.softmax(-1).cumsum(-1) > thres, (1, -1), value=False)
    return logits.masked_fill(before.gather(-1, order.argsort(-1)), -torch.inf)


def top_k(logits: Tensor, frac_num_tokens: float = 0.1, k: int | None = None) -> Tensor:
    """Keep the `k` most probable tokens, by default this part of the vocabulary; [B, V] -> [B, V]."""
    size = logits.shape[-1]
    kept = min(math.ceil(frac_num_tokens * size) if k is None else k, size)
    values, places = logits.topk(kept)
    return torch.full_like(logits, -torch.inf).scatter(-1, places, values)


def top_a(logits: Tensor, min_p_pow: float = 2.0, min_p_ratio: float = 0.02) -> Tensor:
    """Keep tokens of a probability of at least ratio * (greatest probability)^pow; [B, V] -> [B, V]."""
    chances = logits.softmax(-1)
    return logits.masked_fill(chances < chances.amax(-1, keepdim=True) ** min_p_pow * min_p_ratio, -torch.inf)


def min_p(logits: Tensor, min_p: float = 0.1) -> Tensor:
    """Keep tokens at least `min_p` times as probable as the most probable (arXiv:2407.01082); [B, V] -> [B, V]."""
    chances = logits.softmax(-1)
    return logits.masked_fill(chances < chances.amax(-1, keepdim=True) * min_p, -torch.inf)


FILTER_LOGITS_FN: dict[str, Filter] = {"top_p": top_p, "top_k": top_k, "top_a": top_a, "min_p": min_p}
"""Filters by name."""


def identity(logits: Tensor) -> Tensor:
    """All tokens."""
    return logits


def contrastive_decode_fn(
    expert_logits: Tensor, amateur_logits: Tensor, alpha: float = 0.1, beta: float = 0.5
) -> Tensor:
    """`variform.generate.contrast.contrasted`; [.., V] -> [.., V]."""
    return contrasted(expert_logits, amateur_logits, alpha, beta)


def filter_of(chosen: str | Filter) -> Filter:
    """A filter by name, or the function itself.

    Raises:
        KeywordError: there is no filter of this name.
    """
    if isinstance(chosen, str):
        if chosen not in FILTER_LOGITS_FN:
            hint = did_you_mean(chosen, FILTER_LOGITS_FN)
            raise KeywordError(f"there is no filter {chosen!r}", path="filter_logits_fn", hint=hint)
        return FILTER_LOGITS_FN[chosen]
    return chosen


RANGES = {"frac_num_tokens": (0.0, 1.0), "thres": (0.0, 1.0), "min_p": (0.0, 1.0), "min_p_ratio": (0.0, 1.0)}
"""From where to where options of filters go."""


def _check_option(name: str, value: Any) -> None:
    """An option of upstream's filters leaves a token to draw.

    Raises:
        KeywordError: it is out of its range.
    """
    if name == "k":
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise KeywordError("must be an integer of at least 1", path="filter_kwargs.k", value=value)
        return
    low, high = RANGES.get(name, (0.0, math.inf))
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        message = f"a number in [{low:g}, {high:g}] is needed"
        raise KeywordError(message, path=f"filter_kwargs.{name}", value=value)
    if name == "frac_num_tokens" and value == 0:
        raise KeywordError("a part of no tokens leaves none to draw", path=f"filter_kwargs.{name}", value=value)


def filters_of(chosen: Any, options: Mapping[str, Any] | None, temperature: Any) -> list[Callable[[Tensor], Tensor]]:
    """What is done to logits before a token is drawn: upstream filters first and divides by the temperature then.

    Raises:
        KeywordError: an unknown filter, or a temperature that is none.
    """
    chosen = filter_of(chosen)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
        message = "a temperature is a number of at least 0; 0 takes the most probable token"
        raise KeywordError(message, path="temperature", value=temperature)
    if not callable(chosen):
        message = "a function of logits is needed, or a filter by name"
        raise KeywordError(message, path="filter_logits_fn", value=chosen, hint=", ".join(FILTER_LOGITS_FN))
    if temperature == 0:
        return []
    known = inspect.signature(chosen).parameters if chosen in (*FILTER_LOGITS_FN.values(), identity) else options or ()
    for name in options or ():
        if name not in known or name == "logits":
            names = [one for one in known if one != "logits"]
            message = f"{getattr(chosen, '__name__', chosen)} has no option {name!r}"
            raise KeywordError(message, path=f"filter_kwargs.{name}", hint=did_you_mean(name, names))
        if chosen in FILTER_LOGITS_FN.values():
            _check_option(name, options[name])  # type: ignore[index]
    return [partial(chosen, **(options or {})), lambda logits: logits / temperature]
