"""What the forward methods take: upstream's arguments, turned into the streams of the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.table import is_default
from variform.errors import did_you_mean
from variform.ops.masks import Dense, KeyPadding, Mask
from variform.stack.inputs import streams_read

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention_layers import AttentionLayers

HONOURED = (
    *("prefix_attn_len", "layers_execute_order", "repeat_blocks", "causal"),
    *("x", "context", "mask", "context_mask", "attn_mask", "self_attn_kv_mask", "pos", "seq_start_pos", "in_attn_cond"),
    *("attn_bias", "return_hiddens", "self_attn_additional_kv", "additional_kv_mask", "detach_additional_kv"),
    *("route_additional_kv_to_top", "self_attn_kv_residuals", "cross_attn_kv_residuals"),
    *("prepend_embeds", "prepend_mask", "excise_prepend_embeds", "return_embeddings", "return_logits_and_embeddings"),
    *("return_intermediates", "return_embeddings_and_intermediates", "return_logit_entropies", "return_attn"),
    *("return_next_embed_pred", "return_attn_z_loss", "attn_z_loss_weight", "cache", "input_not_include_cache"),
    *("cache_age", "recycle_steps", "looped_steps", "max_looped_steps", "looped_pred_all_logits", "looped_inference"),
    *("looped_exit_prob_threshold", "embed_ids", "sum_embeds", "to_logits_kwargs", "condition"),
    *("context_pos", "transform_block_inputs", "transform_token_embeds"),
    *("rotary_pos_emb", "polar_pos_emb"),
    *("mems", "mem_masks", "return_mems", "detach_mems"),
)


STACK_CALL: dict[str, Any] = {
    "seq_pos_offset": None,
    "cache": None,
    "input_not_include_cache": False,
    "cache_age": 1,
    "return_gumbel_log_probs": False,
    "deep_embeds_and_ids": None,
    "flash_pack_seq_kwargs": None,
    "flash_pack_seq_context_kwargs": None,
}
"""Arguments of a stack's forward that are known and not supported, with upstream's defaults."""

MODEL_CALL: dict[str, Any] = {
    **{name: default for name, default in STACK_CALL.items() if name not in HONOURED},
    "token_emb_kwargs": {},
}
"""The same of a model's forward."""


