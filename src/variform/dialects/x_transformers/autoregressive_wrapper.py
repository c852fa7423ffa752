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
from variform.dialects.x_transformers.table import Route, Table, problems_of, raise_any, refused
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.generate.beam import beam_search
from variform.generate.loop import generate
from variform.stack.model import Transformer

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
    **{name: Route(default, lambda draft, value: None) for name, default in (("ignore_index", -100), ("pad_value", 0))},
    "mask_prob": Route(0.0, lambda draft, value: None, types=(int, float)),
    **refused(
        add_attn_z_loss=False,
        next_embed_loss_weight=0.1,
        looped_loss_threshold_exit=0.05,
        looped_loss_slope=50,
        looped_exit_loss_weight=1.0,
    ),
}


_CONTRAST = MappingProxyType({"beta": 0.5, "alpha": 0.1})


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
        **keywords: upstream's others, at their defaults.

    Raises:
        KeywordError: unknown or unsupported keywords.
    """

    def __init__(
        self, net: nn.Module, ignore_index: int = -100, pad_value: int = 0, mask_prob: float = 0.0, **keywords: Any
    ) -> None:
        super().__init__()
        raise_any(problems_of(type(self).__name__, KEYWORDS, {"mask_prob": mask_prob, **keywords}, KEYWORDS))
        if not isinstance(net, TransformerWrapper):
            raise KeywordError(f"net is a TransformerWrapper, not {type(net).__name__}", path="net")
        if not 0.0 <= mask_prob < 1.0:
            raise KeywordError("a probability in [0, 1) is needed", path="mask_prob", value=mask_prob)
        if not net.native.causal:
            hint = "build the wrapper around a Decoder"
            raise KeywordError("the next token cannot be learned by layers that see it", path="net", hint=hint)
        self.net = net
        self.ignore_index = ignore_index
        self.pad_value = pad_value
        self.mask_prob = mask_prob
        self.max_seq_len = net.max_seq_len

    @property
    def native(self) -> Transformer:
        """The model of the core."""
        net = self.net
        assert isinstance(net, TransformerWrapper)
        return net.native

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
            return_outputs: return (loss, (logits, None)): there is no cache.
            prepend_embeds: features before the tokens; they have no targets.
            lens: [B] real tokens of rows padded on the right.
            **streams: arguments of the model (`mask`, `context`, `context_mask`, ...).
        """
        if x.dim() != 2 or x.shape[1] < 2:
            raise InputError(f"rows of at least two tokens are needed, [batch, length]; got {list(x.shape)}")
        if lens is not None:
            padding = torch.arange(x.shape[1], device=x.device) >= lens.unsqueeze(1)
            x = x.masked_fill(padding, self.ignore_index)
        inputs = torch.where(x == self.ignore_index, self.pad_value, x)
        if self.mask_prob > 0:
            kept = self._forget(inputs)
            ahead = 0 if prepend_embeds is None else prepend_embeds.shape[1]  # what stands in front is never hidden
            streams["self_attn_kv_mask"] = F.pad(kept, (ahead, 0), value=True)
        logits = self.net(inputs, prepend_embeds=prepend_embeds, excise_prepend_embeds=True, **streams)
        logits = logits[:, :-1]
        loss: Tensor = F.cross_entropy(logits.transpose(1, 2), x[:, 1:], ignore_index=self.ignore_index)
        return (loss, (logits, None)) if return_outputs else loss

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
                every layer attends to so many, with them the last ones are read again for each new token. Otherwise
                all count, and texts that absolute positions are too few for are refused.
            amateur_model: models whose opinion is subtracted (Li et al. 2022, arXiv:2210.15097); nothing is filtered.
            filter_kwargs: keywords for the filter.
            contrastive_decode_kwargs: `beta` and `alpha`, for all amateurs or for each.
            cache_kv: keep keys and values, where the model can; else everything is read again for each token. The
                tokens are the same.
            return_intermediates: return (tokens, decode state), the state having read all of them; None without cache.
            **streams: `context`, `context_mask` and `condition` of the model.
        """
        filters = filters_of(identity if amateur_model is not None else filter_logits_fn, filter_kwargs, temperature)
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
            **streams: `context`, `context_mask` and `condition` of the model.
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
