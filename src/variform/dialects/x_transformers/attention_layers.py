"""`AttentionLayers` and its named forms: stacks that can be used by themselves or inside a wrapper."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.x_transformers.attention_module import clip_stack, muon_weights_of
from variform.dialects.x_transformers.beside import Lent, heads_in_order
from variform.dialects.x_transformers.call import STACK_CALL, documents, injected, refuse_call, streams_of, two_way
from variform.dialects.x_transformers.causality import layers_with
from variform.dialects.x_transformers.changes import Changes, layers_changed
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.intermediates import LayerIntermediates, recording
from variform.dialects.x_transformers.memory import memories_of
from variform.dialects.x_transformers.read import read_layers
from variform.dialects.x_transformers.reorder import Repeats, block_size, layers_in_order, takes_orders
from variform.dialects.x_transformers.rotations import Angles, layers_turned
from variform.dialects.x_transformers.stack_call import deep_gains, places_from
from variform.dialects.x_transformers.table import REQUIRED
from variform.parts.kinds import Stack
from variform.stack.remembering import check_taken, recall_of
from variform.stack.tapped import Change


class AttentionLayers(nn.Module):
    """A stack of attention and feedforward layers, described by upstream's keywords.

    What is built is a stack of the core, `native`; `spec` is its full description.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]; context: [B, Lc, dim_context]

    Args:
        dim: features.
        depth: number of blocks.
        heads: number of heads, of `attn_dim_head` (64) features each.
        **keywords: see `variform.dialects.x_transformers.routes.KNOWN`.

    Raises:
        KeywordError: unknown or unsupported keywords, and values that do not fit; all at once.
    """

    prefixed: ClassVar[bool] = False
    """Whether some tokens at the beginning of a row may see one another both ways."""
    scope: str = ""
    """What the names of shared parts begin with."""
    order: tuple[int, ...] | None = None
    """The order of sublayers that a call asked for; None for that of the layers themselves."""

    def __init__(self, dim: int = REQUIRED, depth: int | None = None, heads: int = 8, **keywords: Any) -> None:
        super().__init__()
        given = {"depth": depth, "heads": heads, **keywords, **({} if dim is REQUIRED else {"dim": dim})}
        draft, spec = read_layers(type(self).__name__, given, self.prefixed, self.scope)
        self.dim = draft.dim
        self.heads = self.attn_heads = draft.heads
        self.attn_dim_head = draft.dim_head
        self.depth = draft.depth
        self.pre_and_post_norm = draft.pre_and_post_norm
        self.causal = draft.causal
        self.encodes = not draft.causal or self.prefixed  # whatever a call asks for
        self.cross_attend = draft.cross_attend
        self.depth_scaled = draft.residuals.starts_by_depth or draft.residuals.beta != 1.0
        self.disable_abs_pos_emb = draft.without_positions
        self.unit_offset = draft.norm_add_unit_offset
        self.dim_condition = draft.condition
        self.rotates_context = draft.cross_attend and draft.positions.rotates
        self.block_size = block_size(draft)
        self.gain_count = 0 if draft.only_attn else draft.runs
        self.native: Stack = build(spec)

    @classmethod
    def within(cls, scope: str, **keywords: Any) -> Self:
        """Layers of a model that holds others beside them, with which they share no part."""
        layers = cls.__new__(cls)
        layers.__dict__["scope"] = scope
        cls.__init__(layers, **keywords)
        return layers

    @property
    def spec(self) -> Spec:
        """The full description of the stack."""
        return self.native.spec

    def attn_qk_clip_(self, intermediates: LayerIntermediates, tau: float = 100.0) -> None:
        """Scale the maps of queries and keys down so that no score of a call is above `tau` (arXiv:2507.20534)."""
        clip_stack(self.native, intermediates.attn_intermediates, tau)

    def muon_parameters(self) -> list[Tensor]:
        """The weights that the Muon optimiser is for: of values, output maps and feedforwards."""
        return muon_weights_of(self.native)

    def reordered(self, order: Sequence[int] | None, repeat_blocks: Repeats | None = None) -> AttentionLayers:
        """A view of these layers, of the same modules, in which the sublayers run in another order."""
        return layers_in_order(self, order, repeat_blocks)

    def with_causality(self, causal: bool) -> AttentionLayers:
        """A view of these layers, of the same modules, whose self-attention looks back alone, or not."""
        return layers_with(self, causal)

    def with_changes(self, blocks: Changes | None, tokens: Change | None = None) -> AttentionLayers:
        """A view of these layers, of the same modules, in which the inputs of blocks are changed on their way."""
        if tokens is not None:
            raise InputError("transform_token_embeds is an argument of models: layers alone have no tokens")
        return layers_changed(self, blocks)

    def with_angles(self, rotary: Angles | None, polar: Angles | None) -> AttentionLayers:
        """A view of these layers, of the same modules, in which self-attention goes by given angles."""
        return layers_turned(self, rotary, polar)

    @takes_orders
    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        self_attn_kv_mask: Tensor | None = None,
        *,
        pos: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        condition: Tensor | None = None,
        context_pos: Tensor | None = None,
        in_attn_cond: Tensor | None = None,
        prefix_attn_len: int | Tensor | None = None,
        mems: Sequence[Tensor] | None = None,
        mem_masks: Sequence[Tensor | None] | None = None,
        return_hiddens: bool = False,
        **more: Any,
    ) -> Any:
        """Run the stack.

        Args:
            x: features.
            context: what cross attention reads.
            mask: [B, L] bool, True at real tokens.
            context_mask: [B, Lc] bool, True at real tokens of the context.
            attn_mask: [L, L], [H, L, L] or [B, H, L, L] bool, True = may attend.
            self_attn_kv_mask: [B, L] bool, keys that may be attended.
            pos: [L] or [B, L] positions.
            seq_start_pos: [B] where each row begins, of rows padded on the left.
            context_pos: [Lc] or [B, Lc] positions of the context, by which rotary cross attention rotates.
            condition: [B, C] or [B, L, C] for adaptive parts.
            in_attn_cond: [B, L, dim] or [B, dim], added to what every sublayer reads.
            prefix_attn_len: how many tokens at the beginning are seen by all, of a `PrefixDecoder`; [B] for each row.
            mems: [B, M, dim] a self-attention, of earlier segments, which it reads besides.
            mem_masks: [B, M] bool, True at what is remembered; a list has one for each self-attention.
            return_hiddens: (the result, `LayerIntermediates`).
            **more: `attn_bias`, floats like attn_mask that are added to the scores of self-attention; those of `Lent`;
                `flash_pack_seq_kwargs`, the documents of one row; `seq_pos_offset`, the position of the first token;
                `deep_embeds_and_ids`, [V, feedforwards, dim] and [B, L], what feedforwards are multiplied by;
                `return_gumbel_log_probs`, as `return_hiddens`; those of `takes_orders`; upstream's other arguments, at
                their defaults.
        """
        bias, packed = more.pop("attn_bias", None), more.pop("flash_pack_seq_kwargs", None)
        lent = Lent.taken(more)
        attn_mask, bias = (
            heads_in_order(self.native, *given) for given in ((attn_mask, "attn_mask"), (bias, "attn_bias"))
        )
        return_hiddens = more.pop("return_gumbel_log_probs", False) or return_hiddens
        gains = deep_gains(more.pop("deep_embeds_and_ids", None), x, self.gain_count)
        pos = places_from(more.pop("seq_pos_offset", None), x, pos, seq_start_pos)
        refuse_call(type(self).__name__, STACK_CALL, more)
        placed = (pos, seq_start_pos, condition, context_pos)
        streams = streams_of(self, x, mask, context, context_mask, attn_mask, self_attn_kv_mask, *placed)
        streams["injected"] = injected(in_attn_cond)
        streams["two_way"] = two_way(self, prefix_attn_len, x, pos)
        if bias is not None:
            streams["bias"] = bias
        beside = lent.beside(self.native)
        if beside is not None:
            streams["beside"] = beside
        if gains is not None:
            streams["token_gains"] = gains
        if packed is not None:
            streams["segments"] = documents(packed, x, mask, attn_mask)
            streams["positions"] = torch.arange(x.shape[1], device=x.device) if pos is None else pos
        with recording(self.native) if return_hiddens else nullcontext() as recorder:
            if recorder is not None:
                streams["watch"] = recorder
            y = self._run(x, streams, mems, mem_masks)
        return y if recorder is None else (y, recorder.found)

    def _run(
        self,
        x: Tensor,
        streams: dict[str, Any],
        mems: Sequence[Tensor] | None,
        mem_masks: Sequence[Tensor | None] | None,
    ) -> Tensor:
        if mems is None and mem_masks is None:
            out = self.native(x, streams)
            assert isinstance(out, Tensor)
            return out
        memories = memories_of(mems, mem_masks, 0, 0)
        recall = recall_of(memories, self.native, streams, x.shape[0], None)
        out = self.native(x, {**streams, "memories": recall})
        if isinstance(out, Tensor):
            raise InputError("mems were passed, and no layer that runs attends to its own sequence")
        y, published = out
        check_taken(published["memories"])
        return y


class Encoder(AttentionLayers):
    """Layers in which every token sees every other."""

    def __init__(self, **keywords: Any) -> None:
        _refuse_causal("Encoder", keywords)
        super().__init__(**keywords)


class Decoder(AttentionLayers):
    """Layers in which a token sees itself and those before it."""

    def __init__(self, **keywords: Any) -> None:
        _refuse_causal("Decoder", keywords)
        super().__init__(causal=True, **keywords)


class PrefixDecoder(AttentionLayers):
    """Layers in which a token sees itself and those before it, and a prefix is seen by all."""

    prefixed: ClassVar[bool] = True

    def __init__(self, **keywords: Any) -> None:
        _refuse_causal("PrefixDecoder", keywords)
        super().__init__(causal=True, **keywords)


class TransformerBlock(AttentionLayers):
    """One block, or several, without a final norm."""

    def __init__(self, dim: int = REQUIRED, **keywords: Any) -> None:
        super().__init__(dim, **{"depth": 1, "pre_norm_has_final_norm": False, **keywords})


class CrossAttender(AttentionLayers):
    """Layers of cross attention and feedforward, without self-attention."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**{"cross_attend": True, "only_cross": True, **keywords})


def _refuse_causal(name: str, keywords: dict[str, Any]) -> None:
    if "causal" in keywords:
        hint = "AttentionLayers(causal=...) takes it"
        raise KeywordError(f"{name} settles causality itself", path="causal", value=keywords["causal"], hint=hint)
