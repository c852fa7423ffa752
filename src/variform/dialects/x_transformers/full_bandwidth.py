"""`FullBandwidth`: what deep layers have made of a token is given to shallow ones at the next."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.autoregressive_wrapper import top_k
from variform.dialects.x_transformers.decoding import in_upstream_terms
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.filters import Filter, filters_of
from variform.dialects.x_transformers.learned import causal_net
from variform.dialects.x_transformers.table import Table, table_of, values_of
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.errors import did_you_mean
from variform.generate.samplers import draw
from variform.parts.norm.norms import RMSNorm
from variform.stack.stack import LayerStack
from variform.wrappers.feedback import Feedback, Fuse
from variform.wrappers.transitions import TRANSITIONS, Added, AddedGated, Gated, Recurrent, Summed

GLUCrossTransition = Gated
ResidualTransition = Added
GRUGatingTransition = Recurrent
LinearTransition = Summed
ResidualGLUTransition = AddedGated

NUMBER = (int, float)
Transition = nn.Module | str | Callable[[int], nn.Module]
KEYWORDS: Table = table_of(
    {
        "temporal_parallel_passes": (2, (int,)),
        "recirc_pairs": (None, (tuple, list, str)),
        "transition": (None, (object,)),
        "transitions": (None, (dict,)),
        "feedback_pass_weight": (1.0, NUMBER),
        "ignore_index": (-100, (int,)),
        "jitter_noise_delta": (0.02, NUMBER),
        "dynamic_rollout_loss_weight": (False, (bool,)),
        "dynamic_loss_decay": (0.5, NUMBER),
        "dynamic_loss_threshold": (1.0, NUMBER),
    }
)

RECIRC_SHORTCUTS: dict[str, Callable[[int], tuple[tuple[int, int], ...]]] = {
    "paper": lambda d: ((d, 1),),
    "prev": lambda d: tuple((i, i - 1) for i in range(2, d + 1)),
    "top_and_prev": lambda d: tuple(dict.fromkeys(((d, 1), *((i, i - 1) for i in range(2, d + 1))))),
    "prev_with_self": lambda d: tuple((i, max(i - 1, 1)) for i in range(1, d + 1)),
    "self": lambda d: tuple((i, i) for i in range(1, d + 1)),
    "full": lambda d: tuple((i, 1) for i in range(1, d + 1)),
    "dense": lambda d: tuple((source, target) for source in range(1, d + 1) for target in range(1, d + 1)),
}
"""Pairs (from, to) of a depth, by name."""


class LossBreakdown(NamedTuple):
    """The losses of all passes."""

    first_pass_loss: Tensor
    feedback_pass_losses: list[Tensor]
    all_pass_losses: list[Tensor]


class FullBandwidth(nn.Module):
    """Trains a model to read what it made of the token before; see `variform.wrappers.feedback.Feedback`.

    Shapes:
        token_ids: [B, L] -> the loss, a scalar

    Args:
        net: a `TransformerWrapper` around a `Decoder` with `depth_scale_residual`, with `tie_embedding` and
            `post_emb_norm`.
        **keywords: `temporal_parallel_passes`; `recirc_pairs`, (from, to) or (from, to, transition) in blocks counted
            from 1, or one of "paper", "prev", "top_and_prev", "prev_with_self", "self", "full" and "dense";
            `transition`, "glu", "residual", "gru", "linear", "residual_glu", a module, or a function of the dim;
            `transitions`, some by pair or by the block they go to; `feedback_pass_weight`; `ignore_index`;
            `jitter_noise_delta`; `dynamic_rollout_loss_weight` with `dynamic_loss_decay` and `dynamic_loss_threshold`.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    net: TransformerWrapper

    def __init__(self, net: nn.Module, **keywords: Any) -> None:
        super().__init__()
        given = values_of(type(self).__name__, KEYWORDS, keywords)
        # Not registered: its parameters are the objective's, and must not be listed twice.
        self.__dict__["net"] = made = causal_net(net)
        _check(made, given)
        stack, dim = made.native.stacks[0], made.native.dim
        if not isinstance(stack, LayerStack):
            raise KeywordError("one plain stack of blocks is needed, with no tokens besides the text's", path="net")
        depth = len(list(stack.layers.in_order()))
        pairs, modules = [], []
        for one in _pairs(depth, given["recirc_pairs"]):
            pair = (one[0], one[1])
            named = one[2] if len(one) > 2 else None
            if named is None and given["transitions"]:
                named = given["transitions"].get(pair, given["transitions"].get(pair[1]))
            pairs.append(pair)
            modules.append(_transition(named or given["transition"] or "glu", dim))
        if len(set(pairs)) < len(pairs):
            raise KeywordError("a pair stands there twice", path="recirc_pairs", value=pairs)
        decay = given["dynamic_loss_decay"] if given["dynamic_rollout_loss_weight"] else None
        with in_upstream_terms():
            self.objective = Feedback(
                made.native,
                pairs,
                modules,
                given["temporal_parallel_passes"],
                given["feedback_pass_weight"],
                given["jitter_noise_delta"],
                decay,
                given["dynamic_loss_threshold"],
            )
        self.recirc_pairs = tuple(pairs)
        self.ignore_index: int = given["ignore_index"]
        self.dynamic_loss_decay: float = given["dynamic_loss_decay"]

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module | Tensor]:
        """Where upstream's checkpoints have what."""
        held: dict[str, nn.Module | Tensor] = {"net.": self.net}
        for route, module in zip(self.objective.routes, self.objective.transitions, strict=True):
            held |= _held(f"transitions.{route.source}->{route.target}.", module)
        return held

    def forward(
        self,
        token_ids: Tensor,
        return_loss: bool = True,
        temporal_parallel_passes: int | None = None,
        return_loss_breakdown: bool = False,
        return_all_pass_logits: bool = False,
        transition: Fuse | None = None,
        dynamic_rollout_loss_weight: bool | None = None,
        dynamic_loss_decay: float | None = None,
        dynamic_loss_threshold: float | None = None,
        return_all: bool = False,
    ) -> Any:
        """The loss, or the logits of the last pass.

        Args:
            token_ids: token ids.
            return_loss: otherwise logits of all tokens.
            temporal_parallel_passes: another number.
            return_loss_breakdown: return (loss, `LossBreakdown`).
            return_all_pass_logits: return (loss or logits, the logits of each pass).
            transition: another one, for all pairs: a function of (features, stream).
            dynamic_rollout_loss_weight: another choice.
            dynamic_loss_decay: another one.
            dynamic_loss_threshold: another one.
            return_all: everything, by name.
        """
        if token_ids.dim() != 2 or token_ids.shape[1] < 1 + return_loss:
            raise InputError(f"token ids are [batch, length], two at least for a loss; got {list(token_ids.shape)}")
        passes = temporal_parallel_passes
        if passes is not None and passes < 1:
            raise InputError("must have at least 1 pass")
        if not return_loss:
            if return_loss_breakdown:
                raise InputError("without a loss there is no breakdown of it")
            logits = self.objective.answers(token_ids, passes, transition)
            return _output({"logits": logits[-1]}, logits, return_all_pass_logits or return_all)
        ids = token_ids.masked_fill(token_ids == self.ignore_index, 0)
        objective, dynamic = self.objective, dynamic_rollout_loss_weight
        dynamic = objective.decay is not None if dynamic is None else dynamic
        decay = self.dynamic_loss_decay if dynamic_loss_decay is None else dynamic_loss_decay
        found = objective.losses(
            ids[:, :-1],
            ids[:, 1:],
            token_ids[:, 1:] != self.ignore_index,
            passes=passes,
            transition=transition,
            decay=decay if dynamic else 0.0,  # then all passes count alike
            threshold=dynamic_loss_threshold,
        )
        told: dict[str, Any] = {"loss": found.loss}
        if return_loss_breakdown or return_all:
            told["loss_breakdown"] = LossBreakdown(found.each[0], found.each[1:], found.each)
        return _output(told, found.logits, return_all_pass_logits or return_all)

    @torch.no_grad()
    def generate(
        self,
        prompts: Tensor | list[Tensor],
        seq_len: int,
        temperature: float = 1.0,
        filter_logits_fn: str | Filter = top_k,
        filter_kwargs: Mapping[str, Any] | None = None,
        should_fuse_latent: Callable[[int], bool] | None = None,
        transition: Fuse | None = None,
        temporal_parallel_passes: int | None = None,
        process_prompt: bool = True,
        eos_token: int | None = None,
    ) -> Tensor:
        """Go on with prompts, [L] or [B, L] -> [N] or [B, N], the new tokens alone.

        Args:
            prompts: token ids, of one length.
            seq_len: how many tokens to add; fewer when all rows have ended.
            temperature: divides the filtered logits; 0 takes the most probable token.
            filter_logits_fn: a filter by name, or a function of logits.
            filter_kwargs: its further arguments.
            should_fuse_latent: whether features are fused into the token of a step; always by default.
            transition: another one, for all pairs.
            temporal_parallel_passes: another number, for the prompts; with 1 nothing is fused.
            process_prompt: whether prompts are read in several passes.
            eos_token: ends a row, which is then filled up with it.
        """
        ids = prompts if isinstance(prompts, Tensor) else torch.stack([torch.as_tensor(one) for one in prompts])
        rows = ids.reshape(-1, ids.shape[-1])
        filters = filters_of(filter_logits_fn, filter_kwargs, temperature)
        with in_upstream_terms():
            made = self.objective.generate(
                rows,
                seq_len,
                lambda logits: draw(logits, filters, temperature == 0, None),
                passes=temporal_parallel_passes,
                prompt=process_prompt,
                fuses=should_fuse_latent,
                transition=transition,
                eos=eos_token,
            )
        return made.view(*ids.shape[:-1], -1)


