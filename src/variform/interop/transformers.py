"""Attentions of the library in models of transformers (github.com/huggingface/transformers): BERT, GPT-2, Llama ...

transformers lets a function be registered as an implementation of attention; every attention module of a model then
calls it with its queries, keys and values. The function registered here, `variform`, looks whether the module was
given an attention of the library; modules that were not go on with the implementation they had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from variform.errors import ConfigError, ShapeError
from variform.interop.replacing import SLOT, Heads, Report, Where, With, choose, line_of
from variform.ops.masks import Dense, from_additive
from variform.ops.scores import DenseBias, ScoreMod, SoftCap

IMPLEMENTATION = "variform"
"""The name of the implementation in transformers."""

BEFORE = "variform_before"
"""Where a model's configuration keeps the implementation that it had."""


@dataclass(frozen=True)
class Asked:
    """What a mask that was made here stands for.

    Args:
        causal: queries see keys at or before them.
        valid: [B, Lk] bool, which keys are real, where any is not.
        q_offset: the position of the first query.
    """

    causal: bool
    valid: Tensor | None
    q_offset: int


def replace_attention(model: Any, *, where: Where = "*", with_: With = "softmax", **facts: Any) -> Report:
    """Replace attentions of a transformers model in place; all its weights stay, under their names.

    Parameters that come with the new attention are part of the model (`<path>.variform_heads...`). Rotary positions,
    grouped keys, the key-value cache and the model's masks are the model's own as before. A mask that the new attention
    cannot honour is refused when the model runs, and so is a cache where it needs all queries.

    Args:
        model: a `PreTrainedModel`.
        where: which attentions, by path (`model.layers.0.self_attn`) or a function of path and module.
        with_: the name or the spec of an attention over heads, or a mask (True = may attend) for softmax attention.
        **facts: what an attention takes from its surroundings (`max_seq_len`, by default the model's positions).

    Raises:
        ConfigError: a pattern fits nothing; cross attention; the new attention does not fit; transformers is missing.
    """
    _register()
    found = {path: module for path, module in model.named_modules() if _is_attention(module)}
    paths = choose(found, where, "an attention module of transformers that takes other implementations")
    facts = {"max_seq_len": getattr(model.config, "max_position_embeddings", None), **facts}
    made = {path: _heads(path, found[path], with_, facts) for path in paths}  # all or nothing
    for path, heads in made.items():
        found[path].add_module(SLOT, heads)
    before = model.config._attn_implementation
    if before != IMPLEMENTATION:
        _with_fallback(model, before)
    lines = tuple(line_of(path, type(found[path]).__name__, found[path]) for path in made)
    left = tuple(path for path, module in found.items() if getattr(module, SLOT, None) is None)
    return Report(lines, left)


def _with_fallback(model: Any, before: str) -> None:
    model.set_attn_implementation(IMPLEMENTATION)
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            setattr(config, BEFORE, before)


def _heads(path: str, module: Any, with_: With, facts: dict[str, Any]) -> Heads:
    if not hasattr(module, "is_causal"):
        raise ConfigError(f"{type(module).__name__} does not say whether it is causal", path=path)
    if getattr(module, "is_cross_attention", False) or "Cross" in type(module).__name__:
        raise ConfigError("a cross attention is not replaced", path=path, hint="leave it out of where=")
    dim_head, heads, kv_heads = _sizes(module)
    try:
        made = Heads(
            with_,
            _dropout(module),
            heads=heads,
            kv_heads=kv_heads,
            dim_head=dim_head,
            causal=bool(module.is_causal),
            **facts,
        )
    except ConfigError as error:
        raise ConfigError(str(error), path=path) from None
    weight = next(module.parameters())
    return made.to(weight.device, weight.dtype).train(module.training)


def _sizes(module: Any) -> tuple[int, int, int]:
    """Features of a head, heads, key heads: by the names that models give them."""
    config = module.config
    dim_head = getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
    heads = getattr(module, "num_heads", None) or getattr(module, "num_attention_heads", None)
    heads = heads or config.num_attention_heads
    groups = getattr(module, "num_key_value_groups", 1)
    if dim_head is None:
        raise ConfigError(f"{type(module).__name__} does not tell the size of its heads")
    return int(dim_head), int(heads), int(heads) // int(groups)


def _dropout(module: Any) -> float:
    for name in ("attention_dropout", "attn_dropout", "dropout"):
        rate = getattr(module, name, None)
        if rate is not None:
            return float(getattr(rate, "p", rate))
    return 0.0


def _is_attention(module: nn.Module) -> bool:
    """Whether a module calls the implementation: it has a configuration, a scale of scores and says if it is causal."""
    return all(hasattr(module, name) for name in ("config", "scaling", "is_causal"))


