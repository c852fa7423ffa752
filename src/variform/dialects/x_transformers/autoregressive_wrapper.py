"""`AutoregressiveWrapper`: the next-token loss and generation, and upstream's filters of logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.spec import Spec
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.table import Route, Table, problems_of, raise_any, refused
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.errors import ShapeError, did_you_mean
from variform.generate.loop import generate
from variform.stack.model import Transformer

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
GENERATE: Table = refused(
    amateur_model=None, contrastive_decode_kwargs={"beta": 0.5, "alpha": 0.1}, return_intermediates=False
)


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
            if prepend_embeds is not None:
                raise InputError("mask_prob and prepend_embeds cannot be combined: only tokens are hidden")
            streams["self_attn_kv_mask"] = self._forget(inputs)
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
        prompts: Tensor | Sequence[Tensor],
        seq_len: int,
        eos_token: int | None = None,
        temperature: float = 1.0,
        prompt_lens: Tensor | None = None,
        filter_logits_fn: str | Filter = top_k,
        restrict_to_max_seq_len: bool = True,
        filter_kwargs: Mapping[str, Any] | None = None,
        cache_kv: bool = True,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
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
            restrict_to_max_seq_len: keep prompt and new tokens within `max_seq_len`; beyond it is refused.
            filter_kwargs: keywords for the filter.
            cache_kv: keep keys and values, where the model can; else everything is read again for each token.
            context: [B, Lc, dim] for cross attention.
            context_mask: [B, Lc] bool, True at real tokens of the context.
            **more: upstream's others, at their defaults.
        """
        raise_any(problems_of("generate", GENERATE, more, GENERATE))
        self._check_room(prompts, seq_len, restrict_to_max_seq_len)
        chosen = filter_of(filter_logits_fn)
        filters: list[Callable[[Tensor], Tensor]] = []
        if temperature != 0:
            filters = [partial(chosen, **(filter_kwargs or {})), lambda logits: logits / temperature]
        streams = {"context": context, "context_mask": context_mask, "lengths": prompt_lens}
        options: dict[str, Any] = {name: value for name, value in streams.items() if value is not None}
        try:
            tokens: Tensor = generate(
                self.native,
                prompts,
                seq_len,
                greedy=temperature == 0,
                filters=filters,
                eos=eos_token,
                pad=self.pad_value,
                use_cache=cache_kv and self.net.can_cache_kv,
                **options,
            )
        except ShapeError as error:
            raise InputError(str(error)) from None
        return tokens

    def _check_room(self, prompts: Tensor | Sequence[Tensor], seq_len: int, restricted: bool) -> None:
        length = prompts.shape[-1] if isinstance(prompts, Tensor) else max((len(p) for p in prompts), default=0)
        if restricted and self.max_seq_len and length + seq_len - 1 > self.max_seq_len:
            remedy = "ask for fewer tokens"
            if self.native.max_seq_len is None:
                remedy += ", or pass restrict_to_max_seq_len=False: there are no absolute positions"
            message = f"{length} prompt tokens and {seq_len} new ones do not fit max_seq_len = {self.max_seq_len}"
            raise InputError(f"{message}, and a sliding window is not supported yet; {remedy}")


def filter_of(chosen: str | Filter) -> Filter:
    """A filter by name, or the function itself."""
    if isinstance(chosen, str):
        if chosen not in FILTER_LOGITS_FN:
            hint = did_you_mean(chosen, FILTER_LOGITS_FN)
            raise KeywordError(f"there is no filter {chosen!r}", path="filter_logits_fn", hint=hint)
        return FILTER_LOGITS_FN[chosen]
    return chosen