def _output(told: dict[str, Any], logits: list[Tensor], tells: bool) -> Any:
    """One answer, or several by name."""
    if tells:
        told = {**told, "all_pass_logits": logits}
    return next(iter(told.values())) if len(told) == 1 else namedtuple("Output", told)(**told)


def _check(net: TransformerWrapper, given: Mapping[str, Any]) -> None:
    draft, layers = net.draft, net.attn_layers
    if not layers.depth_scaled:
        message = "depth scaling must be turned on"
        raise KeywordError(message, path="net", hint="Decoder(depth_scale_residual=True)")
    if not draft.tie_embedding:
        raise KeywordError("weight tying must be turned on", path="net", hint="tie_embedding=True")
    if not draft.post_emb_norm:
        raise KeywordError("post embedding norm must be turned on", path="net", hint="post_emb_norm=True")
    for name in ("feedback_pass_weight", "jitter_noise_delta", "dynamic_loss_decay"):
        if given[name] < 0:
            raise KeywordError("must not be negative", path=name, value=given[name])
    for name in ("dynamic_loss_decay", "dynamic_loss_threshold"):
        if given[name] != KEYWORDS[name].default and not given["dynamic_rollout_loss_weight"]:
            message = "has no effect without dynamic_rollout_loss_weight"
            raise KeywordError(message, path=name, value=given[name])


