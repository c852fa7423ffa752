"""Beam search: the continuations that are the most probable as a whole."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.errors import ConfigError, Problem
from variform.generate.loop import Generation
from variform.generate.options import Options
from variform.generate.prompts import Prompts
from variform.generate.readers import evaluating, mode_of
from variform.generate.samplers import filtered

_DRAWING = ("temperature", "top_k", "top_p", "min_p", "filters", "seed", "generator")


class Beams(NamedTuple):
    """What a beam search found, the best first.

    Args:
        tokens: [B, K, N] or [K, N] integers, the new tokens alone.
        scores: [B, K] or [K], the sums of the tokens' log-probabilities, up to and with a row's end.
    """

    tokens: Tensor
    scores: Tensor


def beam_search(
    model: nn.Module,
    prompt: Prompts,
    max_new_tokens: int,
    beams: int = 4,
    *,
    stochastic: bool = False,
    **options: Unpack[Options],
) -> Beams:
    """Continue prompts with the `beams` best continuations: `tokens, scores = vf.beam_search(model, prompt, 20)`.

    At each step every beam is continued by its most probable tokens, and of all continuations of a row those with the
    greatest sum of log-probabilities go on (Sutskever et al. 2014, arXiv:1409.3215). A beam that has ended stays where
    its score puts it. Rows of unequal length give what each gives alone. The decode state follows the beams.

    Shapes:
        prompt: [L] or [B, L] integers, or a list of B prompts

    Args:
        model: as for `generate`.
        prompt: token ids.
        max_new_tokens: stop after so many; earlier when all beams have ended.
        beams: how many continuations are kept a row.
        stochastic: which tokens continue a beam is drawn without replacement, by Gumbel noise on the logits (Kool et
            al. 2019, arXiv:1903.06059), after temperature and filters; scores are of the model all the same.
        **options: see `Options`; those that sample need `stochastic`.

    Raises:
        ConfigError: an option that is unknown, out of range, or has no effect here; a model that cannot decode.
        ShapeError: as for `generate`.
    """
    _check(beams, stochastic, options)
    return _Search(model, prompt, max_new_tokens, beams, stochastic, options).run()


class _Search:
    """One search.

    Args:
        model: the model.
        prompt: token ids.
        max_new_tokens: the most steps.
        beams: how many continuations are kept a row.
        stochastic: whether continuations are drawn.
        options: see `Options`.
    """

    def __init__(
        self, model: nn.Module, prompt: Prompts, max_new_tokens: int, beams: int, stochastic: bool, options: Options
    ) -> None:
        self.run_of = Generation(model, prompt, max_new_tokens, options, keep_state=False)
        self.beams = beams
        self.stochastic = stochastic

    def run(self) -> Beams:
        """Search."""
        loop = self.run_of
        batch = loop.batch.ids.shape[0]
        ids, valid = loop.batch.ids, loop.batch.valid
        tokens = ids.new_zeros(batch, 1, 0)
        scores = torch.zeros(batch, 1, device=ids.device)
        ended = torch.zeros(batch, 1, dtype=torch.bool, device=ids.device)
        with evaluating(loop.model), mode_of(loop.options, False):
            for step in range(loop.steps):
                logits = loop.reader.read(ids, valid)
                logits = logits.view(batch, -1, logits.shape[-1])
                scores, parents, chosen = self._best(logits, scores, ended)
                tokens = torch.cat((_of(tokens, parents), chosen.unsqueeze(-1)), -1)
                ended = _of(ended, parents)
                if loop.ends is not None:
                    ended = ended | torch.isin(chosen, loop.ends)
                    if bool(ended.all()):
                        break
                if step + 1 < loop.steps:
                    first = torch.arange(batch, device=ids.device).unsqueeze(1) * logits.shape[1]
                    loop.reader.select((first + parents).flatten(), batch * logits.shape[1])
                ids, valid = chosen.reshape(-1, 1), None
        found = Beams(tokens.clone(), scores.clone())  # outside of the mode: tensors like any other
        return Beams(found.tokens[0], found.scores[0]) if loop.batch.single else found

    def _best(self, logits: Tensor, scores: Tensor, ended: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scores of the continuations that go on, the beams that they continue, and their tokens.

        Shapes:
            logits: [B, K, V]; scores, ended: [B, K] -> three times [B, K']
        """
        chances = logits.float().log_softmax(-1) if logits.element_size() < 4 else logits.log_softmax(-1)
        offered = self._offered(logits)
        gains = chances if offered is None else chances.masked_fill(~offered, -torch.inf)
        ends = ended.unsqueeze(-1)
        stay = F.one_hot(torch.full_like(ended, self.run_of.pad, dtype=torch.long), logits.shape[-1]).bool()
        gains = torch.where(ends, torch.where(stay, 0.0, -torch.inf), gains)
        sums = (scores.to(gains.dtype).unsqueeze(-1) + gains).flatten(1)
        best, places = sums.topk(min(self.beams, sums.shape[1]))
        return best, places // logits.shape[-1], places % logits.shape[-1]

    def _offered(self, logits: Tensor) -> Tensor | None:
        """[B, K, V] bool, the tokens that were drawn to continue each beam; None offers all."""
        if not self.stochastic:
            return None
        loop = self.run_of
        flat = logits.flatten(0, 1)
        flat = flat.float() if flat.element_size() < 4 else flat
        flat = filtered(flat, loop.filters)
        uniform = torch.rand(flat.shape, dtype=flat.dtype, device=flat.device, generator=loop.generator)
        tiny = torch.finfo(flat.dtype).tiny
        noisy = flat - (-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()
        values, drawn = noisy.topk(min(self.beams, flat.shape[-1]))
        offered = torch.zeros_like(flat, dtype=torch.bool).scatter(-1, drawn, values > -torch.inf)
        return offered.view_as(logits)


def _of(beams: Tensor, parents: Tensor) -> Tensor:
    """What belonged to the beams that are continued."""
    places = parents if beams.dim() == 2 else parents.unsqueeze(-1).expand(-1, -1, beams.shape[-1])
    return beams.gather(1, places)


def _check(beams: Any, stochastic: bool, options: Options) -> None:
    problems = []
    if isinstance(beams, bool) or not isinstance(beams, int) or beams < 1:
        problems.append(Problem("beams", "must be an integer of at least 1", beams))
    if options.get("greedy"):
        problems.append(Problem("greedy", "a beam search keeps several continuations", True, "beams=1 is greedy"))
    if stochastic and options.get("temperature") == 0:
        problems.append(Problem("temperature", "0 draws nothing", 0, "leave stochastic out"))
    if not stochastic:
        given: dict[str, Any] = dict(options)
        problems += [
            Problem(name, "has no effect: beams are continued by their most probable tokens", hint="stochastic=True")
            for name in _DRAWING
            if given.get(name) not in (None, ()) and not (name == "temperature" and given[name] in (0, 1))
        ]
    if problems:
        raise ConfigError(problems)
