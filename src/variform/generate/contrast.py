"""Contrastive decoding: what a good model finds more probable than a poor one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from variform.errors import ConfigError, Problem, ShapeError
from variform.parts.kinds import State


class Contrast(nn.Module):
    """Several models that decode as one: an expert, and amateurs whose opinion is subtracted.

    Beginning with the expert's logits, each amateur's are taken off in turn,
    `(1 + beta) logits - beta amateur`, of tokens with `logits >= log(alpha) + max(logits)`; others are ruled out
    (Li et al. 2022, arXiv:2210.15097, as O'Brien and Lewis 2023, arXiv:2309.09117, write it). `vf.generate`,
    `vf.stream` and `vf.beam_search` take it as any model: `vf.generate(Contrast(large, [small]), prompt, 100)`.

    Shapes:
        ids: [B, L] -> [B, L, V]; with a state, (that, new state)

    Args:
        expert: a causal model of the core.
        amateurs: others of the same tokens.
        alpha: in (0, 1], how probable a token must be, compared with the most probable.
        beta: how much of an amateur's logits is taken off; one for all, or one each.

    Raises:
        ConfigError: models of different vocabularies or without a head, no amateurs, or numbers out of range.
    """

    def __init__(
        self,
        expert: nn.Module,
        amateurs: Sequence[nn.Module],
        alpha: float | Sequence[float] = 0.1,
        beta: float | Sequence[float] = 0.5,
    ) -> None:
        super().__init__()
        self.alphas = _each("alpha", alpha, len(amateurs))
        self.betas = _each("beta", beta, len(amateurs))
        problems = [Problem("alpha", "must lie in (0, 1]", a) for a in self.alphas if not 0 < a <= 1]
        problems += [Problem("beta", "must not be negative", b) for b in self.betas if b < 0]
        sizes = {getattr(model, "vocab_size", None) for model in (expert, *amateurs)}
        if len(sizes) > 1:
            known = sorted(size for size in sizes if size is not None)
            problems.append(Problem("amateurs", f"expert and amateurs must share one vocabulary, not of {known}"))
        if any(getattr(model, "head", model) is None for model in (expert, *amateurs)):
            problems.append(Problem("amateurs", "expert and amateurs must have heads: logits are contrasted"))
        if not amateurs:
            problems.append(Problem("amateurs", "at least one is needed"))
        if problems:
            raise ConfigError(problems)
        self.expert = expert
        self.amateurs = nn.ModuleList(amateurs)

    @property
    def vocab_size(self) -> int | None:
        """The number of different tokens."""
        return getattr(self.expert, "vocab_size", None)

    @property
    def max_seq_len(self) -> int | None:
        """The length that all of them take."""
        limits = [getattr(model, "max_seq_len", None) for model in (self.expert, *self.amateurs)]
        return min((limit for limit in limits if limit is not None), default=None)

    def forward(
        self,
        ids: Tensor,
        *,
        valid: Tensor | None = None,
        mask: Any = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        condition: Tensor | None = None,
        prefix: Tensor | None = None,
        prefix_valid: Tensor | None = None,
        passes: int | None = None,
        exit: float | None = None,
        state: State | None = None,
    ) -> Any:
        """The contrasted logits; side inputs are those of every model, `passes` and `exit` of those that take them.

        Raises:
            ShapeError: a model answers for other tokens than another.
        """
        given = {
            "mask": mask,
            "context": context,
            "context_mask": context_mask,
            "condition": condition,
            "prefix": prefix,
            "prefix_valid": prefix_valid,
        }
        streams = {name: value for name, value in given.items() if value is not None}
        runs = {name: value for name, value in (("passes", passes), ("exit", exit)) if value is not None}
        models = (self.expert, *self.amateurs)
        states = (None,) * len(models) if state is None else state["models"]
        taken = [runs, *(_taken(amateur, runs) for amateur in self.amateurs)]
        outs = [
            model(ids, valid=valid, state=s, **streams, **own)
            for model, s, own in zip(models, states, taken, strict=True)
        ]
        logits, *others = outs if state is None else [out for out, _ in outs]
        for amateur, alpha, beta in zip(others, self.alphas, self.betas, strict=True):
            if amateur.shape[-1] != logits.shape[-1]:
                sizes = f"{logits.shape[-1]} and {amateur.shape[-1]}"
                raise ShapeError(f"expert and amateurs must answer for the same tokens, not for {sizes} of them")
            logits = contrasted(logits, amateur, alpha, beta)
        return logits if state is None else (logits, {"models": tuple(new for _, new in outs)})

    def init_state(
        self, batch: int, max_len: int, *, bucket: int = 0, passes: int | None = None, **streams: Any
    ) -> State:
        """Empty decode states of all of them; `passes` is for those that take it."""
        models: tuple[Any, ...] = (self.expert, *self.amateurs)
        runs = {} if passes is None else {"passes": passes}
        taken = [runs, *(_taken(amateur, runs) for amateur in self.amateurs)]
        states = [
            model.init_state(batch, max_len, bucket=bucket, **streams, **own)
            for model, own in zip(models, taken, strict=True)
        ]
        return {"models": tuple(states)}


def contrasted(expert: Tensor, amateur: Tensor, alpha: float = 0.1, beta: float = 0.5) -> Tensor:
    """Logits that prefer what the expert finds more probable than the amateur does.

    `(1 + beta) expert - beta amateur` where `expert >= log(alpha) + max(expert)`, else the least finite number.

    Shapes:
        expert, amateur: [.., V] -> [.., V]

    Args:
        expert: logits.
        amateur: logits of the same tokens.
        alpha: in (0, 1], how probable a token must be for the expert, compared with its most probable.
        beta: how much the amateur counts.
    """
    cutoff = math.log(alpha) + expert.amax(-1, keepdim=True)
    difference = (1 + beta) * expert - beta * amateur
    return difference.masked_fill(expert < cutoff, torch.finfo(expert.dtype).min)


def _taken(model: Any, runs: Mapping[str, Any]) -> dict[str, Any]:
    """How often layers are to run, for a model whose layers run several times."""
    reads = getattr(model, "reads_below", runs)
    return {name: value for name, value in runs.items() if name in reads}


def _each(name: str, value: float | Sequence[float], count: int) -> tuple[float, ...]:
    if isinstance(value, int | float):
        return (float(value),) * count
    if len(value) != count:
        raise ConfigError(f"one value, or one for each of the {count} amateurs", path=name, value=value)
    return tuple(value)
