"""`ContinuousTransformerWrapper`: features in, features out; `ContinuousAutoregressiveWrapper`: the next features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from variform.core.spec import Spec
from variform.dialects.x_transformers.around import AroundDraft, AroundWrapper
from variform.dialects.x_transformers.continuous_model import CONTINUOUS, ContinuousDraft
from variform.dialects.x_transformers.decoding import FEATURES_STREAMS, check_count, in_upstream_terms, refuse_others
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.lens import real_tokens
from variform.dialects.x_transformers.table import Route, Table, kept, problems_of, raise_any
from variform.generate.readers import evaluating
from variform.parts.head.heads import pool_tokens
from variform.parts.kinds import State
from variform.wrappers.next_features import (
    ERRORS,
    drawn,
    gaussian,
    generate_features,
    long_enough,
    next_step_error,
    rollout_error,
    row_lengths,
)
from variform.wrappers.reading import Reading


class ContinuousTransformerWrapper(AroundWrapper):
    """A model of features around `attn_layers`, described by upstream's keywords.

    What is built is a model of the core, `native`, which holds the very stack that was passed in; `spec` is its full
    description.

    Shapes:
        x: [B, L, dim_in] -> [B, L, dim_out]; with `probabilistic` mean and variance, [2, B, L, dim_out]; with
            `average_pool_embed` one answer a row

    Args:
        attn_layers: an `Encoder`, `Decoder` or other stack of this dialect.
        max_seq_len: longest sequence, where positions are learned; None for no absolute positions.
        dim_in: features of the inputs, which a linear map brings to those of the layers.
        dim_out: features of the answers.
        project_in: a module in the place of the linear map; the inputs are taken as they are without either.
        project_out: the same for the answers.
        average_pool_embed: answer for the mean over the real inputs of a row.
        probabilistic: answer with mean and variance of a Gaussian.
        use_identity_if_same_dim: no map where the sizes are equal.
        **keywords: see `variform.dialects.x_transformers.continuous_model.CONTINUOUS`.

    Raises:
        KeywordError: unknown or unsupported keywords, and values that do not fit; all at once.
    """

    table: ClassVar[Table] = CONTINUOUS
    draft: ClassVar[type[AroundDraft]] = ContinuousDraft

    def _hold(self, draft: ContinuousDraft) -> None:
        self.project_in = draft.project_in
        self.project_out = draft.project_out
        self.average_pool_embed = draft.average_pool_embed
        self.probabilistic = draft.probabilistic
        self.dim_in, self.dim_out = draft.dim_in, draft.dim_out

    @property
    def upstream_keys(self) -> Mapping[str, str]:
        """Names of weights that the conversion would give otherwise."""
        return {"mlp_head.weight": "project_out.weight"}

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Modules beside the native model."""
        own = {"project_in.": self.project_in, "project_out.": self.project_out}
        return {key: module for key, module in own.items() if module is not None}

    def forward(
        self,
        x: Tensor,
        return_embeddings: bool = False,
        *,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        sum_embeds: Tensor | None = None,
        **streams: Any,
    ) -> Any:
        """Run the model.

        Args:
            x: features.
            return_embeddings: the hidden states, pooled where answers are, in place of the answers.
            mask: [B, L] bool, True at real features.
            lens: [B] real features of rows padded on the right.
            sum_embeds: [B, L, dim] features that are added behind the map.
            **streams: `pos, seq_start_pos, prepend_embeds, prepend_mask, context, context_mask, attn_mask,
                self_attn_kv_mask, attn_bias, condition, in_attn_cond, mems, mem_masks`, and `return_mems,
                return_intermediates, return_attn`, see `AroundWrapper.hidden`; upstream's others, at their defaults.
        """
        if lens is not None:
            if mask is not None:
                raise InputError("mask and lens exclude one another: both say which features are real")
            mask = real_tokens(lens, x)
        found = self.hidden(self._mapped(x), mask=mask, streams={"added": sum_embeds}, **streams)
        hidden = pool_tokens(found.hidden, found.valid, "mean") if self.average_pool_embed else found.hidden
        return found.answered(hidden if return_embeddings else self._answer(hidden))

    def _mapped(self, x: Tensor) -> Tensor:
        if self.project_in is None:
            return x
        mapped: Tensor = self.project_in(x)
        return mapped

    def _answer(self, hidden: Tensor) -> Tensor:
        project = getattr(self.native.head, "project", self.project_out)
        out = hidden if project is None else project(hidden)
        return gaussian(out) if self.probabilistic else out

    def chunks(self) -> Chunks:
        """The model as a reader of chunks with a decode state."""
        return Chunks(self)


