"""`NonAutoregressiveWrapper`: masked tokens are predicted, and sequences filled in step by step."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.spec import Spec
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.table import REQUIRED, Table, completed, problems_of, raise_any, table_of
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.errors import ConfigError, Problem
from variform.generate.readers import evaluating
from variform.wrappers.masked import (
    Schedule,
    corrupt,
    cosine,
    diffusion_loss,
    draw,
    draw_masks,
    fill_in,
    linear,
    mean_over,
    schedule_of,
    token_errors,
)

linear_schedule = linear
cosine_schedule = cosine


class Losses(NamedTuple):
    """What training returns; None where it is not trained."""

    loss: Tensor
    generator_loss: Tensor | None
    critic_loss: Tensor | None


KEYWORDS: Table = table_of(
    {
        "mask_id": (REQUIRED, (int,)),
        "steps": (18, (int,)),
        "self_cond": (False, ()),
        "self_cond_train_prob": (0.75, (int, float)),
        "no_replace_prob": (0.15, (int, float)),
        "random_token_prob": (0.1, (int, float)),
        "schedule": ("linear", (object,)),
        "can_mask_prev_unmasked": (False, ()),
        "token_critic": (None, (nn.Module,)),
        "self_token_critic": (False, ()),
        "critic_loss_weight": (1.0, (int, float)),
        "use_simple_mdlm_loss_weight": (True, ()),
    }
)
"""Keywords beside the model, with upstream's defaults."""


class SelfCritic(nn.Module):
    """Tells by the model's own hidden states which tokens are wrong (Nijkamp et al. 2021, NAACL main 409).

    Shapes:
        x: [B, L] token ids -> [B, L, 1] logits
    """

    def __init__(self, net: TransformerWrapper) -> None:
        super().__init__()
        self.net = net
        layers = net.attn_layers
        self.to_logits = nn.Linear(layers.dim, 1)

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Where upstream's checkpoints have what."""
        return {"net.": self.net, "to_logits.": self.to_logits}

    def forward(self, x: Tensor, **streams: Any) -> Tensor:
        """How likely each token is to be wrong; the streams are arguments of the model."""
        logits: Tensor = self.to_logits(self.net(x, return_embeddings=True, **streams))
        return logits


