"""`generate` and `beam_search` of upstream's wrappers, as calls of the core's decoding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from variform.dialects.x_transformers.asked import taken
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.errors import ConfigError, ShapeError, did_you_mean
from variform.generate.contrast import Contrast

if TYPE_CHECKING:
    from variform.dialects.x_transformers.autoregressive_wrapper import AutoregressiveWrapper

Prompts = Tensor | Sequence[Tensor]

SIDE_STREAMS = {
    "context": "context",
    "context_mask": "context_mask",
    "condition": "condition",
    "prepend_embeds": "prefix",
    "prepend_mask": "prefix_valid",
}
"""Arguments of the model that mean the same for every token -> what the core calls them."""

RUNS = ("recycle_steps", "looped_steps", "max_looped_steps", "looped_exit_prob_threshold")
"""Those that say how often layers run, see `Asked`."""

UPSTREAM = {
    "max_new_tokens": "seq_len",
    "eos": "eos_token",
    "pad": "pad_value",
    "lengths": "prompt_lens",
    "prefix": "prepend_embeds",
    "prefix_valid": "prepend_mask",
    "exit": "looped_exit_prob_threshold",
    "return_state": "return_intermediates",
    "amateurs": "amateur_model",
    "backward": "tbptt_steps",
    "longest": "max_token_size",
}
"""What upstream calls the options of the core."""


FEATURES_STREAMS = ("context", "context_mask", "prepend_embeds", "prepend_mask")
"""Those that models of features, and of numbers, take while they generate."""


def refuse_others(method: Callable[..., Any], streams: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse arguments of the model that it does not take from token to token.

    Args:
        method: what was called; its own arguments may have been meant.
        streams: what is left of the arguments.
        known: those of the model.

    Raises:
        KeywordError: naming the first, and those that are known.
    """
    for name in streams:
        if name not in known:
            own = [one for one in inspect.signature(method).parameters if one not in ("self", "streams", "kwargs")]
            message = f"{method.__name__} has no argument {name!r}"
            raise KeywordError(message, path=name, hint=did_you_mean(name, (*own, *known)))


def check_count(value: Any, path: str = "seq_len") -> None:
    """How many tokens, or steps, a call asks for.

    Raises:
        KeywordError: it is no integer of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise KeywordError("must be an integer of at least 1", path=path, value=value)


def decoding_options(
    wrapper: AutoregressiveWrapper,
    prompts: Prompts,
    seq_len: int,
    prompt_lens: Tensor | None,
    eos_token: int | None,
    cache_kv: bool,
    restricted: bool,
    streams: Mapping[str, Any],
    owner: str,
) -> dict[str, Any]:
    """The options of the core that these arguments of `generate` or `beam_search` come to.

    Args:
        wrapper: whose method was called.
        prompts: token ids.
        seq_len: how many tokens to add.
        prompt_lens: [B] real tokens of prompts padded on the right.
        eos_token: ends a row.
        cache_kv: keep keys and values.
        restricted: whether the last `max_seq_len` tokens alone count.
        streams: further arguments of the model.
        owner: the method, for messages.

    Raises:
        KeywordError: an argument that the model does not take from token to token.
        InputError: the tokens do not fit, or layers cannot run as often as is asked for.
    """
    check_count(seq_len)
    known = (*SIDE_STREAMS, *RUNS)
    refuse_others(getattr(wrapper, owner), streams, known)
    given = {name: value for name, value in streams.items() if value is not None}
    asked = taken(given, looped_inference=wrapper.net.looped)
    asked.check(wrapper.net.draft)
    own = {SIDE_STREAMS[name]: value for name, value in given.items()}
    own |= {"passes": asked.passes, "exit": asked.exit, "lengths": prompt_lens, "eos": eos_token}
    options: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    longest, limit = wrapper.net.max_seq_len, wrapper.native.max_seq_len
    needed = length_of(prompts) + seq_len - 1
    if restricted and longest:
        options["window"] = longest
    elif limit is not None and needed > limit:
        message = f"{needed + 1} tokens do not fit the {limit} absolute positions"
        raise InputError(f"{message}: with restrict_to_max_seq_len=True the last {limit} tokens count")
    return {**options, "pad": wrapper.pad_value, "use_cache": cache_kv and wrapper.net.can_cache_kv}


def with_amateurs(
    expert: nn.Module, amateurs: Any, keywords: Mapping[str, float] | Sequence[Mapping[str, float]]
) -> nn.Module:
    """The expert and its amateurs as one model.

    Args:
        expert: a model of the core.
        amateurs: wrappers of this dialect; one, or several.
        keywords: `alpha` and `beta`, for all or for each.

    Raises:
        KeywordError: something else than a wrapper, or keywords that are not those.
    """
    several = amateurs if isinstance(amateurs, tuple | list) else (amateurs,)
    each = [keywords] * len(several) if isinstance(keywords, Mapping) else list(keywords)
    if len(each) != len(several):
        message = f"one mapping, or one for each of the {len(several)} amateurs"
        raise KeywordError(message, path="contrastive_decode_kwargs", value=keywords)
    for one in each:
        for name in one:
            if name not in ("alpha", "beta"):
                hint = did_you_mean(name, ("alpha", "beta"))
                raise KeywordError("contrastive decoding takes alpha and beta", path=name, hint=hint)
    natives = []
    for place, amateur in enumerate(several):
        native = getattr(amateur, "native", None)
        if native is None:
            message = f"an amateur is a TransformerWrapper or AutoregressiveWrapper, not {type(amateur).__name__}"
            raise KeywordError(message, path=f"amateur_model.{place}")
        natives.append(native)
    with in_upstream_terms():
        alphas, betas = [one.get("alpha", 0.1) for one in each], [one.get("beta", 0.5) for one in each]
        return Contrast(expert, natives, alpha=alphas, beta=betas)


def can_cache(amateurs: Any) -> bool:
    """Whether all amateurs can keep keys and values."""
    several: Sequence[Any] = amateurs if isinstance(amateurs, tuple | list) else (amateurs,)
    return all(getattr(amateur, "net", amateur).can_cache_kv for amateur in several)


@contextmanager
def in_upstream_terms() -> Iterator[None]:
    """Errors of the core, as those of this dialect and with upstream's names."""
    try:
        yield
    except ConfigError as error:
        if isinstance(error, KeywordError):
            raise
        problems = [replace(p, path=UPSTREAM.get(p.path, p.path)) for p in error.problems]
        raise KeywordError(problems) from None
    except ShapeError as error:
        raise InputError(str(error)) from None


def length_of(prompts: Prompts) -> int:
    """How many tokens the longest prompt has, padding included."""
    return prompts.shape[-1] if isinstance(prompts, Tensor) else max((len(p) for p in prompts), default=0)