class Chunks:
    """Reads features chunk by chunk with a decode state of the native model."""

    def __init__(self, net: ContinuousTransformerWrapper) -> None:
        self.net = net

    def init_state(self, batch: int, max_len: int, **streams: Any) -> State:
        """An empty state."""
        return self.net.native.init_state(batch, max_len, **streams)

    def __call__(self, *inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """The answers of a chunk, and the new state."""
        (x,) = inputs
        hidden, new = self.net.native(self.net._mapped(x), state=state, hidden=True)
        return self.net._answer(hidden), new


AUTOREGRESSIVE: Table = {
    "use_l1_loss": Route(False, kept),
    "equal_loss_weight_batch": Route(False, kept),
}


class ContinuousAutoregressiveWrapper(nn.Module):
    """Trains a `ContinuousTransformerWrapper` around a causal stack to predict the next features, and samples it.

    Shapes:
        x: [B, L, d] -> the loss, a scalar

    Args:
        net: the model; its answers have the width of its inputs.
        loss_fn: from answers and targets to errors of their shape; by default squared errors, or of a Gaussian.
        use_l1_loss: absolute errors.
        equal_loss_weight_batch: with a mask, each row counts the same, by the sum of the errors of a feature vector;
            otherwise each feature counts the same, by the mean.
        **keywords: none; unknown ones are refused.

    Raises:
        KeywordError: unknown keywords, a model that cannot be trained so.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        use_l1_loss: bool = False,
        equal_loss_weight_batch: bool = False,
        **keywords: Any,
    ) -> None:
        super().__init__()
        given = {"use_l1_loss": use_l1_loss, "equal_loss_weight_batch": equal_loss_weight_batch, **keywords}
        raise_any(problems_of(type(self).__name__, AUTOREGRESSIVE, given, AUTOREGRESSIVE))
        if not isinstance(net, ContinuousTransformerWrapper):
            raise KeywordError(f"net is a ContinuousTransformerWrapper, not {type(net).__name__}", path="net")
        if not net.native.causal:
            hint = "build the wrapper around a Decoder"
            raise KeywordError("the next features cannot be learned by layers that see them", path="net", hint=hint)
        if net.average_pool_embed:
            raise KeywordError("average_pool_embed answers once a row, and not for each next feature", path="net")
        if None not in (net.dim_in, net.dim_out) and net.dim_in != net.dim_out:
            message = f"what follows has the {net.dim_in} features of the inputs (dim_in)"
            raise KeywordError(message, path="net.dim_out", value=net.dim_out)
        if use_l1_loss and (loss_fn is not None or net.probabilistic):
            message = "there is another loss already: loss_fn, or that of a probabilistic model"
            raise KeywordError(message, path="use_l1_loss", value=True)
        named = "gaussian" if net.probabilistic else "absolute" if use_l1_loss else "squared"
        self.net = net
        self.max_seq_len = net.max_seq_len
        self.probabilistic = net.probabilistic
        self.loss_fn = ERRORS[named] if loss_fn is None else loss_fn
        self.equal_loss_weight_batch = equal_loss_weight_batch

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Where upstream's checkpoints have what."""
        own = {"loss_fn.": self.loss_fn} if isinstance(self.loss_fn, nn.Module) else {}
        return {"net.": self.net, **own}

    @property
    def spec(self) -> Spec:
        """The full description of the model."""
        return self.net.spec

    def forward(
        self,
        x: Tensor,
        rollout_steps: int = 1,
        *,
        lens: Tensor | None = None,
        mask: Tensor | None = None,
        **streams: Any,
    ) -> Tensor:
        """The mean loss over the targets, the features after the first.

        Args:
            x: features.
            rollout_steps: predictions in a row that are compared, each made with those before it; from a place of each
                row that is drawn.
            lens: [B] real features of rows padded on the right.
            mask: [B, L] bool, True at real features, or [B, L - 1], True where the target is real.
            **streams: further arguments of the model.
        """
        if streams.get("prepend_embeds") is not None:
            raise InputError("prepend_embeds have no targets: train without them")
        if lens is not None:
            if mask is not None:
                raise InputError("mask and lens exclude one another: both say which features are real")
            mask = real_tokens(lens, x)
        check_count(rollout_steps, "rollout_steps")
        if rollout_steps > 1:
            return self._rollout(x, mask, rollout_steps, streams)
        with in_upstream_terms():
            errors, counted = next_step_error(
                lambda seen, valid: self.net(seen, mask=valid, **streams), x, mask, self.loss_fn
            )
        if counted is None:
            return errors.mean()
        if errors.dim() < 2:
            raise InputError("with a mask or lens the loss must not be reduced: give loss_fn reduction='none'")
        if not self.equal_loss_weight_batch:
            return errors[counted].mean()
        sums = torch.where(counted, errors.flatten(2).sum(-1) if errors.dim() > 2 else errors, 0.0).sum(1)
        return (sums / counted.sum(1).clamp(min=1)).mean()

    def _rollout(self, x: Tensor, mask: Tensor | None, steps: int, streams: Mapping[str, Any]) -> Tensor:
        with in_upstream_terms():
            lengths = row_lengths(x, mask)
            enough = long_enough(lengths, steps)
        rows = {
            name: value[enough] if isinstance(value, Tensor) and value.shape[:1] == x.shape[:1] else value
            for name, value in streams.items()
        }
        return rollout_error(
            lambda seen, _: self.net(seen, **rows), x[enough], lengths[enough], steps, self.loss_fn, self._feed
        ).mean()

    def _feed(self, prediction: Tensor, temperature: float = 1.0) -> Tensor:
        return drawn(prediction, temperature) if self.probabilistic else prediction

    @torch.no_grad()
    def generate(
        self, start_tokens: Tensor, seq_len: int, temperature: float = 1.0, cache_kv: bool = True, **streams: Any
    ) -> Tensor:
        """Continue features; returns the new ones alone.

        Beyond `max_seq_len` a window of the last features is read anew for each.

        Shapes:
            start_tokens: [L, d] or [B, L, d] -> [seq_len, d] or [B, seq_len, d]

        Args:
            start_tokens: what is continued.
            seq_len: how many features to add.
            temperature: factor on the standard deviation of what is drawn, for probabilistic models.
            cache_kv: keep keys and values, where the model can.
            **streams: `context, context_mask, prepend_embeds, prepend_mask`.
        """
        refuse_others(self.generate, streams, FEATURES_STREAMS)
        if start_tokens.dim() not in (2, 3) or start_tokens.shape[-2] < 1:
            raise InputError(f"features to begin with are [B, L, d] or [L, d], not {list(start_tokens.shape)}")
        prompt = start_tokens if start_tokens.dim() == 3 else start_tokens.unsqueeze(0)
        kept = {name: value for name, value in streams.items() if name.startswith("context")}
        cached = cache_kv and self.net.can_cache_kv and len(kept) == len(streams)
        with evaluating(self.net):
            reading = Reading(
                lambda seen: self.net(seen, **streams),
                self.max_seq_len or None,
                self.net.chunks() if cached else None,
                prompt.shape[1] + seq_len - 1,
                kept,
            )
            out = generate_features(reading, prompt, seq_len, lambda new: self._feed(new, temperature))
        return out if start_tokens.dim() == 3 else out.squeeze(0)
