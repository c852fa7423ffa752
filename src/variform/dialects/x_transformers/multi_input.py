"""`MultiInputTransformerWrapper`: several kinds of tokens at each place, in and out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.x_transformers.answers import HEADS, HeadDraft
from variform.dialects.x_transformers.attention_layers import AttentionLayers
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.model import MODEL, ModelDraft, stack_path
from variform.dialects.x_transformers.read import resolved
from variform.dialects.x_transformers.table import REQUIRED, Route, Table, apply_all, problems_of, raise_any
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.errors import Problem, did_you_mean
from variform.parts.head.heads import LMHead
from variform.parts.head.joined import JoinedHead
from variform.stack.model import Transformer


@dataclass
class NamedHeads(HeadDraft):
    """One head for each kind of tokens."""

    sizes: Mapping[str, int] = field(default_factory=dict)

    def _logits(self, num_tokens: int, tied: Spec | None) -> Spec | None:
        if self.return_only_embed:
            return None
        return JoinedHead.spec(parts=[LMHead.spec(vocab_size=size) for size in self.sizes.values()])


@dataclass
class MultiInputDraft(ModelDraft):
    """A model of several kinds of tokens on its way to a spec."""

    heads: HeadDraft = field(default_factory=NamedHeads)


def _sizes(draft: Any, value: Mapping[str, int]) -> None:
    """The first kind is the model's own, the others are added to it."""
    draft.heads.sizes = dict(value)
    (_, draft.num_tokens), *rest = value.items()
    draft.embed_num_tokens = dict(rest)


TAKEN = (
    *("max_seq_len", "attn_layers", "emb_dim", "max_mem_len", "shift_mem_down", "emb_dropout", "emb_frac_gradient"),
    *("post_emb_norm", "num_memory_tokens", "memory_tokens_interspersed_every", "use_abs_pos_emb"),
    *("scaled_sinu_pos_emb", "attn_z_loss_weight"),
)
"""Keywords that are those of `TransformerWrapper`."""

MULTI_INPUT: Table = {
    "num_tokens": Route(REQUIRED, _sizes, types=(dict,)),
    **{name: MODEL[name] for name in TAKEN},
    "return_only_embed": HEADS["return_only_embed"],
}
"""Keyword -> what it does to a `MultiInputDraft`."""

CALL = (
    *("return_embeddings", "return_logits_and_embeddings", "return_intermediates", "return_mems", "return_attn"),
    *("return_attn_z_loss", "attn_z_loss_weight", "mask", "mems", "mem_masks", "pos", "prepend_embeds", "prepend_mask"),
    *("sum_embeds", "seq_start_pos", "cache", "context", "context_mask", "attn_mask", "attn_bias"),
    *("self_attn_kv_mask", "condition", "in_attn_cond", "input_not_include_cache", "cache_age"),
)
"""Arguments of the forward method, as `TransformerWrapper` takes them."""

BESIDE = ("return_intermediates", "return_mems", "return_attn", "return_attn_z_loss")
"""Those for which something is returned beside the answer."""


class MultiInputTransformerWrapper(nn.Module):
    """A model of several kinds of tokens at each place, whose embeddings are added, described by upstream's keywords.

    What is built is a model of the core, `native`, which holds the very stack that was passed in; `spec` is its full
    description.

    Shapes:
        x: {name: [B, L] token ids} -> {name: [B, L, num_tokens[name]] logits}

    Args:
        num_tokens: {name: number of different tokens}.
        max_seq_len: longest sequence, where positions are learned.
        attn_layers: an `Encoder`, `Decoder` or other stack of this dialect.
        **keywords: see `MULTI_INPUT`.

    Raises:
        KeywordError: unknown or unsupported keywords, and values that do not fit; all at once.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        raise_any(problems_of(type(self).__name__, MULTI_INPUT, keywords, MULTI_INPUT))
        raise_any(_problems(keywords))
        draft, layers = MultiInputDraft(), keywords["attn_layers"]
        apply_all(draft, MULTI_INPUT, keywords)
        raise_any(draft.check(layers))
        native = build(resolved(draft.spec(layers)), ready={stack_path(draft): layers.native})
        self.net = TransformerWrapper.around(native, layers, draft)
        self.sizes: dict[str, int] = dict(keywords["num_tokens"])
        self.max_seq_len = draft.max_seq_len
        self.emb_dim = self.net.emb_dim

    @property
    def native(self) -> Transformer:
        """The model of the core."""
        return self.net.native

    @property
    def spec(self) -> Spec:
        """The full description of the model."""
        return self.native.spec

    @property
    def attn_layers(self) -> AttentionLayers:
        """The stack."""
        return self.net.attn_layers

    @property
    def unit_offset(self) -> bool:
        """Whether upstream's checkpoints of this model store the gains of norms less one."""
        return self.net.unit_offset

    @property
    def can_cache_kv(self) -> bool:
        """Whether tokens can be read one after another with cached keys and values."""
        return self.net.can_cache_kv

    @property
    def can_cache_kv_outside_max_seq_len(self) -> bool:
        """Whether nothing but the caller bounds the length: there are no absolute positions."""
        return self.net.can_cache_kv_outside_max_seq_len

    @property
    def upstream_keys(self) -> Mapping[str, str]:
        """Names of weights that the conversion would give otherwise."""
        first = next(iter(self.sizes))
        heads = {f"to_logits.{i}.weight": f"to_logits.{name}.weight" for i, name in enumerate(self.sizes)}
        return {**heads, "token_emb.emb.weight": f"embeds.{first}_embed.weight"}

    def forward(self, x: Mapping[str, Tensor], **call: Any) -> Any:
        """Run the model.

        Args:
            x: token ids of each kind.
            **call: see `CALL`; as `TransformerWrapper` takes them.
        """
        for name in call:
            if name not in CALL:
                hint = did_you_mean(name, CALL)
                raise KeywordError(f"{type(self).__name__} has no argument {name!r}", path=name, hint=hint)
        given = ", ".join(x) if hasattr(x, "keys") else type(x).__name__
        if not hasattr(x, "keys") or set(x) != set(self.sizes):
            raise InputError(f"ids of each kind are needed, a mapping of {', '.join(self.sizes)}; got {given}")
        first, *others = self.sizes
        out = self.net(x[first], embed_ids={name: x[name] for name in others}, **call)
        if not any(call.get(name) for name in BESIDE):
            return self._named(out, call)
        answer, *beside = out
        return (self._named(answer, call), *beside)

    def _named(self, answer: Any, call: Mapping[str, Any]) -> Any:
        """The logits by kind."""
        if call.get("return_logits_and_embeddings"):
            logits, hidden = answer
            return self._split(logits), hidden
        return answer if call.get("return_embeddings") or self.native.head is None else self._split(answer)

    def _split(self, logits: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.sizes, logits.split(list(self.sizes.values()), -1), strict=True))  # type: ignore[no-untyped-call]


def _problems(keywords: Mapping[str, Any]) -> list[Problem]:
    sizes = keywords["num_tokens"]
    if not sizes:
        return [Problem("num_tokens", "at least one kind of tokens is needed: {name: number of tokens}", sizes)]
    return [
        Problem(f"num_tokens.{name}", "a positive number of tokens is needed", size)
        for name, size in sizes.items()
        if not isinstance(size, int) or isinstance(size, bool) or size < 1
    ]