class NonAutoregressiveWrapper(nn.Module):
    """Trains a `TransformerWrapper` to predict masked tokens, and fills sequences in, the surest tokens first.

    Masks, corruption and the steps of MaskGIT (arXiv:2202.04200) and Mask-Predict (arXiv:1904.09324), the loss of
    masked diffusion (arXiv:2406.07524).

    Shapes:
        x: [B, max_seq_len] token ids -> (loss, loss of the generator, loss of the critic)

    Args:
        net: the model, around an `Encoder`.
        mask_id: the token in the place of masked ones.
        steps: how many when a sequence is filled in.
        self_cond: give the model its own hidden states of an earlier pass.
        self_cond_train_prob: how often in training; otherwise a learned vector stands there.
        no_replace_prob: share of the masked tokens that stay as they are, in half of the batches.
        random_token_prob: share that become a random token, in half of the batches.
        schedule: "linear", "cosine", or a function from the time in [0, 1] to the share of masked tokens.
        can_mask_prev_unmasked: tokens that were filled in may be masked again.
        token_critic: a model with one logit a token, which tells the tokens that are wrong.
        self_token_critic: the model itself with a linear map is the critic.
        critic_loss_weight: factor on the critic's loss.
        use_simple_mdlm_loss_weight: weigh rows so that the loss bounds the negative log likelihood, in nats a token;
            otherwise it is the mean over all masked tokens.

    Raises:
        KeywordError: unknown keywords, and values that do not fit; all at once.
    """

    def __init__(self, net: nn.Module, **keywords: Any) -> None:
        super().__init__()
        problems = problems_of(type(self).__name__, KEYWORDS, keywords, KEYWORDS)
        if not isinstance(net, TransformerWrapper):
            problems.append(Problem("net", f"a TransformerWrapper is needed, not {type(net).__name__}"))
        raise_any(problems)
        given = completed(KEYWORDS, keywords)
        assert isinstance(net, TransformerWrapper)
        raise_any(_problems(net, given))
        self.net = net
        self.dim = net.emb_dim
        self.num_tokens = net.num_tokens
        self.max_seq_len = net.max_seq_len
        self.mask_id: int = given["mask_id"]
        self.steps: int = given["steps"]
        self.no_replace_prob: float = given["no_replace_prob"]
        self.random_token_prob: float = given["random_token_prob"]
        self.schedule_fn: Schedule = schedule_of(given["schedule"])
        self.weighted: bool = given["use_simple_mdlm_loss_weight"]
        self.can_mask_prev_unmasked: bool = given["can_mask_prev_unmasked"]
        self.critic_loss_weight: float = given["critic_loss_weight"]
        self.self_cond: bool = given["self_cond"]
        self.self_cond_train_prob: float = given["self_cond_train_prob"]
        if self.self_cond:
            self.null_embed = nn.Parameter(torch.randn(self.dim))
            self.to_self_cond = nn.Linear(self.dim, self.dim, bias=False)
        self.token_critic: nn.Module | None = SelfCritic(net) if given["self_token_critic"] else given["token_critic"]

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module | Tensor]:
        """Where upstream's checkpoints have what."""
        found: dict[str, nn.Module | Tensor] = {"net.": self.net}
        if self.self_cond:
            found |= {"null_embed": self.null_embed, "to_self_cond.": self.to_self_cond}
        return found if self.token_critic is None else {**found, "token_critic.": self.token_critic}

    @property
    def spec(self) -> Spec:
        """The full description of the model."""
        return self.net.spec

    def forward(
        self,
        x: Tensor,
        only_train_generator: bool = False,
        only_train_critic: bool = False,
        generator_sample_temperature: float | None = None,
        **streams: Any,
    ) -> Losses:
        """The losses.

        Args:
            x: token ids, `max_seq_len` a row.
            only_train_generator: leave the critic out.
            only_train_critic: leave the generator out.
            generator_sample_temperature: of the tokens that the critic judges; drawn by default.
            **streams: arguments of the model (`mask`, `context`, ...).
        """
        if x.dim() != 2 or x.shape[1] != self.max_seq_len:
            raise InputError(f"rows of max_seq_len = {self.max_seq_len} tokens are needed; got {list(x.shape)}")
        if only_train_critic and (self.token_critic is None or only_train_generator):
            raise KeywordError("there is no critic, or the generator alone is asked for", path="only_train_critic")
        times, mask = draw_masks(x, self.schedule_fn, streams.get("mask"))
        seen = corrupt(x, mask, self.mask_id, self.num_tokens, self.no_replace_prob, self.random_token_prob)
        given = streams
        if self.self_cond:
            streams = {**given, "sum_embeds": self._condition(seen, given)}
        with torch.no_grad() if only_train_critic else nullcontext():
            logits = self.net(seen, **streams)
            if self.weighted:
                loss = diffusion_loss(logits, x, mask, times, self.schedule_fn)
            else:
                loss = mean_over(token_errors(logits, x), mask)
        if self.token_critic is None or only_train_generator:
            return Losses(loss, loss, None)
        heat = torch.rand((), device=x.device) if generator_sample_temperature is None else generator_sample_temperature
        made = torch.where(mask, draw(logits.detach(), heat), x)
        doubt, wrong, real = self._doubt(made, given), (made != x).to(logits.dtype), given.get("mask")
        errors = F.binary_cross_entropy_with_logits(doubt, wrong, reduction="none")
        critic_loss = errors.mean() if real is None else mean_over(errors, real)
        if only_train_critic:
            return Losses(critic_loss, None, critic_loss)
        return Losses(loss + critic_loss * self.critic_loss_weight, loss, critic_loss)

    def _condition(self, seen: Tensor, streams: Mapping[str, Any]) -> Tensor:
        states = self.null_embed.expand(*seen.shape, -1)
        if torch.rand(()) < self.self_cond_train_prob:
            with torch.no_grad():
                own = self.net(seen, return_embeddings=True, **streams)
            states = own + 0.0 * states  # the vector has a gradient in every step, as processes that share them need
        projected: Tensor = self.to_self_cond(states)
        return projected

    def _doubt(self, ids: Tensor, streams: Mapping[str, Any]) -> Tensor:
        critic, taken = self.token_critic, {}
        assert critic is not None
        if isinstance(critic, SelfCritic):
            taken = dict(streams)
        elif isinstance(critic, TransformerWrapper):  # what else the model is given need not be for it
            taken = {"mask": streams.get("mask")}
        logits: Tensor = critic(ids, **taken)
        return logits.squeeze(-1)

    @torch.no_grad()
    def generate(
        self,
        batch_size: int | None = None,
        start_temperature: float = 1.0,
        filter_thres: float | None = 0.7,
        noise_level_scale: float = 1.0,
        **streams: Any,
    ) -> Tensor:
        """Sequences from nothing, [max_seq_len] or [batch_size, max_seq_len].

        Args:
            batch_size: how many; None for one, without an axis of its own.
            start_temperature: of the first draws; it falls to 0.
            filter_thres: the share of the vocabulary that is never drawn, the least likely.
            noise_level_scale: how much chance is in the critic's answers.
            **streams: arguments of the model (`context`, ...).
        """
        if filter_thres is not None and not 0 <= filter_thres < 1:
            raise KeywordError("a share in [0, 1) is needed", path="filter_thres", value=filter_thres)
        rows = 1 if batch_size is None else batch_size
        ids = torch.full((rows, self.max_seq_len), self.mask_id, device=next(self.net.parameters()).device)
        with evaluating(self):
            made = fill_in(
                _Conditioned(self, streams) if self.self_cond else lambda seen: self.net(seen, **streams),
                ids,
                self.mask_id,
                self.steps,
                self.schedule_fn,
                temperature=start_temperature,
                keep_likeliest=filter_thres,
                scores=None if self.token_critic is None else partial(self._doubt, streams=streams),
                noise=noise_level_scale,
                again=self.can_mask_prev_unmasked,
            )
        return made[0] if batch_size is None else made


