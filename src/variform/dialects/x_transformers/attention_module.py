"""`Attention` by itself, over the sequence or over a context, and what the Muon optimiser asks of attentions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.x_transformers.attention.draft import AttentionDraft
from variform.dialects.x_transformers.attention.table import ATTENTION
from variform.dialects.x_transformers.beside import further_keys, longer, mixers_in_order
from variform.dialects.x_transformers.call import attention_mask, check_mask, refuse_call
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.intermediates import MIXERS, Intermediates
from variform.dialects.x_transformers.table import apply_all, problems_of, raise_any
from variform.errors import ConfigError, Problem
from variform.ops.attention.call import Call
from variform.ops.attention.meter import metering
from variform.ops.masks import KeyPadding, Mask
from variform.parts.beside import Beside, Deltas
from variform.parts.key_values.linear import LinearKeyValues
from variform.parts.kinds import FeedForward as NativeFeedForward
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.mixer.projected import ProjectedAttention
from variform.parts.mixer.projected_cross import ProjectedCrossAttention
from variform.weights.x_transformers import tiled_heads

REFUSED: dict[str, Any] = {
    **dict.fromkeys(("rotary_pos_emb", "context_rotary_pos_emb", "polar_pos_emb", "pos", "prev_attn"), None),
    **dict.fromkeys(("mem", "mem_mask", "cache", "value_residual", "flash_pack_seq_kwargs"), None),
}
"""Arguments of upstream's forward that stacks have and an attention by itself does not take, with their defaults."""

WHOLE: dict[str, Any] = {
    "rotate_num_heads": None,
    "learned_value_residual_mix": False,
    "qkv_receive_diff_residuals": False,
}
"""Keywords of upstream's `Attention` that make sense within a stack alone, with their defaults."""

Maps = MultiHead | CrossMultiHead | ProjectedAttention | ProjectedCrossAttention


