"""What can be asked of `generate` and `stream`, and the checks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from variform.errors import ConfigError, Problem, did_you_mean
from variform.generate.samplers import Filter
from variform.parts.kinds import State


class Options(TypedDict, total=False):
    """Keywords of `generate` and `stream`.

    Args:
        temperature: divides the logits, 1.0 by default; 0 is greedy.
        top_k: draw from the k most probable tokens.
        top_p: draw from the smallest set of most probable tokens that together reach this probability.
        min_p: draw from the tokens at least this many times as probable as the most probable one.
        filters: further samplers, functions from logits [B, V] to logits, applied last.
        greedy: take the most probable token.
        eos: token or tokens that end a row; one inside the prompt does not count.
        pad: what an ended row is filled up with; the first `eos` by default.
        lengths: [B], real tokens a row, of prompts padded on the right.
        valid: [B, L] bool, False at padding of the prompts, wherever it stands.
        seed: makes the draws reproducible.
        generator: draws from this generator; not with `seed`.
        source: the encoder's input, for a model that has one.
        source_valid: [B, Ls] bool, False at padding of the source.
        source_condition: [B, C] or [B, Ls, C], for adaptive parts of the encoder.
        context: [B, Lc, dim_context] for cross attention.
        context_mask: [B, Lc] bool, False at padding of the context.
        condition: [B, dim_condition] for adaptive parts.
        prefix: [B, P, dim] features that stand before the prompt, for a model whose embedding takes them.
        prefix_valid: [B, P] bool, False at padding of the prefix.
        passes: how often stacks run that run several times.
        exit: the probability at which a looped stack lets a token out.
        streams: of a program, the inputs that stay the same, by name (`{"attn_offset": offset}`).
        input: of a program with several inputs of ids, the name of the tokens'.
        output: of a program with several outputs, the name of the logits.
        state: continue from this state; the prompt is what has not been read yet.
        max_len: capacity of the decode state in tokens; by default what this call needs, or with `return_state` the
            model's `max_seq_len`.
        window: how many of the last tokens count, of a text that becomes longer. A model without absolute positions
            attends in every layer to so many at most, its own included; one with absolute positions, whose window
            ends at its `max_seq_len`, or with parts that take no mask, reads the last ones again for each new token,
            and so does any model with a `prefix`, which stays in front of them. Cached or not, it is the same.
        use_cache: keep a decode state (default); False reads everything again for each token.
        bucket: round the attended length up to a multiple of it, for compiled steps; 0 is exact, the default, and 64
            with `compile`.
        compile: read single tokens with a step that `torch.compile` has made (a minute or more, the first time), for
            this model and these weights: when they have changed it is made anew. On a CPU they are laid out once more
            for the step's products. A string names another backend than inductor; what the prompt holds, and rows of
            which some have ended, are read as without.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    filters: Sequence[Filter]
    greedy: bool
    eos: int | Sequence[int] | None
    pad: int | None
    lengths: Tensor | Sequence[int] | None
    valid: Tensor | None
    seed: int | None
    generator: torch.Generator | None
    source: Tensor | None
    source_valid: Tensor | None
    source_condition: Tensor | None
    context: Tensor | None
    context_mask: Tensor | None
    condition: Tensor | None
    prefix: Tensor | None
    prefix_valid: Tensor | None
    passes: int | None
    exit: float | None
    streams: Mapping[str, Tensor] | None
    input: str | None
    output: str | None
    state: State | None
    max_len: int | None
    window: int | None
    use_cache: bool
    bucket: int
    compile: bool | str


def check_options(options: Mapping[str, Any], max_new_tokens: int) -> None:
    """Raise `ConfigError` with everything that is wrong with the options."""
    known = Options.__annotations__
    problems = [
        Problem(name, "no such option", hint=did_you_mean(name, known)) for name in options if name not in known
    ]
    _check_number(problems, "max_new_tokens", max_new_tokens, whole=True, low=1)
    _check_number(problems, "temperature", options.get("temperature", 1.0), low=0)
    _check_number(problems, "top_k", options.get("top_k"), whole=True, low=1)
    _check_number(problems, "top_p", options.get("top_p"), low=0, high=1, above=True)
    _check_number(problems, "min_p", options.get("min_p"), low=0, high=1)
    _check_number(problems, "bucket", options.get("bucket", 0), whole=True, low=0)
    _check_number(problems, "max_len", options.get("max_len"), whole=True, low=1)
    _check_number(problems, "window", options.get("window"), whole=True, low=1)
    _check_number(problems, "pad", options.get("pad"), whole=True)
    if options.get("seed") is not None and options.get("generator") is not None:
        problems.append(Problem("seed", "seed and generator both fix the draws: give one of them"))
    if not options.get("use_cache", True):
        problems += [
            Problem(name, "needs the cache, and use_cache is False")
            for name in ("state", "bucket", "max_len", "compile")
            if options.get(name)
        ]
    if options.get("state") is not None and (options.get("bucket") or options.get("max_len")):
        problems.append(Problem("state", "bucket and max_len were settled when the state was made: leave them out"))
    if problems:
        raise ConfigError(problems)


def end_tokens(options: Mapping[str, Any], vocab_size: int | None) -> tuple[int, ...]:
    """The tokens that end a row.

    Raises:
        ConfigError: one is no token.
    """
    eos = options.get("eos")
    ends = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    for token in ends:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0 or (vocab_size and token >= vocab_size):
            raise ConfigError(f"a token id in [0, {vocab_size or 'the vocabulary'}) is needed", path="eos", value=token)
    return ends


def _check_number(
    problems: list[Problem],
    name: str,
    value: Any,
    *,
    whole: bool = False,
    low: float | None = None,
    high: float | None = None,
    above: bool = False,
) -> None:
    if value is None and name != "max_new_tokens":
        return
    kind = "an integer" if whole else "a number"
    rule = f"must be {kind}"
    if high is not None:
        rule += f" in {'(' if above else '['}{low}, {high}]"
    elif low is not None:
        rule += f" of at least {low}"
    good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    good = good and (low is None or (value > low if above else value >= low)) and (high is None or value <= high)
    if not good:
        problems.append(Problem(name, rule, value))