class _Conditioned:
    """The model, given its hidden states of the step before."""

    def __init__(self, wrapper: NonAutoregressiveWrapper, streams: Mapping[str, Any]) -> None:
        self.wrapper = wrapper
        self.streams = streams
        self.states: Tensor | None = None

    def __call__(self, ids: Tensor) -> Tensor:
        """The logits."""
        own = self.wrapper
        states = own.null_embed.expand(*ids.shape, -1) if self.states is None else self.states
        logits, self.states = own.net(
            ids, sum_embeds=own.to_self_cond(states), return_logits_and_embeddings=True, **self.streams
        )
        assert isinstance(logits, Tensor)
        return logits


def _problems(net: TransformerWrapper, given: Mapping[str, Any]) -> list[Problem]:
    found = []
    if not net.max_seq_len:
        found.append(Problem("net", "sequences have the length max_seq_len, which must be positive"))
    if net.native.head is None:
        found.append(Problem("net", "logits are needed: leave return_only_embed out"))
    if not 0 <= given["mask_id"] < net.num_tokens:
        message = f"must be one of the {net.num_tokens} tokens"
        found.append(Problem("mask_id", message, given["mask_id"]))
    if given["steps"] < 1:
        found.append(Problem("steps", "must be positive", given["steps"]))
    for name in ("self_cond_train_prob", "no_replace_prob", "random_token_prob"):
        if not 0 <= given[name] <= 1:
            found.append(Problem(name, "a probability in [0, 1] is needed", given[name]))
    layers = net.attn_layers
    if given["self_cond"] and net.emb_dim != layers.dim:
        message = f"hidden states of {layers.dim} features cannot be added to embeddings of emb_dim = {net.emb_dim}"
        found.append(Problem("self_cond", message))
    if given["self_token_critic"] and given["token_critic"] is not None:
        found.append(Problem("token_critic", "give a critic, or self_token_critic=True, and not both"))
    try:
        schedule_of(given["schedule"])
    except ConfigError as error:
        found += error.problems
    return found