def _register() -> None:
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError:
        raise ConfigError("transformers is not installed", hint="pip install 'variform[hf]'") from None
    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, make_mask)


def make_mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0, **given: Any
) -> Tensor:
    """The model's mask as bool [B, 1, Lq, Lk], with a note of what it stands for where that is simple."""
    from transformers import masking_utils as hf

    given |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Any = hf.sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, **given)
    function = given.get("mask_function", hf.causal_mask_function)
    simple = {hf.causal_mask_function: True, hf.bidirectional_mask_function: False}
    if function in simple and kv_offset == 0:
        valid = hf.prepare_padding_mask(given.get("attention_mask"), kv_length, kv_offset)
        real = None if valid is None or bool(valid.all()) else valid.bool()
        mask.variform = Asked(simple[function], real, int(q_offset))
    return mask  # type: ignore[no-any-return]


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **given: Any,
) -> tuple[Tensor, Tensor | None]:
    """The implementation `variform` of transformers' attention.

    Shapes:
        query: [B, H, Lq, D], key, value: [B, Hk, Lk, D] -> [B, Lq, H, D]; attention_mask: [B, 1, Lq, Lk]

    Raises:
        ShapeError: something that the module's attention cannot honour.
    """
    heads: Heads | None = getattr(module, SLOT, None)
    if heads is None:
        given |= {"dropout": dropout, "scaling": scaling, "position_bias": position_bias, "softcap": softcap}
        found: tuple[Tensor, Tensor | None] = _fallback(module)(module, query, key, value, attention_mask, **given)
        return found
    _refuse_unknown(given)
    attention: Any = heads.attention
    if module.training and hasattr(attention, "dropout"):
        attention.dropout = dropout
    scores: tuple[ScoreMod, ...] = () if position_bias is None else (DenseBias(position_bias),)
    scores += () if softcap is None else (SoftCap(softcap),)
    call = _read(heads, attention_mask, query, key)
    y = heads(query, key, value, scores=(*call.pop("scores", ()), *scores), scale=scaling, **call)
    return y.transpose(1, 2).contiguous(), None


def _read(heads: Heads, given: Tensor | None, query: Tensor, key: Tensor) -> dict[str, Any]:
    """The mask as what `Heads` takes."""
    causal = bool(getattr(heads.attention, "causal", False))
    length, keys = query.shape[2], key.shape[2]
    asked: Asked | None = getattr(given, "variform", None)
    if given is None:
        asked = Asked(causal, None, keys - length)
    if asked is not None and asked.causal == causal:
        return {"k_valid": asked.valid, **_placed(heads, asked, length, keys, query.device)}
    assert given is not None
    offset = 0 if asked is None else asked.q_offset
    whole = Asked(causal, None, keys - length if asked is None else offset)
    placed = _placed(heads, whole, length, keys, query.device)
    if given.dtype == torch.bool:
        return {"mask": Dense(given), **placed}
    smallest = torch.finfo(given.dtype).min
    if bool(((given == 0) | (given <= smallest)).all()):
        return {"mask": from_additive(torch.where(given <= smallest, -torch.inf, given)), **placed}
    return {"scores": (DenseBias(given),), **placed}


def _placed(heads: Heads, asked: Asked, length: int, keys: int, device: torch.device) -> dict[str, Any]:
    """Positions, where queries and keys do not both count from 0.

    Raises:
        ShapeError: an attention without scores keeps another state than the model's cache of keys and values.
    """
    if length == keys and asked.q_offset == 0:
        return {}
    if not heads.attention.takes_scores:
        raise ShapeError(f"the attention {heads.label!r} does not read the model's cache: pass use_cache=False")
    count = torch.arange(max(length + asked.q_offset, keys), device=device)
    return {"positions": (count[asked.q_offset : asked.q_offset + length], count[:keys])}


def _fallback(module: Any) -> Any:
    from transformers import AttentionInterface

    before = getattr(module.config, BEFORE, "sdpa")
    known: Any = AttentionInterface()  # type: ignore[no-untyped-call]
    return known["sdpa" if before not in known else before]  # eager has no entry, and computes the same as sdpa


def _refuse_unknown(given: dict[str, Any]) -> None:
    """Options that would change the result and have no place here."""
    if given.get("output_attentions"):
        raise ShapeError("a replaced attention gives no attention maps: leave out output_attentions")
    for name in ("s_aux", "sinks", "head_mask"):
        if given.get(name) is not None:
            raise ShapeError(f"a replaced attention cannot honour {name!r} of this model")
