"""What a program may cost at most: limits that a file or a call states beside its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from variform.core.spec import Spec
from variform.dialects.configaformers.errors import ConfigaformersError
from variform.errors import ConfigError, Problem, did_you_mean

KEYS = ("max_params", "max_flops", "max_memory", "at", "optimizer")


def within(spec: Spec, budget: Mapping[str, Any] | None) -> Spec:
    """The program, where it keeps to its budget.

    Args:
        spec: resolved.
        budget: `max_params`, `max_flops`, `max_memory` (numbers, or text such as '100M' and '2GiB'), `at` with a number
            for each named size where more than parameters is limited, and `optimizer`; None for no limits.

    Raises:
        ConfigaformersError: what exceeds its limit, with the figure and the heaviest lines; or a key that is none.
    """
    if budget is None:
        return spec
    problems = _problems(budget)
    if problems:
        raise ConfigaformersError(problems)
    from variform.inspect import check  # programs without a budget do without the machinery that measures

    try:
        found = check(spec, **budget).problems
    except ConfigError as error:
        found = error.problems
    if found:
        raise ConfigaformersError([replace(p, path=f"budget.{p.path}".removesuffix(".")) for p in found])
    return spec


def _problems(budget: Any) -> list[Problem]:
    if not isinstance(budget, Mapping):
        return [Problem("budget", "must be a mapping of limits", budget, f"known: {', '.join(KEYS)}")]
    problems = [
        Problem(f"budget.{key}", "a budget has no such key", hint=did_you_mean(str(key), KEYS))
        for key in budget
        if key not in KEYS
    ]
    at = budget.get("at")
    if at is not None and not isinstance(at, Mapping):
        problems.append(Problem("budget.at", "must be a mapping: a number for each named size", at))
    elif at is None and {"max_flops", "max_memory"} & set(budget):
        hint = "at: {B: 8, L: 1024}"
        problems.append(Problem("budget.at", "operations and memory depend on the sizes: give them", hint=hint))
    return problems
