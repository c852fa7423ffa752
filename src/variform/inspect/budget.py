"""Limits on what a model may cost, and what is told where it exceeds one: figure, limit, heaviest places."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from variform.errors import ConfigError, Problem
from variform.inspect.table import human_bytes, path_template, path_text

SHOWN = 3
_TIMES = " KMGTPE"


@dataclass(frozen=True)
class Limits:
    """The most that a model may have or take; None stands for no limit.

    Args:
        params: parameters.
        flops: operations of one forward pass; attention counts visited pairs, a multiply-add counts 2.
        memory: bytes of a training step: parameters, gradients, the optimizer's values and what the forward pass keeps
            for the backward pass, all in one type. Temporaries of single operations come on top.
    """

    params: int | None = None
    flops: int | None = None
    memory: int | None = None

    @staticmethod
    def read(params: Amount = None, flops: Amount = None, memory: Amount = None) -> Limits:
        """Limits from numbers, or from text: '100M', '1.5G', '2 GiB'.

        Raises:
            ConfigError: all that cannot be read.
        """
        problems: list[Problem] = []

        def read(name: str, value: Amount, unit: str) -> int | None:
            try:
                return None if value is None else read_amount(value, unit)
            except ValueError as error:
                problems.append(Problem(name, str(error), value))
                return None

        limits = Limits(
            read("max_params", params, ""), read("max_flops", flops, "FLOP"), read("max_memory", memory, "B")
        )
        if problems:
            raise ConfigError(problems)
        return limits

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.params, self.flops, self.memory))

    @property
    def needs_run(self) -> bool:
        """Whether counting parameters is not enough."""
        return self.flops is not None or self.memory is not None


Amount = int | float | str | None


@dataclass(frozen=True)
class Load:
    """What one place of a model costs, all below it included.

    Args:
        path: where it stands; empty for the whole.
        label: what it is called beside its path.
        params: parameters.
        flops: operations of the forward pass.
        memory: bytes of a training step.
    """

    path: str
    label: str
    params: int
    flops: int = 0
    memory: int = 0


def read_amount(value: int | float | str, unit: str = "") -> int:
    """A number from how it is written: 250, 1e9, '100M', '1.5 T', '24 GiB'; K is a thousand, and Ki 1024.

    Raises:
        ValueError: no such number, or not above 0.
    """
    wanted = f"a number, or text such as {'24 GiB' if unit == 'B' else '1.5G'!r}"
    if isinstance(value, bool):
        raise ValueError(f"must be {wanted}")
    if isinstance(value, (int, float)):
        number = float(value)
    else:
        match = re.fullmatch(rf"\s*(\d+\.?\d*(?:e\d+)?)\s*([KMGTPE]?)(i?)(?:{unit}s?)?\s*", str(value), re.IGNORECASE)
        if match is None:
            raise ValueError(f"must be {wanted}")
        digits, prefix, binary = match.groups()
        number = float(digits) * (1024 if binary else 1000) ** _TIMES.index(prefix.upper() or " ")
    if not 0 < number < float("inf"):
        raise ValueError(f"must be above 0: {wanted}")
    return int(number)


def over(limits: Limits, loads: Sequence[Load], fits: Callable[[int], int] | None = None) -> list[Problem]:
    """What exceeds its limit.

    Args:
        limits: the most that is allowed.
        loads: all places, parents before what is below them; the first is the whole.
        fits: the largest batch that fits into a number of bytes.
    """
    whole = loads[0]
    found = []
    if limits.params is not None and whole.params > limits.params:
        message = f"the model has {whole.params:,} parameters, more than max_params = {limits.params:,}"
        hint = f"the most are in {_heaviest(loads, lambda load: load.params, _number)}"
        found.append(Problem("", message, hint=hint))
    if limits.flops is not None and whole.flops > limits.flops:
        needed, most = _apart(whole.flops, limits.flops, lambda n: f"{n:.4g}")
        message = f"a forward pass takes {needed} FLOP, more than max_flops = {most}"
        hint = f"the most are in {_heaviest(loads, lambda load: load.flops, lambda n: f'{n:.3g}')}"
        found.append(Problem("", message, hint=hint))
    if limits.memory is not None and whole.memory > limits.memory:
        needed, most = _apart(whole.memory, limits.memory, human_bytes)
        message = f"a training step takes {needed}, more than max_memory = {most}"
        hint = f"the most is in {_heaviest(loads, lambda load: load.memory, human_bytes)}"
        if fits is not None:
            rows = fits(limits.memory)
            hint += f"; the largest batch that fits is {rows}" if rows else "; not one row fits"
        found.append(Problem("", message, hint=hint))
    return found


def _apart(value: int, limit: int, text: Callable[[int], str]) -> tuple[str, str]:
    """Both in words; in full where rounding would make them look equal."""
    short = (text(value), text(limit))
    return short if short[0] != short[1] else (_number(value), _number(limit))


def _number(value: int) -> str:
    return f"{value:,}"


def _heaviest(loads: Sequence[Load], cost: Callable[[Load], int], text: Callable[[int], str]) -> str:
    """The places that have the most themselves, equal ones of equal layers taken together."""
    own = _own(loads, cost)
    groups: dict[tuple[object, ...], list[Load]] = {}
    for load in loads:
        if own[load.path] > 0:
            groups.setdefault((*path_template(load.path), load.label, own[load.path]), []).append(load)
    heavy = sorted(groups.values(), key=lambda group: -sum(own[load.path] for load in group))
    names = []
    for group in heavy[:SHOWN]:
        each, count = own[group[0].path], len(group)
        share = f"{text(each * count)}" + (f" in all, {text(each)} each" if count > 1 else "")
        names.append(f"{_where(group)} ({share})")
    return "; ".join(names)


def _where(group: Sequence[Load]) -> str:
    path = path_text([load.path for load in group]).replace("  ", " ")
    return " ".join(part for part in (group[0].label, path and f"at {path}") if part)


def _own(loads: Iterable[Load], cost: Callable[[Load], int]) -> dict[str, int]:
    """What each place costs beside the places below it."""
    own: dict[str, int] = {}
    above: list[str] = []
    for load in loads:
        own[load.path] = cost(load)
        while above and above[-1] and not load.path.startswith(f"{above[-1]}."):
            above.pop()
        if above:
            own[above[-1]] -= cost(load)
        above.append(load.path)
    return own