def refuse_call(owner: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse arguments that would change the result and are not supported, and those nobody knows."""
    for name, value in given.items():
        if name not in known:
            elsewhere = name in HONOURED and owner != "TransformerWrapper"
            others = [one for one in (*known, *HONOURED) if one != name]
            hint = "TransformerWrapper takes it" if elsewhere else did_you_mean(name, others)
            if name == "return_hiddens":
                hint = "layers alone take it; models tell as much with return_intermediates=True"
            raise KeywordError(f"{owner} has no argument {name!r}", path=name, hint=hint)
        if not is_default(value, known[name]):
            raise KeywordError(f"{owner}({name}=...) is not supported yet in this dialect", path=name, value=value)


def check_context(layers: AttentionLayers, context: Tensor | None) -> None:
    """A context is needed exactly where there is cross attention."""
    if layers.cross_attend and context is None:
        raise InputError("these layers cross attend: pass context=...")
    if context is not None and not layers.cross_attend:
        raise InputError("context was passed, and no layer cross attends: build with cross_attend=True")


def check_context_places(layers: AttentionLayers, places: Tensor | None) -> None:
    """Positions of a context are those of a rotation."""
    if places is None:
        return
    if not layers.rotates_context:
        raise InputError("context_pos was passed, and nothing goes by it: rotary_pos_emb and cross_attend do")
    if places.is_floating_point():
        raise InputError(f"context_pos is integers, not {places.dtype}")


def check_condition(layers: AttentionLayers, condition: Tensor | None) -> None:
    """A condition is needed exactly where parts go by one."""
    size = layers.dim_condition
    if size is not None and condition is None:
        raise InputError(f"these layers go by a condition: pass condition=..., [batch, {size}]")
    if condition is not None and size is None:
        raise InputError("condition was passed, and no part goes by one: build with use_adaptive_layernorm=True, say")
    if condition is not None and condition.shape[-1] != size:
        raise InputError(f"the condition has {size} features, and not {condition.shape[-1]}")


def check_mask(name: str, mask: Tensor | None, batch: int, length: int) -> None:
    """A mask over tokens is bool and has one entry for each."""
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != (batch, length)):
        kind = str(mask.dtype).removeprefix("torch.")
        raise InputError(f"{name} is bool of shape [{batch}, {length}], True = keep; got {kind} {list(mask.shape)}")


def attention_mask(attn_mask: Tensor | None, kv_mask: Tensor | None) -> Mask | None:
    """Upstream's masks of pairs and of keys as one mask: [L, L], [H, L, L] or [B, H, L, L]; [B, L]."""
    if attn_mask is not None and (attn_mask.dtype != torch.bool or attn_mask.dim() not in (2, 3, 4)):
        kind = str(attn_mask.dtype).removeprefix("torch.")
        raise InputError(
            f"attn_mask is bool, [L, L], [heads, L, L] or [batch, heads, L, L]; got {kind} {list(attn_mask.shape)}"
        )
    pairs = None if attn_mask is None else Dense(attn_mask, per="head" if attn_mask.dim() == 3 else None)
    keys = None if kv_mask is None else KeyPadding(kv_mask)
    return keys if pairs is None else pairs if keys is None else pairs & keys


def injected(condition: Tensor | None) -> Tensor | None:
    """What is added to every branch, [B, L, dim], or [B, dim] for all tokens of a row alike."""
    return condition.unsqueeze(1) if condition is not None and condition.dim() == 2 else condition


def two_way(layers: AttentionLayers, length: int | Tensor | None, x: Tensor, pos: Tensor | None) -> Tensor | None:
    """Below which position tokens are seen by all, [B]: so many tokens of each row are meant, wherever they stand."""
    if length is None:
        return None
    if not layers.prefixed:
        raise InputError("prefix_attn_len is an argument of models around a PrefixDecoder")
    if "two_way" not in streams_read(layers.native):
        raise InputError("prefix_attn_len has no effect: no layer attends to its own sequence")
    counts = torch.full((x.shape[0],), length, device=x.device) if isinstance(length, int) else length
    if pos is None:
        return counts
    places = torch.cat((pos, pos[..., -1:] + 1), -1).expand(x.shape[0], -1)
    return places.gather(1, counts.clamp(0, pos.shape[-1]).unsqueeze(1)).squeeze(1)


def placing(
    causal: bool, length: int, device: torch.device, mask: Tensor | None, pos: Tensor | None, start: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Positions and validity of the tokens by upstream's rule: a token's place in its row, padding or not.

    Args:
        causal: whether the layers are.
        length: tokens a row.
        device: where they are.
        mask: False at padding.
        pos: positions given by the caller.
        start: where each row begins; places count from there, and what lies before is padding.
    """
    if pos is not None:
        if start is not None:
            raise InputError("pos and seq_start_pos exclude one another: both say where tokens stand")
        if pos.is_floating_point():
            raise InputError(f"pos is integers, not {pos.dtype}: features of positions are of models of tokens alone")
        if causal and not torch.compiler.is_compiling() and not bool((pos.diff(dim=-1) > 0).all()):
            raise InputError("in causal layers pos must grow from token to token: a token sees smaller positions")
        return pos, mask
    if start is None:
        return (None if mask is None else torch.arange(length, device=device)), mask
    places = torch.arange(length, device=device)
    begun = places >= start.unsqueeze(1)
    return (places - start.unsqueeze(1)).clamp(min=0), begun if mask is None else begun & mask


def documents(packed: Mapping[str, Any], x: Tensor, mask: Tensor | None, attn_mask: Tensor | None) -> Tensor:
    """Which document each token of one row belongs to, from upstream's `flash_pack_seq_kwargs`.

    Args:
        packed: `cu_seqlens_q`, the documents' first places and the end of the last; `cu_seqlens_k`, the same, and
            `max_seqlen_q`, `max_seqlen_k` may be given and are not needed.
        x: [1, L, ...].
        mask, attn_mask: of the call, of which there must be none.

    Shapes: -> [1, L]

    Raises:
        InputError: places that do not cut the row.
    """
    known = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    for name in packed:
        if name not in known:
            raise InputError(f"flash_pack_seq_kwargs has no {name!r}; these are known: {', '.join(known)}")
    if mask is not None or attn_mask is not None:
        raise InputError("flash_pack_seq_kwargs excludes mask and attn_mask: documents are all that is told apart")
    ends = packed.get("cu_seqlens_q")
    if not isinstance(ends, Tensor) or ends.dim() != 1 or ends.is_floating_point() or len(ends) < 2:
        raise InputError("flash_pack_seq_kwargs needs cu_seqlens_q: integers [documents + 1], places in the row")
    same = packed.get("cu_seqlens_k", ends)
    if x.shape[0] != 1 or same.shape != ends.shape or not torch.equal(same, ends):
        raise InputError("packed documents stand in one row (a batch of one), the same for queries and keys")
    if int(ends[0]) != 0 or int(ends[-1]) != x.shape[1] or bool((ends.diff() < 0).any()):
        raise InputError(f"cu_seqlens_q grows from 0 to the {x.shape[1]} tokens of the row, not {ends.tolist()}")
    places = torch.arange(x.shape[1], device=x.device)
    return torch.searchsorted(ends.to(x.device), places, right=True)[None] - 1


def streams_of(
    layers: AttentionLayers,
    x: Tensor,
    mask: Tensor | None,
    context: Tensor | None,
    context_mask: Tensor | None,
    attn_mask: Tensor | None,
    kv_mask: Tensor | None,
    pos: Tensor | None,
    start: Tensor | None,
    condition: Tensor | None = None,
    context_pos: Tensor | None = None,
) -> dict[str, Any]:
    """The streams of one call of a stack."""
    check_context(layers, context)
    if context is None and context_mask is not None:
        raise InputError("context_mask was passed without context")
    check_condition(layers, condition)
    check_context_places(layers, context_pos)
    batch, length = x.shape[:2]
    check_mask("mask", mask, batch, length)
    check_mask("self_attn_kv_mask", kv_mask, batch, length)
    if context is not None:
        check_mask("context_mask", context_mask, batch, context.shape[1])
    positions, valid = placing(layers.causal, length, x.device, mask, pos, start)
    return {
        "positions": positions,
        "valid": valid,
        "segments": None,
        "mask": attention_mask(attn_mask, kv_mask),
        "context": context,
        "context_mask": context_mask,
        "context_positions": context_pos,
        "condition": condition,
    }