class Attention(nn.Module):
    """An attention by itself, described by upstream's keywords.

    What is built is a mixer of the core, `native`, over the sequence itself, or over a context, where `dim_context` is
    another than `dim`. A context that has as many features as the sequence is read through the same maps.

    Shapes:
        x: [B, L, dim] -> [B, L, dim_out]; context: [B, Lc, dim_context]

    Args:
        dim: features in.
        dim_head: features of a head.
        dim_context: features of the context; `dim` by default.
        heads: number of heads.
        causal: a token sees itself and those before it.
        **keywords: see `variform.dialects.x_transformers.attention.table.ATTENTION`.

    Raises:
        KeywordError: unknown keywords, and values that do not fit; all at once.
    """

    def __init__(
        self,
        dim: int,
        dim_head: int = 64,
        dim_context: int | None = None,
        heads: int = 8,
        causal: bool = False,
        **keywords: Any,
    ) -> None:
        super().__init__()
        given = {"dim_head": dim_head, **keywords}
        whole = {name: given.pop(name) for name in WHOLE if name in given}
        problems = [
            Problem(name, "a stack of attentions has it, not one by itself", value)
            for name, value in whole.items()
            if value != WHOLE[name]
        ]
        read = {**given, "dim_context": dim_context}
        raise_any(problems + problems_of("Attention", ATTENTION, read, {**ATTENTION, **WHOLE}))
        elsewhere = dim_context is not None and dim_context != dim
        draft = AttentionDraft(dim, heads, causal and not elsewhere, "")
        apply_all(draft, ATTENTION, given)
        draft.dim_context = dim_context if elsewhere else None
        draft.options["alone"] = True
        raise_any(draft.check(cross=elsewhere))
        self.heads, self.key_heads, self.causal = heads, draft.key_heads, causal
        self.native = _built(draft, elsewhere)
        self.drop = nn.Dropout(draft.sublayer_dropout)

    @property
    def spec(self) -> Spec:
        """The full description of the mixer, the dropout of its result aside."""
        found: Spec = self.native.spec
        return found

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        rel_pos: Callable[[int, int], Tensor] | None = None,
        attn_bias: Tensor | None = None,
        *,
        return_intermediates: bool = False,
        additional_key_values: tuple[Tensor, Tensor] | None = None,
        additional_key_value_mask: Tensor | None = None,
        kv_input_residual: Tensor | None = None,
        q_delta: Tensor | None = None,
        k_delta: Tensor | None = None,
        v_delta: Tensor | None = None,
        o_delta: Tensor | None = None,
        attn_delta: Tensor | None = None,
        causal: bool | None = None,
        **more: Any,
    ) -> Any:
        """Attend.

        Args:
            x: features.
            context: of another sequence, whose keys and values are attended to.
            mask: [B, L] bool, True at real tokens; zeros come out at the others.
            context_mask: [B, Lk] bool, keys that may be attended.
            attn_mask: [L, Lk], [H, L, Lk] or [B, H, L, Lk] bool, True = may attend.
            rel_pos: from the numbers of queries and keys to a bias, [H, L, Lk].
            attn_bias: [L, Lk], [H, L, Lk] or [B, H, L, Lk], added to the scores.
            return_intermediates: (features, `Intermediates`).
            additional_key_values: further keys and values, [B, heads, M, dim_head] each.
            additional_key_value_mask: [B, M] bool.
            kv_input_residual: added to what keys and values are made of.
            q_delta, k_delta, v_delta, o_delta: added to queries, keys, values and what the heads give, [B, L, heads *
                features].
            attn_delta: [B, H, L, Lk], added to the weights.
            causal: as the attention was built.
            **more: upstream's other arguments, at their defaults.
        """
        refuse_call("Attention", REFUSED, more)
        if causal not in (None, self.causal):
            raise KeywordError(
                "whether an attention is causal is settled when it is built", path="causal", value=causal
            )
        keys = (x if context is None else context).shape[1]
        check_mask("mask", mask, x.shape[0], x.shape[1])
        check_mask("context_mask", context_mask, x.shape[0], keys)
        if rel_pos is not None:
            if attn_bias is not None:
                raise InputError("rel_pos and attn_bias exclude one another: both are the bias of the scores")
            attn_bias = rel_pos(x.shape[1], keys)
        mixer = self._mixer(context)
        deltas = self._deltas(Deltas(q_delta, k_delta, v_delta, o_delta, attn_delta))
        streams: dict[str, Any] = {} if deltas is None else {"deltas": deltas}
        beside = Beside()
        if additional_key_values is not None:
            k, v = additional_key_values
            beside = further_keys(self.heads, self.key_heads, k * longer(mixer), v, additional_key_value_mask)
        streams["beside"] = {mixer: beside._replace(added=kv_input_residual)}
        pairs = attention_mask(self._ordered(attn_mask, -3), None)
        if context is None:
            streams |= self._own(mask, context_mask, pairs, attn_bias)
        else:
            if attn_bias is not None:
                raise InputError("a bias over another sequence is not supported: leave attn_bias and rel_pos out")
            seen = None if context_mask is None else KeyPadding(context_mask)
            both = pairs if seen is None else seen if pairs is None else pairs & seen
            known = context_mask if pairs is None else both
            streams |= {"context": context, "context_mask": known}
        calls: list[Call] = []
        if return_intermediates:
            with metering(lambda call, backend: calls.append(call)):
                out = mixer(x, streams)
        else:
            out = mixer(x, streams)
        y: Tensor = self.drop(out[0] if isinstance(out, tuple) else out)
        y = y if mask is None else torch.where(mask.unsqueeze(-1), y, y.new_zeros(()))
        return (y, Intermediates(calls[-1], "a" if context is None else "c")) if return_intermediates else y

    def _own(self, mask: Tensor | None, seen: Tensor | None, pairs: Mask | None, bias: Tensor | None) -> dict[str, Any]:
        """Streams of attention over the sequence itself; a mask of keys stands in the place of that of tokens."""
        keys = None if seen is None else KeyPadding(seen)
        return {
            "valid": mask if seen is None else None,
            "mask": keys if pairs is None else pairs if keys is None else pairs & keys,
            "bias": self._ordered(bias, -3),
        }

    def _mixer(self, context: Tensor | None) -> Any:
        """The mixer of a call: over the sequence, or, through the same maps, over a context."""
        native = self.native
        if context is None and isinstance(native, ProjectedCrossAttention):
            raise InputError("this attention reads a context of its own width: pass context=...")
        if context is None or isinstance(native, ProjectedCrossAttention):
            return native
        other: ProjectedCrossAttention | None = self.__dict__.get("_across")
        if other is None:
            if not native.attention.able.cross:
                raise InputError("this attention reads its own sequence alone: leave context out")
            spec, shared = native.spec, ("keys", "query", "output", "attention", "q_norm", "k_norm")
            sizes = {name: spec[name] for name in ("dim", "heads", "dim_head", "kv_heads")}
            parts: dict[str, Any] = {name: getattr(native, name) for name in shared}
            # A view of the same modules, and none of this module's own.
            other = self.__dict__["_across"] = ProjectedCrossAttention(**sizes, **parts, dim_context=spec["dim"])
        return other

    def _order(self) -> Tensor | None:
        if self.key_heads in (1, self.heads):
            return None
        return torch.tensor(tiled_heads(self.heads, self.key_heads))

    def _ordered(self, x: Tensor | None, axis: int) -> Tensor | None:
        """Something of each query head, in this library's order of heads."""
        order = self._order()
        return x if x is None or order is None or x.dim() < 3 else x.index_select(axis, order.to(x.device))

    def _deltas(self, given: Deltas) -> Deltas | None:
        """With heads in this library's order; None where nothing is given."""
        if all(x is None for x in given):
            return None
        q, out = (None if x is None else self._features(x) for x in (given.q, given.out))
        return given._replace(q=q, out=out, weights=self._ordered(given.weights, 1))

    def _features(self, x: Tensor) -> Tensor:
        order = self._order()
        if order is None:
            return x
        cut = x.reshape(*x.shape[:-1], self.heads, -1)
        return cut.index_select(-2, order.to(x.device)).reshape(x.shape)

    def qk_clip_(self, pre_softmax_attn: Tensor | Intermediates, tau: float = 100.0) -> None:
        """Scale the maps of queries and keys down so that no score is above `tau` (Kimi K2, arXiv:2507.20534).

        Args:
            pre_softmax_attn: scores, [B, H, Lq, Lk], or the intermediates of a call.
            tau: the largest score.
        """
        clip_scores(self.native, pre_softmax_attn, tau)

    def muon_parameters(self) -> Iterator[nn.Parameter]:
        """The weights that the Muon optimiser is for: those of values and of the output map."""
        return iter(muon_weights(self.native))


