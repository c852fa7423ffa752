"""`XMLatentDecoder`: latent vectors in front of a text, of which the best of several counts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.autoregressive_wrapper import AutoregressiveWrapper
from variform.dialects.x_transformers.decoding import in_upstream_terms
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.intermediates import LayerIntermediates
from variform.dialects.x_transformers.learned import causal_net
from variform.dialects.x_transformers.table import Table, problems_of, raise_any, table_of
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.generate.readers import evaluating
from variform.wrappers.best_latents import BestLatents, Latents
from variform.wrappers.entropy import entropies

Winner = Callable[..., Tensor]
Winners = Winner | Sequence[Winner]

KEYWORDS: Table = table_of(
    {
        "num_latents": (4, (int,)),
        "dim": (None, (int,)),
        "latent_dim": (None, (int,)),
        "candidates": (2, (int,)),
        "max_batch_size": (None, (int,)),
        "ignore_index": (-100, (int,)),
        "latent_drop_prob": (0.0, (int, float)),
        "always_latent_proj": (False, (bool,)),
        "repulsive_loss_weight": (0.0, (int, float)),
        "winner_fn": (None, (object,)),
        "winner_fns": (None, (tuple, list)),
    }
)


def lowest_loss_winner_fn(losses: Tensor, intermediates: Any = None) -> Tensor:
    """The candidate of the lowest loss, [B, K] -> [B]."""
    return losses.argmin(-1)


def lowest_entropy_winner_fn(logits: Tensor) -> Tensor:
    """The candidate that is surest, by the mean entropy of its tokens: [B, K, L, V] -> [B]."""
    return entropies(logits).mean(-1).argmin(-1)


class XMLatentDecoder(nn.Module):
    """Latent vectors in front of a text; see `variform.wrappers.best_latents.BestLatents`.

    Shapes:
        seq: [B, L] token ids -> the loss, a scalar

    Args:
        net: a causal `TransformerWrapper`.
        num_latents: how many vectors.
        dim: features of the model.
        latent_dim: of a vector.
        candidates: how many are tried.
        max_batch_size: rows that the model is given at a time.
        ignore_index: targets of this value do not count.
        latent_drop_prob: how often a training step has no vectors.
        always_latent_proj: map vectors even where they have the model's features.
        repulsive_loss_weight: of how far the candidates' answers are from one another.
        winner_fn: from (losses [B, K], intermediates) or from the losses alone to winners [B], or to scores [B, K];
            the intermediates tell the `logits` [B, K, L, V]. One for all vectors, or one for each.
        winner_fns: one for each.
        **keywords: none; unknown ones are refused.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    net: TransformerWrapper

    def __init__(
        self,
        net: nn.Module,
        num_latents: int = 4,
        dim: int | None = None,
        latent_dim: int | None = None,
        candidates: int = 2,
        max_batch_size: int | None = None,
        ignore_index: int = -100,
        latent_drop_prob: float = 0.0,
        always_latent_proj: bool = False,
        repulsive_loss_weight: float = 0.0,
        winner_fn: Winners = lowest_loss_winner_fn,
        winner_fns: Sequence[Winner] | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {
            "num_latents": num_latents,
            "dim": dim,
            "latent_dim": latent_dim,
            "candidates": candidates,
            "max_batch_size": max_batch_size,
            "ignore_index": ignore_index,
            "latent_drop_prob": latent_drop_prob,
            "always_latent_proj": always_latent_proj,
            "repulsive_loss_weight": repulsive_loss_weight,
            **keywords,
        }
        raise_any(problems_of(type(self).__name__, KEYWORDS, given, KEYWORDS))
        for name in ("num_latents", "latent_dim", "candidates", "max_batch_size"):
            if given[name] is not None and given[name] < 1:
                raise KeywordError("must be positive: at least 1", path=name, value=given[name])
        if not 0 <= latent_drop_prob <= 1:
            raise KeywordError("a probability in [0, 1] is needed", path="latent_drop_prob", value=latent_drop_prob)
        # Not registered: its parameters are the objective's, and must not be listed twice.
        self.__dict__["net"] = causal_net(net, dim)
        with in_upstream_terms():
            self.objective = BestLatents(
                self.net.native,
                num_latents,
                latent_dim,
                candidates,
                always_latent_proj,
                latent_drop_prob,
                repulsive_loss_weight,
                max_batch_size,
            )
        self.num_latents = num_latents
        self.candidates = candidates
        self.ignore_index = ignore_index
        self.winner_fns = self._winners(winner_fn if winner_fns is None else winner_fns)

    @property
    def max_seq_len(self) -> int:
        """The longest text of the model."""
        return self.net.max_seq_len

    @property
    def latent_proj(self) -> nn.Module:
        """From vectors to features of the model."""
        return self.objective.project

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Where upstream's checkpoints have what."""
        return {"net.": self.net, "latent_proj.": self.latent_proj}

    def init_latents(self, latents: Latents | None, batch: int, device: torch.device | None = None) -> Tensor:
        """Vectors [B, n, d]: those that are given, and others that are drawn."""
        with in_upstream_terms():
            found = self.objective.draw(latents, batch)
        return found if device is None else found.to(device)

    def forward(
        self,
        seq: Tensor,
        latents: Latents | None = None,
        candidates: int | None = None,
        max_batch_size: int | None = None,
        latent_drop_prob: float | None = None,
        return_loss: bool = True,
        repulsive_loss_weight: float | None = None,
        mask: Tensor | None = None,
        winner_fn: Winners | None = None,
        winner_fns: Sequence[Winner] | None = None,
        active_latent_index: int | None = None,
        **streams: Any,
    ) -> Any:
        """The loss, or (logits [B, K, L, V], vectors [B, K, n, d]) of the candidates.

        Args:
            seq: token ids.
            latents: [B, n, d], a list with [B, d] or None for each vector, or candidates [B, K, n, d]; drawn by
                default.
            candidates: another number.
            max_batch_size: another number of rows at a time.
            latent_drop_prob: another share of steps without vectors.
            return_loss: the loss; otherwise logits of all tokens.
            repulsive_loss_weight: another weight.
            mask: [B, L] bool, True at real tokens.
            winner_fn: another winner.
            winner_fns: one for each vector.
            active_latent_index: which vector is tried; drawn by default.
            **streams: arguments of the model that hold for all rows, as `return_embeddings` does not.
        """
        if seq.dim() != 2 or seq.shape[1] < 1 + return_loss:
            raise InputError(f"token ids are [batch, length], two at least for a loss; got {list(seq.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != seq.shape):
            raise InputError(f"mask is bool of shape {list(seq.shape)}; got {list(mask.shape)}")
        place = active_latent_index
        place = int(torch.randint(self.num_latents, ())) if place is None else place
        inputs = seq.masked_fill(seq == self.ignore_index, 0)
        chosen = winner_fn if winner_fns is None else winner_fns
        winners = self.winner_fns if chosen is None else self._winners(chosen)
        count = self.candidates if candidates is None else candidates
        with in_upstream_terms():
            if not return_loss:
                run = _Run(self.net, streams, False)
                tried = self.objective.tried(latents, len(seq), place, count)
                return self.objective.answers(inputs, tried, mask, run, max_batch_size), tried
            if not 0 <= place < self.num_latents:
                raise InputError(f"active_latent_index is one of the {self.num_latents}, not {place}")
            winner = winners[place]
            run = _Run(self.net, streams, winner is not lowest_loss_winner_fn)
            counted = seq[:, 1:] != self.ignore_index
            if mask is not None:
                counted = counted & mask[:, 1:] & mask[:, :-1]
            return self.objective(
                inputs,
                latents,
                mask,
                place=place,
                counted=counted,
                candidates=count,
                choose=lambda losses, logits: _chosen(winner, losses, run.told(logits)),
                run=run,
                repulsion=repulsive_loss_weight,
                drop=latent_drop_prob,
                at_once=max_batch_size,
            )

    @torch.no_grad()
    def generate(self, start_tokens: Tensor, seq_len: int, latents: Latents | None = None, **options: Any) -> Any:
        """Go on with prompts behind vectors; see `AutoregressiveWrapper.generate`.

        Args:
            start_tokens: [B, L] token ids.
            seq_len: how many tokens to add.
            latents: as for a call.
            **options: of `AutoregressiveWrapper.generate`.
        """
        if start_tokens.dim() != 2:
            raise InputError(f"start_tokens are [batch, length]; got {list(start_tokens.shape)}")
        drawn = self.init_latents(latents, len(start_tokens))
        if drawn.dim() != 3:
            raise InputError(
                f"a text has one set of latents, {[len(drawn), *drawn.shape[-2:]]}; got {list(drawn.shape)}"
            )
        with evaluating(self):
            front = self.objective.prefix(drawn)
            return AutoregressiveWrapper(self.net).generate(start_tokens, seq_len, prepend_embeds=front, **options)

    @torch.no_grad()
    def generate_with_candidate_latents(
        self,
        start_tokens: Tensor,
        seq_len: int,
        winner_fn: Winners | None = None,
        winner_fns: Sequence[Winner] | None = None,
        candidates: int | None = None,
        latents: Latents | None = None,
        active_latent_index: int | None = None,
        return_best_latents: bool = False,
        **options: Any,
    ) -> Any:
        """Go on with prompts behind the vectors whose answer to the prompt is best.

        Args:
            start_tokens: [B, L] token ids.
            seq_len: how many tokens to add.
            winner_fn: from logits [B, K, L, V] to winners [B] or scores [B, K]; by default the surest. Of several, one
                for each vector, all vectors are chosen, one after another; otherwise the first.
            winner_fns: one for each vector.
            candidates: another number.
            latents: as for a call.
            active_latent_index: choose this vector alone.
            return_best_latents: return (tokens, (candidates of the last choice, winners)).
            **options: of `AutoregressiveWrapper.generate`.
        """
        chosen = winner_fn if winner_fns is None else winner_fns
        several = isinstance(chosen, tuple | list)
        # What a prompt's next tokens lose is not known: the surest is taken where nothing else is said.
        winners = [
            lowest_entropy_winner_fn if one is lowest_loss_winner_fn else one
            for one in (self.winner_fns if chosen is None else self._winners(chosen))
        ]
        places = range(self.num_latents) if several else [0]
        streams = {name: options[name] for name in ("context", "context_mask", "condition") if name in options}
        found = self.init_latents(latents, len(start_tokens))
        all_winners = []
        with evaluating(self):
            for place in [active_latent_index] if active_latent_index is not None else places:
                logits, tried = self(
                    start_tokens,
                    latents=found,
                    candidates=candidates,
                    active_latent_index=place,
                    return_loss=False,
                    **streams,
                )
                winner = winners[place](logits)
                winner = winner.argmax(-1) if winner.dim() > 1 else winner
                all_winners.append(winner)
                found = tried[torch.arange(len(tried), device=tried.device), winner]
            out = self.generate(start_tokens, seq_len, found, **options)
        told = all_winners[0] if len(all_winners) == 1 else torch.stack(all_winners, -1)
        return (out, (tried, told)) if return_best_latents else out

    def _winners(self, chosen: Winners) -> tuple[Winner, ...]:
        if not callable(chosen) and not isinstance(chosen, tuple | list):
            raise KeywordError("a function of losses is needed, or one for each latent", path="winner_fn", value=chosen)
        several: tuple[Winner, ...] = (chosen,) * self.num_latents if callable(chosen) else tuple(chosen)
        if len(several) != self.num_latents:
            message = f"one, or one for each of the {self.num_latents} latents"
            raise KeywordError(message, path="winner_fns", value=len(several))
        if not all(callable(one) for one in several):
            raise KeywordError("a function of losses is needed", path="winner_fns")
        return several


class _Run:
    """Calls the model, and notes down what it makes on the way."""

    def __init__(self, net: TransformerWrapper, streams: Mapping[str, Any], tells: bool) -> None:
        self.net = net
        self.streams = dict(streams)
        self.tells = tells
        self.notes: list[LayerIntermediates] = []

    def __call__(self, ids: Tensor, prefix: Tensor | None, mask: Tensor | None) -> Tensor:
        out = self.net(
            ids,
            mask=mask,
            prepend_embeds=prefix,
            excise_prepend_embeds=prefix is not None,
            return_intermediates=self.tells,
            **self.streams,
        )
        if self.tells:
            out, note = out
            self.notes.append(note)
        logits: Tensor = out
        return logits

    def told(self, logits: Tensor) -> LayerIntermediates:
        """The intermediates of the call; of several, the logits alone."""
        found = self.notes[0] if len(self.notes) == 1 else LayerIntermediates()
        found.logits = logits
        return found


def _chosen(winner: Winner, losses: Tensor, told: LayerIntermediates) -> Tensor:
    """What a user's function says, called with as much as it takes."""
    try:
        inspect.signature(winner).bind(losses, told)
    except TypeError:
        return winner(losses)
    return winner(losses, told)
