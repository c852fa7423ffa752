"""`BeliefStateWrapper`: a model forwards, one backwards, and what they tell together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.autoregressive_wrapper import min_p
from variform.dialects.x_transformers.decoding import in_upstream_terms
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.filters import Filter, filters_of
from variform.dialects.x_transformers.learned import causal_net
from variform.dialects.x_transformers.lens import checked_lens
from variform.dialects.x_transformers.table import Table, problems_of, raise_any, table_of
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.generate.loop import generate
from variform.generate.readers import evaluating
from variform.wrappers.belief import BeliefState

NUMBER = (int, float)
KEYWORDS: Table = table_of(
    {
        "backward_decoder": (None, (nn.Module,)),
        "train_frac_forward_backward_pairs": (1.0, NUMBER),
        "text_head": (None, (nn.Module,)),
        "backward_ar_loss_weight": (1.0, NUMBER),
        "pred_distance": (False, (bool,)),
        "pred_distance_loss_weight": (1.0, NUMBER),
        "cond_on_distance": (False, (bool,)),
        "cond_on_distance_prob": (0.5, NUMBER),
        "max_pred_distance": (None, (int,)),
    }
)


class BeliefStateWrapper(nn.Module):
    """A belief state transformer (Hu et al. 2024, arXiv:2410.23506); see `variform.wrappers.belief.BeliefState`.

    Shapes:
        seq: [B, L] token ids -> the loss, a scalar

    Args:
        forward_decoder: a causal `TransformerWrapper`.
        backward_decoder: another, which reads texts from their end; by default the same one.
        train_frac_forward_backward_pairs: which part of the pairs is trained on.
        text_head: from 2 dim features to 2 num_tokens logits; two maps by default.
        backward_ar_loss_weight: of the previous tokens' cross entropies.
        pred_distance: predict how far apart both states are.
        pred_distance_loss_weight: of its cross entropy.
        cond_on_distance: tell the head the distance, in training.
        cond_on_distance_prob: how often; the distance is not predicted then.
        max_pred_distance: how many distances are told apart; `max_seq_len` by default.
        **keywords: none; unknown ones are refused.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    loss_weights: Tensor
    forward_decoder: TransformerWrapper
    backward_decoder: TransformerWrapper

    def __init__(
        self,
        forward_decoder: nn.Module,
        backward_decoder: nn.Module | None = None,
        train_frac_forward_backward_pairs: float = 1.0,
        text_head: nn.Module | None = None,
        backward_ar_loss_weight: float = 1.0,
        pred_distance: bool = False,
        pred_distance_loss_weight: float = 1.0,
        cond_on_distance: bool = False,
        cond_on_distance_prob: float = 0.5,
        max_pred_distance: int | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__()
        given = {
            "backward_decoder": backward_decoder,
            "train_frac_forward_backward_pairs": train_frac_forward_backward_pairs,
            "text_head": text_head,
            "backward_ar_loss_weight": backward_ar_loss_weight,
            "pred_distance": pred_distance,
            "pred_distance_loss_weight": pred_distance_loss_weight,
            "cond_on_distance": cond_on_distance,
            "cond_on_distance_prob": cond_on_distance_prob,
            "max_pred_distance": max_pred_distance,
            **keywords,
        }
        raise_any(problems_of(type(self).__name__, KEYWORDS, given, KEYWORDS))
        ahead = _net(forward_decoder, "forward_decoder")
        back = ahead if backward_decoder is None else _net(backward_decoder, "backward_decoder")
        _check(given, ahead, back)
        distances = (max_pred_distance or ahead.max_seq_len) if pred_distance else None
        # Not registered: their parameters are the objective's, and must not be listed twice.
        self.__dict__["forward_decoder"], self.__dict__["backward_decoder"] = ahead, back
        with in_upstream_terms():
            self.objective = BeliefState(
                ahead.native,
                back.native,
                text_head,
                train_frac_forward_backward_pairs,
                backward_ar_loss_weight,
                distances,
                pred_distance_loss_weight,
                cond_on_distance_prob if cond_on_distance else None,
            )
        self.register_buffer("loss_weights", torch.tensor([1.0, backward_ar_loss_weight]))
        self.num_tokens: int = ahead.num_tokens
        self.max_seq_len: int = ahead.max_seq_len

    @property
    def suffix_token(self) -> nn.Parameter:
        """With which the second model begins, [dim]."""
        return self.objective.suffix

    @property
    def text_head(self) -> nn.Module:
        """From both states to the logits of the next and the previous token."""
        return self.objective.head

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module | Tensor]:
        """Where upstream's checkpoints have what; one model for both stands there twice."""
        own = self.objective
        held: dict[str, nn.Module | Tensor] = {
            "suffix_token": own.suffix,
            "loss_weights": self.loss_weights,
            "text_head.": own.head,
            "forward_decoder.": self.forward_decoder,
            "backward_decoder.": self.backward_decoder,
        }
        if own.distance_head is not None:
            held["to_distance_logits."] = own.distance_head
        if own.distance_gains is not None:
            first, _, second = own.distance_gains
            held |= {"to_distance_cond.1.": first, "to_distance_cond.3.": second}
        return held

    def forward(
        self,
        seq: Tensor,
        lens: Tensor | None = None,
        loss_weight_by_fb_indices: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            seq: token ids.
            lens: [B] real tokens of rows padded on the right.
            loss_weight_by_fb_indices: from pairs (i, j), [N, 2], to factors of their cross entropies, [N] or [N, 2].
        """
        if seq.dim() != 2 or seq.shape[1] < 2:
            raise InputError(f"rows of at least two tokens are needed, [batch, length]; got {list(seq.shape)}")
        if lens is not None:
            lens = checked_lens(lens, *seq.shape)
        with in_upstream_terms():
            loss: Tensor = self.objective(seq, lens, loss_weight_by_fb_indices)
        return loss

    @torch.no_grad()
    def generate_with_suffix_cond(
        self,
        prompts: Tensor,
        seq_len: int,
        temperature: float = 1.25,
        cache_kv: bool = False,
        suffix: Tensor | None = None,
        filter_logits_fn: str | Filter = min_p,
        filter_kwargs: Mapping[str, Any] | None = None,
        decode_backwards: bool = False,
    ) -> Tensor:
        """Go on with prompts towards a suffix, or write what stands before them.

        Shapes:
            prompts: [L] or [B, L] -> [N] or [B, N], the new tokens alone, in the order in which they were made

        Args:
            prompts: token ids.
            seq_len: how many tokens to add.
            temperature: divides the filtered logits; 0 takes the most probable token.
            cache_kv: keep keys and values, where the model can; the tokens are the same.
            suffix: [n] or [B, n], what is to follow; by default the end of the text.
            filter_logits_fn: a filter by name, or a function of logits.
            filter_kwargs: its further arguments; `min_p=0.1` by default.
            decode_backwards: write towards the beginning, before a text of one random token; there is no suffix then.
        """
        options = {"min_p": 0.1} if filter_kwargs is None and filter_logits_fn is min_p else filter_kwargs
        filters = filters_of(filter_logits_fn, options, temperature)
        if decode_backwards and suffix is not None:
            raise InputError("a text that is written backwards ends with its prompt: leave the suffix out")
        if not prompts.dim() or not prompts.shape[-1]:
            raise InputError(f"prompts are [length] or [batch, length], at least one token; got {list(prompts.shape)}")
        rows = prompts.reshape(-1, prompts.shape[-1])
        more: dict[str, Any] = {}
        with evaluating(self), in_upstream_terms():
            if decode_backwards:
                rows, more = rows.flip(1), {"prefix": self.objective.first(len(rows))}
                start = torch.randint(0, self.num_tokens, (len(rows), 1), device=rows.device)
                other = self.forward_decoder.native(start, hidden=True)[:, -1]
            else:
                other = self.objective.goal(_rows_of(suffix, len(rows)), len(rows))
            decoder = self.objective.decoder(other, decode_backwards)
            main = self.backward_decoder if decode_backwards else self.forward_decoder
            cached = cache_kv and main.can_cache_kv
            made: Tensor = generate(
                decoder, rows, seq_len, greedy=temperature == 0, filters=filters, use_cache=cached, **more
            )
        return made.view(*prompts.shape[:-1], -1)


def _net(net: nn.Module, name: str) -> TransformerWrapper:
    made = causal_net(net, path=name)
    if made.emb_dim != made.native.dim:
        raise KeywordError(f"{name} needs an emb_dim of its layers' {made.native.dim} features", path=name)
    return made


def _check(given: Mapping[str, Any], ahead: TransformerWrapper, back: TransformerWrapper) -> None:
    for name, size in (("emb_dim", "features"), ("num_tokens", "tokens")):
        own, other = getattr(ahead, name), getattr(back, name)
        if own != other:
            message = f"both decoders need the same number of {size}, and have {own} and {other}"
            raise KeywordError(message, path="backward_decoder")
    share, probability = given["train_frac_forward_backward_pairs"], given["cond_on_distance_prob"]
    if not 0 < share <= 1:
        raise KeywordError("a part in (0, 1] is needed", path="train_frac_forward_backward_pairs", value=share)
    if not 0 < probability < 1:
        raise KeywordError("a probability in (0, 1) is needed", path="cond_on_distance_prob", value=probability)
    for name in ("backward_ar_loss_weight", "pred_distance_loss_weight"):
        if given[name] < 0:
            raise KeywordError("must not be negative", path=name, value=given[name])
    longest = given["max_pred_distance"]
    if longest is not None and not given["pred_distance"]:
        raise KeywordError("has no effect without pred_distance", path="max_pred_distance", value=longest)
    if longest is not None and longest < 1:
        raise KeywordError("must be positive", path="max_pred_distance", value=longest)


def _rows_of(suffix: Tensor | None, rows: int) -> Tensor | None:
    if suffix is None:
        return None
    found = suffix.expand(rows, -1) if suffix.dim() == 1 else suffix
    if found.dim() != 2 or len(found) != rows or not found.shape[1]:
        raise InputError(f"a suffix is [n] or [{rows}, n], of one token at least; got {list(suffix.shape)}")
    return found