def _built(draft: AttentionDraft, elsewhere: bool) -> Any:
    spec = (draft.cross_body(None) if elsewhere else draft.body(None, None))["body"]
    try:
        built = build(_projected(spec), dim=draft.dim, heads=draft.heads, causal=draft.causal)
    except ConfigError as error:
        raise KeywordError(error.problems) from None
    while not isinstance(built, (ProjectedAttention, ProjectedCrossAttention)):
        built = built.body  # what says how the output map begins has done so
    return built


def _projected(spec: Spec) -> Spec:
    """The mixer as one with slots for its maps, wherever in the description it stands."""
    if spec.part is MultiHead:
        return Spec(ProjectedAttention, dict(spec.args))
    if spec.part is CrossMultiHead:
        return Spec(ProjectedCrossAttention, dict(spec.args))
    body = spec.args.get("body")
    return spec.replace(body=_projected(body)) if isinstance(body, Spec) else spec


@torch.no_grad()
def clip_scores(mixer: Maps, scores: Tensor | Intermediates, tau: float) -> None:
    """Scale a mixer's maps of queries and keys so that scores of a head are at most `tau`.

    Both maps take the root of the factor where each query head has a key head of its own, else queries take all of it.
    """
    scores = scores if isinstance(scores, Tensor) else scores.pre_softmax_attn
    most = scores.amax((0, 2, 3))[tiled_heads(mixer.heads, mixer.kv_heads)]
    factor = torch.where(most > tau, tau / most, 1.0)
    q, k = _query_key_maps(mixer)
    paired = k is not None and mixer.heads == mixer.kv_heads
    rows = (factor.sqrt() if paired else factor).repeat_interleave(mixer.dim_head).unsqueeze(1)
    q.mul_(rows)
    if k is not None and paired:
        k.mul_(rows)


def _query_key_maps(mixer: Maps) -> tuple[Tensor, Tensor | None]:
    """Weights of the last map to queries, and of that to keys; None where keys are made otherwise."""
    if isinstance(mixer, (MultiHead, CrossMultiHead)):
        return mixer.q.weight, mixer.k.weight
    query: Any = mixer.query
    return query.out.weight, mixer.keys.k.weight if isinstance(mixer.keys, LinearKeyValues) else None


def muon_weights(mixer: Maps) -> list[nn.Parameter]:
    """Weights of the maps of values and of the output map."""
    if isinstance(mixer, (MultiHead, CrossMultiHead)):
        return [*mixer.v.parameters(), *mixer.out.parameters()]
    keys: Any = mixer.keys
    return [*keys.v.parameters(), *mixer.output.parameters()]


def clip_stack(layers: nn.Module, found: Sequence[Intermediates], tau: float) -> None:
    """`clip_scores` of each attention of a stack, by the intermediates of a call.

    Raises:
        InputError: these are of another stack.
    """
    mixers = mixers_in_order(layers)
    if len(mixers) != len(found):
        raise InputError(f"there are {len(mixers)} attentions, and the intermediates are of {len(found)}")
    for mixer, inner in zip(mixers, found, strict=True):
        clip_scores(mixer, inner, tau)


def muon_weights_of(layers: nn.Module) -> list[Tensor]:
    """The weights of a stack that the Muon optimiser is for: those of `muon_weights`, and of maps in feedforwards."""
    found: dict[Tensor, None] = {}
    for module in layers.modules():
        if isinstance(module, MIXERS):
            found |= dict.fromkeys(muon_weights(module))
        elif isinstance(module, NativeFeedForward):
            maps = [inner for inner in module.modules() if isinstance(inner, nn.Linear)]
            found |= dict.fromkeys(inner.weight for inner in maps)
    return list(found)