def _pairs(depth: int, chosen: Sequence[Any] | str | None) -> Sequence[Any]:
    if chosen is None:
        return RECIRC_SHORTCUTS["paper"](depth)
    if isinstance(chosen, str):
        if chosen not in RECIRC_SHORTCUTS:
            hint = did_you_mean(chosen, RECIRC_SHORTCUTS)
            message = f"one of {', '.join(RECIRC_SHORTCUTS)} is needed"
            raise KeywordError(message, path="recirc_pairs", value=chosen, hint=hint)
        return RECIRC_SHORTCUTS[chosen](depth)
    for one in chosen:
        if not isinstance(one, tuple | list) or len(one) not in (2, 3):
            raise KeywordError("a pair is (from, to) or (from, to, transition)", path="recirc_pairs", value=one)
    return chosen


def _transition(chosen: Transition, dim: int) -> nn.Module:
    if isinstance(chosen, nn.Module):
        return chosen
    if isinstance(chosen, str):
        if chosen not in TRANSITIONS:
            message = f"one of {', '.join(TRANSITIONS)} is needed"
            raise KeywordError(message, path="transition", value=chosen, hint=did_you_mean(chosen, TRANSITIONS))
        return TRANSITIONS[chosen](dim)
    if callable(chosen):
        return chosen(dim)
    raise KeywordError("a name, a module or a function of the dim is needed", path="transition", value=chosen)


def _held(prefix: str, module: nn.Module) -> dict[str, nn.Module | Tensor]:
    """What upstream calls the tensors of a transition: gains of norms are `g`."""
    norms = {name: part for name, part in module.named_modules() if isinstance(part, RMSNorm)}
    gains = {f"{name}.weight": f"{name}.g" for name in norms}
    return {prefix + gains.get(name, name): tensor for name, tensor in module.state_dict(keep_vars=True).items()}
