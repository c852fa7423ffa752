"""`XValTransformerWrapper`: numbers among tokens; `XValAutoregressiveWrapper`: the next token and number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from variform.core.spec import Shared, Spec
from variform.dialects.x_transformers.around import AROUND, AroundDraft, AroundWrapper
from variform.dialects.x_transformers.attention_layers import AttentionLayers
from variform.dialects.x_transformers.decoding import FEATURES_STREAMS, check_count, refuse_others
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.filters import filters_of, top_k
from variform.dialects.x_transformers.table import REQUIRED, Route, Table, kept, problems_of, put, raise_any
from variform.errors import Problem
from variform.generate.readers import evaluating
from variform.generate.samplers import draw
from variform.parts.embedding.numbers import NumberEmbedding
from variform.parts.embedding.placed import PlacedEmbedding
from variform.parts.embedding.prefixed import PrefixedEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.head.heads import LinearHead, LMHead, TiedLMHead
from variform.parts.head.joined import JoinedHead
from variform.wrappers.numbers import MixedReader, generate_mixed, mixed_errors
from variform.wrappers.reading import Reading


class LossBreakdown(NamedTuple):
    """The errors of each target, [B, L - 1]."""

    cross_entropy_loss: Tensor
    numerical_mse_loss: Tensor


class GenerateReturn(NamedTuple):
    """What was generated, [B, seq_len] each; numbers are NaN where the token is none."""

    sampled_token_ids: Tensor
    sampled_numbers: Tensor
    is_number_mask: Tensor


@dataclass
class XValDraft(AroundDraft):
    """A model of tokens and numbers on its way to a spec."""

    num_tokens: int = 0
    numerical_token_id: int = 0
    emb_dim: int | None = None
    logits_dim: int | None = None
    tie_embedding: bool = False
    tie_embedding_scale: float | None = None

    def ends(self, dim: int, position: Spec | None) -> dict[str, Any]:
        """Tokens scaled by numbers; logits and, behind them, a number."""
        vectors = TokenEmbedding.spec(vocab_size=self.num_tokens, dim=dim, init_std=(2 / dim) ** 0.5)
        tokens: Spec | Shared = vectors
        if self.tie_embedding:
            tokens = Shared("tokens", vectors)
            scale = dim**-0.5 if self.tie_embedding_scale is None else float(self.tie_embedding_scale)
            logits = TiedLMHead.spec(embedding=tokens, scale=scale)
        else:
            logits = LMHead.spec(vocab_size=self.logits_dim or self.num_tokens, bias=True)
        inner = NumberEmbedding.spec(embedding=tokens, number_id=self.numerical_token_id)
        if position is not None:
            inner = PlacedEmbedding.spec(embedding=inner, position=position)
        return {
            "vocab_size": self.num_tokens,
            "embedding": PrefixedEmbedding.spec(embedding=inner, dropout=self.emb_dropout),
            "head": JoinedHead.spec(parts=[logits, LinearHead.spec(outputs=1, bias=True)]),
        }

    def check(self, layers: AttentionLayers) -> list[Problem]:
        """Sizes, and what a tied head excludes."""
        found, dim = super().check(layers), layers.dim
        for name in ("num_tokens", "logits_dim"):
            if (getattr(self, name) or (name == "logits_dim")) < 1:
                found.append(Problem(name, "must be positive", getattr(self, name)))
        if not 0 <= self.numerical_token_id < max(1, self.num_tokens):
            message = f"must be one of the {self.num_tokens} tokens"
            found.append(Problem("numerical_token_id", message, self.numerical_token_id))
        if self.emb_dim not in (None, dim):
            message = f"there is no map from it to the layers' {dim} features; leave it out"
            found.append(Problem("emb_dim", message, self.emb_dim))
        if self.tie_embedding and self.logits_dim is not None:
            found.append(Problem("tie_embedding", "a tied head has one logit a token; leave logits_dim out"))
        return found


XVAL: Table = {
    **AROUND,
    "num_tokens": Route(REQUIRED, put("num_tokens"), types=(int,)),
    "max_seq_len": Route(REQUIRED, put("max_seq_len"), types=(int,)),
    "numerical_token_id": Route(REQUIRED, put("numerical_token_id"), types=(int,)),
    "emb_dim": Route(None, put("emb_dim"), types=(int,)),
    "logits_dim": Route(None, put("logits_dim"), types=(int,)),
    "tie_embedding": Route(False, put("tie_embedding")),
    "tie_embedding_scale": Route(None, put("tie_embedding_scale"), needs="tie_embedding", types=(int, float)),
}
"""Keyword -> what it does to an `XValDraft`."""


class XValTransformerWrapper(AroundWrapper):
    """A model of tokens and numbers (Golkar et al. 2023, arXiv:2310.02989), described by upstream's keywords.

    A number is the vector of one token, multiplied by it. What is built is a model of the core, `native`, which holds
    the very stack that was passed in; `spec` is its full description.

    Shapes:
        x: [B, L] token ids, x_num: [B, L] floats -> ([B, L, num_tokens] logits, [B, L] numbers)

    Args:
        num_tokens: number of different tokens.
        max_seq_len: longest sequence, where positions are learned.
        numerical_token_id: the token that stands for numbers.
        attn_layers: an `Encoder`, `Decoder` or other stack of this dialect.
        logits_dim: another number of logits.
        tie_embedding: logits by the tokens' own vectors, times dim**-0.5.
        tie_embedding_scale: another factor; 1.0 for models of 2.26, which have none. Upstream has it in
            `TransformerWrapper` alone.
        **keywords: see `XVAL`.

    Raises:
        KeywordError: unknown or unsupported keywords, and values that do not fit; all at once.
    """

    table: ClassVar[Table] = XVAL
    draft: ClassVar[type[AroundDraft]] = XValDraft

    def _hold(self, draft: XValDraft) -> None:
        self.numerical_token_id = draft.numerical_token_id
        self.num_tokens = draft.num_tokens
        self.emb_dim = draft.emb_dim or self.native.dim

    @property
    def upstream_keys(self) -> Mapping[str, str]:
        """Names of weights that the conversion would give otherwise."""
        return {
            f"to_logits.{index}.{own}": f"{name}.{own}"
            for index, name in enumerate(("to_logits", "to_numerical_output.0"))
            for own in ("weight", "bias")
        }

    def forward(self, x: Tensor, x_num: Tensor, return_embeddings: bool = False, **streams: Any) -> Any:
        """Run the model.

        Args:
            x: token ids.
            x_num: the numbers; what stands at other tokens does not matter.
            return_embeddings: the hidden states in place of the answers.
            **streams: `mask, pos, seq_start_pos, prepend_embeds, prepend_mask, context, context_mask, attn_mask,
                self_attn_kv_mask, attn_bias, condition, in_attn_cond, mems, mem_masks`, and `return_mems,
                return_intermediates, return_attn`, see `AroundWrapper.hidden`; upstream's others, at their defaults.
        """
        if x.dim() != 2 or x.shape != x_num.shape:
            raise InputError(
                f"ids and numbers have one shape [batch, length]; got {list(x.shape)}, {list(x_num.shape)}"
            )
        found = self.hidden(x, streams={"numbers": x_num}, **streams)
        return found.answered(found.hidden if return_embeddings else self._split(found.hidden))

    def _split(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        assert self.native.head is not None
        answer = self.native.head(hidden, {})
        return answer[..., :-1], answer[..., -1]


KEYWORDS: Table = {
    "ignore_index": Route(-100, kept, types=(int,)),
    "pad_value": Route(0, kept, types=(int,)),
    "numerical_loss_weight": Route(1.0, kept, types=(int, float)),
}


class XValAutoregressiveWrapper(nn.Module):
    """Trains an `XValTransformerWrapper` around a causal stack to predict the next token and number, and samples it.

    Shapes:
        x: [B, L] token ids, x_num: [B, L] floats -> the loss, a scalar

    Args:
        net: the model.
        ignore_index: targets of this value do not count.
        pad_value: what ignored inputs are replaced by.
        numerical_loss_weight: factor on the squared errors of numbers.
        **keywords: none; unknown ones are refused.

    Raises:
        KeywordError: unknown keywords, a model that cannot be trained so.
    """

    def __init__(
        self,
        net: nn.Module,
        ignore_index: int = -100,
        pad_value: int = 0,
        numerical_loss_weight: float = 1.0,
        **keywords: Any,
    ) -> None:
        super().__init__()
        own = {"ignore_index": ignore_index, "pad_value": pad_value, "numerical_loss_weight": numerical_loss_weight}
        raise_any(problems_of(type(self).__name__, KEYWORDS, {**own, **keywords}, KEYWORDS))
        if not isinstance(net, XValTransformerWrapper):
            raise KeywordError(f"net is an XValTransformerWrapper, not {type(net).__name__}", path="net")
        if not net.native.causal:
            hint = "build the wrapper around a Decoder"
            raise KeywordError("the next token cannot be learned by layers that see it", path="net", hint=hint)
        self.net = net
        self.max_seq_len = net.max_seq_len
        self.ignore_index = ignore_index
        self.pad_value = pad_value
        self.numerical_loss_weight = numerical_loss_weight

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Where upstream's checkpoints have what."""
        return {"net.": self.net}

    @property
    def spec(self) -> Spec:
        """The full description of the model."""
        return self.net.spec

    def forward(
        self,
        x: Tensor,
        x_num: Tensor,
        return_loss_breakdown: bool = False,
        *,
        mask: Tensor | None = None,
        **streams: Any,
    ) -> Any:
        """The mean over the targets of both errors added up.

        Args:
            x: token ids.
            x_num: the numbers; what stands at other tokens does not matter.
            return_loss_breakdown: return (loss, `LossBreakdown`).
            mask: [B, L] bool, True at real tokens, or [B, L - 1], True where the target is real.
            **streams: further arguments of the model.
        """
        if x.dim() != 2 or x.shape[1] < 2 or x.shape != x_num.shape:
            shapes = f"{list(x.shape)} and {list(x_num.shape)}"
            raise InputError(
                f"ids and numbers of one shape [batch, length] are needed, two or more a row; got {shapes}"
            )
        if streams.get("prepend_embeds") is not None:
            raise InputError("prepend_embeds have no targets: train without them")
        target, seen = x[:, 1:], x[:, :-1]
        counted = target != self.ignore_index
        if mask is not None:
            if mask.shape[1] not in (x.shape[1], x.shape[1] - 1):
                raise InputError(f"mask is of all {x.shape[1]} tokens, or of the {x.shape[1] - 1} targets")
            counted = counted & (mask[:, 1:] if mask.shape[1] == x.shape[1] else mask)
            streams["mask"] = mask[:, : x.shape[1] - 1]
        seen = torch.where(seen == self.ignore_index, self.pad_value, seen)
        logits, predicted = self.net(seen, x_num[:, :-1], **streams)
        cross, squared = mixed_errors(logits, predicted, target, x_num[:, 1:], self.net.numerical_token_id, counted)
        loss = (cross + squared * self.numerical_loss_weight)[counted].mean()
        return (loss, LossBreakdown(cross, squared)) if return_loss_breakdown else loss

    @torch.no_grad()
    def generate(
        self,
        start_tokens: Tensor,
        start_numbers: Tensor,
        seq_len: int,
        filter_logits_fn: str | Callable[..., Tensor] = top_k,
        filter_kwargs: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        cache_kv: bool = True,
        **streams: Any,
    ) -> GenerateReturn:
        """Continue tokens and numbers; returns the new ones alone.

        Beyond `max_seq_len` a window of the last tokens is read anew for each.

        Shapes:
            start_tokens, start_numbers: [B, L] -> [B, seq_len] tokens, numbers, and which tokens are numbers

        Args:
            start_tokens: token ids.
            start_numbers: their numbers.
            seq_len: how many tokens to add.
            filter_logits_fn: "top_k", "top_p", "top_a", "min_p" or a function of logits.
            filter_kwargs: keywords for the filter.
            temperature: divides the filtered logits; 0 takes the most probable token.
            cache_kv: keep keys and values, where the model can.
            **streams: `context, context_mask, prepend_embeds, prepend_mask`.
        """
        check_count(seq_len)
        refuse_others(self.generate, streams, FEATURES_STREAMS)
        if start_tokens.dim() != 2 or start_tokens.shape[1] < 1 or start_tokens.shape != start_numbers.shape:
            shapes = f"{list(start_tokens.shape)} and {list(start_numbers.shape)}"
            raise InputError(f"ids and numbers to begin with have one shape [batch, length]; got {shapes}")
        filters = filters_of(filter_logits_fn, filter_kwargs, temperature or 1.0)
        kept = {name: value for name, value in streams.items() if name.startswith("context")}
        cached = cache_kv and self.net.can_cache_kv and len(kept) == len(streams)

        def whole(ids: Tensor, numbers: Tensor) -> Tensor:
            logits, predicted = self.net(ids, numbers, **streams)
            return torch.cat((logits, predicted.unsqueeze(-1)), -1)

        with evaluating(self.net):
            made = generate_mixed(
                Reading(
                    whole,
                    self.max_seq_len or None,
                    MixedReader(self.net.native) if cached else None,
                    start_tokens.shape[1] + seq_len - 1,
                    kept,
                ),
                start_tokens,
                start_numbers,
                seq_len,
                self.net.numerical_token_id,
                partial(draw, filters=filters, greedy=temperature == 0, generator=None),
            )
        return GenerateReturn(*made)
