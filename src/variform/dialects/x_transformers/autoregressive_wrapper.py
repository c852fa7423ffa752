"""`AutoregressiveWrapper`: the next-token loss and generation, and upstream's filters of logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.spec import Spec
from variform.dialects.x_transformers.decoding import (
    Prompts,
    can_cache,
    decoding_options,
    in_upstream_terms,
    length_of,
    with_amateurs,
)
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.filters import (
    FILTER_LOGITS_FN,
    Filter,
    contrastive_decode_fn,
    filter_of,
    filters_of,
    identity,
    min_p,
    top_a,
    top_k,
    top_p,
)
from variform.dialects.x_transformers.intermediates import LayerIntermediates
from variform.dialects.x_transformers.lens import real_tokens
from variform.dialects.x_transformers.table import Route, Table, apply_all, is_default, problems_of, put, raise_any
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.generate.beam import beam_search
from variform.generate.loop import generate
from variform.stack.model import Transformer
from variform.wrappers.looped import loss_of_passes

__all__ = [
    "FILTER_LOGITS_FN",
    "AutoregressiveWrapper",
    "contrastive_decode_fn",
    "identity",
    "min_p",
    "top_a",
    "top_k",
    "top_p",
]

KEYWORDS: Table = {
    "ignore_index": Route(-100, put("ignore_index"), types=(int,)),
    "pad_value": Route(0, put("pad_value"), types=(int,)),
    "mask_prob": Route(0.0, put("mask_prob"), types=(int, float)),
    "add_attn_z_loss": Route(False, put("add_attn_z_loss")),
    "next_embed_loss_weight": Route(0.1, put("next_embed_loss_weight"), types=(int, float)),
    "looped_loss_threshold_exit": Route(0.05, put("looped_loss_threshold_exit"), types=(int, float)),
    "looped_loss_slope": Route(50, put("looped_loss_slope"), types=(int, float)),
    "looped_exit_loss_weight": Route(1.0, put("looped_exit_loss_weight"), types=(int, float)),
}
"""Keyword -> the attribute of the wrapper."""
_CONTRAST = MappingProxyType({"beta": 0.5, "alpha": 0.1})


def native_of(net: Any) -> Transformer:
    """What decodes: the model of the core, or the reader of a module that stands in the place of one."""
    found: Transformer = net.native if isinstance(net, TransformerWrapper) else net.reader
    return found


class AutoregressiveWrapper(nn.Module):
    """Trains and samples a `TransformerWrapper` around a causal stack.

    Shapes:
        x: [B, L] token ids -> the loss, a scalar

    Args:
        net: the model.
        ignore_index: targets of this value do not count.
        pad_value: what an ended row is filled up with, and what ignored inputs are replaced by.
        mask_prob: part of the keys that are hidden at random, never the first (forgetful causal mask, Liu et al. 2022,
            arXiv:2210.13432).
        **keywords: `add_attn_z_loss`, the z-loss on attention scores (weighted as the model says);
            `next_embed_loss_weight`, of the prediction of the next token's features, where the model has the head;
            `looped_loss_threshold_exit`, `looped_loss_slope` and `looped_exit_loss_weight` of looped models, see
            `variform.wrappers.looped`.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    net: TransformerWrapper  # or a module that stands in the place of one
    ignore_index: int
    pad_value: int
    mask_prob: float
    add_attn_z_loss: bool
    next_embed_loss_weight: float
    looped_loss_threshold_exit: float
    looped_loss_slope: float
    looped_exit_loss_weight: float

    def __init__(
        self, net: Any, ignore_index: int = -100, pad_value: int = 0, mask_prob: float = 0.0, **keywords: Any
    ) -> None:
        super().__init__()
        given = {"ignore_index": ignore_index, "pad_value": pad_value, "mask_prob": mask_prob, **keywords}
        raise_any(problems_of(type(self).__name__, KEYWORDS, given, KEYWORDS))
        if not isinstance(getattr(net, "stands_for", net), TransformerWrapper):
            raise KeywordError(f"net is a TransformerWrapper, not {type(net).__name__}", path="net")
        if not 0.0 <= mask_prob < 1.0:
            raise KeywordError("a probability in [0, 1) is needed", path="mask_prob", value=mask_prob)
        if not native_of(net).causal:
            hint = "build the wrapper around a Decoder"
            raise KeywordError("the next token cannot be learned by layers that see it", path="net", hint=hint)
        heads = net.draft.heads
        if heads.return_only_embed or heads.num_output_heads > 1:
            raise KeywordError("one head of logits is needed: the next token is learned from it", path="net")
        for keyword, has, wanted in (
            ("next_embed_loss_weight", net.add_continuous_pred_head, "add_continuous_pred_head"),
            *((name, net.looped, "looped") for name in KEYWORDS if name.startswith("looped_")),
        ):
            if not has and not is_default(given.get(keyword, KEYWORDS[keyword].default), KEYWORDS[keyword].default):
                message = f"has no effect on a model without {wanted}"
                raise KeywordError(message, path=keyword, value=given[keyword])
        apply_all(self, KEYWORDS, given)
        self.net = net
        self.max_seq_len = net.max_seq_len

    @property
    def native(self) -> Transformer:
        """The model of the core."""
        return native_of(self.net)

    @property
    def spec(self) -> Spec:
        """The full description of the model."""
        return self.native.spec

    def forward(
        self,
        x: Tensor,
        return_outputs: bool = False,
        prepend_embeds: Tensor | None = None,
        lens: Tensor | None = None,
        **streams: Any,
    ) -> Any:
        """The mean loss over the targets, the tokens after the first.

        Args:
            x: token ids.
            return_outputs: return (loss, (logits, intermediates)).
            prepend_embeds: features before the tokens; they have no targets.
            lens: [B] real tokens of rows padded on the right.
            **streams: arguments of the model (`mask`, `context`, `context_mask`, ...).
        """
        if x.dim() != 2 or x.shape[1] < 2:
            raise InputError(f"rows of at least two tokens are needed, [batch, length]; got {list(x.shape)}")
        if lens is not None:
            x = x.masked_fill(~real_tokens(lens, x), self.ignore_index)
        inputs = torch.where(x == self.ignore_index, self.pad_value, x)
        if self.mask_prob > 0:
            kept = self._forget(inputs)
            ahead = 0 if prepend_embeds is None else prepend_embeds.shape[1]  # what stands in front is never hidden
            streams["self_attn_kv_mask"] = F.pad(kept, (ahead, 0), value=True)
        net: Any = self.net
        asks: dict[str, Any] = {"return_attn_z_loss": self.add_attn_z_loss, "excise_prepend_embeds": True}
        if net.add_continuous_pred_head:
            asks["return_next_embed_pred"] = True
        if net.looped:
            asks["looped_pred_all_logits"] = True
        wants = return_outputs or net.looped or self.add_attn_z_loss
        answer: Any = net(inputs, prepend_embeds=prepend_embeds, return_intermediates=wants, **asks, **streams)
        found: Any = None
        if wants:
            answer, found = answer
        logits, features = answer if net.add_continuous_pred_head else (answer, None)
        logits, targets = logits[:, :-1], x[:, 1:].long()
        counted = targets != self.ignore_index
        if net.looped:
            loss = self._loop_loss(found, targets, counted)
        else:
            loss = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=self.ignore_index)
        if self.add_attn_z_loss:
            assert found is not None
            loss = loss + found.attn_z_loss
        if features is not None:
            loss = loss + self.next_embed_loss_weight * _next_features(features[0], features[1], counted)
        return (loss, (logits, found)) if return_outputs else loss

    def _loop_loss(self, found: LayerIntermediates, targets: Tensor, counted: Tensor) -> Tensor:
        """The loss over the passes of a looped model."""
        assert found.all_pred_logits is not None
        assert found.exit_logits is not None
        length = targets.shape[1]
        each = [
            F.cross_entropy(
                one[:, -length - 1 : -1].transpose(1, 2), targets, ignore_index=self.ignore_index, reduction="none"
            )
            for one in found.all_pred_logits
        ]
        gates = torch.cat(found.exit_logits, -1)[:, -length - 1 : -1].transpose(1, 2)
        exits = (self.looped_loss_threshold_exit, self.looped_loss_slope, self.looped_exit_loss_weight)
        return loss_of_passes(torch.stack(each, 1), gates, counted, *exits)

    def _forget(self, inputs: Tensor) -> Tensor:
        length = inputs.shape[1]
        order = torch.rand(inputs.shape, device=inputs.device)
        order[:, 0] = -1.0  # the first key stays
        hidden = order.topk(min(int(length * self.mask_prob), length - 1), dim=-1).indices
        return torch.ones_like(inputs, dtype=torch.bool).scatter(1, hidden, False)

    def generate(
        self,
        prompts: Prompts,
        seq_len: int,
        eos_token: int | None = None,
        temperature: float = 1.0,
        prompt_lens: Tensor | None = None,
        filter_logits_fn: str | Filter = top_k,
        restrict_to_max_seq_len: bool = True,
        amateur_model: nn.Module | Sequence[nn.Module] | None = None,
        filter_kwargs: Mapping[str, Any] | None = None,
        contrastive_decode_kwargs: Mapping[str, float] | Sequence[Mapping[str, float]] = _CONTRAST,
        cache_kv: bool = True,
        return_intermediates: bool = False,
        **streams: Any,
    ) -> Any:
        """Continue prompts; returns the new tokens alone.

        Shapes:
            prompts: [L] or [B, L], or a list of [L_i] -> [N] or [B, N], N <= seq_len

        Args:
            prompts: token ids.
            seq_len: how many tokens to add; fewer when all rows have ended.
            eos_token: ends a row, which is then filled up with `pad_value`; one inside the prompt does not count.
            temperature: divides the filtered logits; 0 takes the most probable token.
            prompt_lens: [B] real tokens of prompts padded on the right.
            filter_logits_fn: "top_k", "top_p", "top_a", "min_p" or a function of logits.
            restrict_to_max_seq_len: of longer texts the last `max_seq_len` tokens count: without absolute positions
                every layer attends to so many; with them, with memory tokens or behind `prepend_embeds`, which stay in
                front, the last ones are read again for each new token. Otherwise all count, and texts that absolute
                positions are too few for are refused.
            amateur_model: models whose opinion is subtracted (Li et al. 2022, arXiv:2210.15097); nothing is filtered.
            filter_kwargs: keywords for the filter.
            contrastive_decode_kwargs: `beta` and `alpha`, for all amateurs or for each.
            cache_kv: keep keys and values, where the model can; else everything is read again for each token. The
                tokens are the same.
            return_intermediates: return (tokens, decode state), the state having read all of them; None without cache.
            **streams: arguments of the model that mean the same for every token: `context`, `context_mask`,
                `condition`, `prepend_embeds`, `prepend_mask`; of models whose layers run several times
                `recycle_steps`, `looped_steps`, `max_looped_steps` and `looped_exit_prob_threshold` (0.9).
        """
        filters = filters_of(identity if amateur_model is not None else filter_logits_fn, filter_kwargs, temperature)
        if amateur_model is None and contrastive_decode_kwargs != _CONTRAST:
            raise KeywordError("has no effect without amateur_model", path="contrastive_decode_kwargs")
        with in_upstream_terms():
            options = decoding_options(
                self, prompts, seq_len, prompt_lens, eos_token, cache_kv, restrict_to_max_seq_len, streams, "generate"
            )
            model: nn.Module = self.native
            if amateur_model is not None:
                model = with_amateurs(model, amateur_model, contrastive_decode_kwargs)
                options["use_cache"] = options["use_cache"] and can_cache(amateur_model)
            options |= {"greedy": temperature == 0, "filters": filters}
            if not return_intermediates:
                return generate(model, prompts, seq_len, **options)
            if not options["use_cache"]:
                return generate(model, prompts, seq_len, **options), None
            if self.native.max_seq_len is None:  # room to go on
                options["max_len"] = max(length_of(prompts) + seq_len, self.net.max_seq_len)
            return generate(model, prompts, seq_len, return_state=True, **options)

    def beam_search(
        self,
        prompts: Prompts,
        seq_len: int,
        beams: int = 4,
        return_beams_and_scores: bool = False,
        eos_token: int | None = None,
        temperature: float = 1.0,
        stochastic: bool = False,
        prompt_lens: Tensor | None = None,
        filter_logits_fn: str | Filter = identity,
        restrict_to_max_seq_len: bool = True,
        filter_kwargs: Mapping[str, Any] | None = None,
        cache_kv: bool = True,
        **streams: Any,
    ) -> Any:
        """The most probable continuation that a search with `beams` beams finds; `variform.generate.beam` does it.

        Shapes:
            prompts: as for `generate` -> [N] or [B, N]; with `return_beams_and_scores` ([K, N] or [K, B, N],
            [K] or [K, B]), best first; the scores are the sums of the tokens' log-probabilities

        Args:
            prompts: token ids.
            seq_len: how many tokens to add; fewer when all beams have ended.
            beams: how many continuations are kept a row.
            return_beams_and_scores: return all of them.
            eos_token: ends a beam, which is then filled up with `pad_value`.
            temperature: divides the filtered logits that are drawn from; 0 is the same as not `stochastic`.
            stochastic: which tokens continue a beam is drawn, with Gumbel noise.
            prompt_lens: [B] real tokens of prompts padded on the right.
            filter_logits_fn: what may be drawn; a name or a function of logits.
            restrict_to_max_seq_len: as for `generate`.
            filter_kwargs: keywords for the filter.
            cache_kv: keep keys and values, where the model can.
            **streams: as for `generate`.
        """
        filters = filters_of(filter_logits_fn, filter_kwargs, temperature)
        drawn = stochastic and temperature != 0
        if not drawn and (filter_of(filter_logits_fn) is not identity or temperature not in (0, 1)):
            message = "filters and temperatures have no effect on beams that are not drawn"
            raise KeywordError(message, path="stochastic", value=stochastic, hint="stochastic=True draws them")
        with in_upstream_terms():
            options = decoding_options(
                self,
                prompts,
                seq_len,
                prompt_lens,
                eos_token,
                cache_kv,
                restrict_to_max_seq_len,
                streams,
                "beam_search",
            )
            options |= {"filters": filters} if drawn else {}
            found = beam_search(self.native, prompts, seq_len, beams, stochastic=drawn, **options)
        if not return_beams_and_scores:
            return found.tokens[..., 0, :]
        single = found.scores.dim() == 1
        return found if single else (found.tokens.transpose(0, 1), found.scores.T)


def _next_features(predicted: Tensor, embedded: Tensor, counted: Tensor) -> Tensor:
    """The mean absolute error of predictions of the features of the next tokens, where those count.

    Shapes:
        predicted: [B, L, D]; embedded: [B, P + L, D], what the tokens were embedded as; counted: [B, L - 1]
    """
    targets = embedded[:, -predicted.shape[1] :][:, 1:].detach()
    errors = (predicted[:, :-1] - targets).abs().mean(-1)
    return errors.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)
