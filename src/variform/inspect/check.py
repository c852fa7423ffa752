"""`vf.check`: everything that is wrong with a description, as a report; nothing is allocated."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from variform.core.codec import as_spec, read_file, to_dict
from variform.core.resolve import examine
from variform.core.spec import Spec
from variform.core.superset import set_aside
from variform.errors import ConfigError, Problem, VariformError
from variform.inspect.describe import Description, describe_model
from variform.inspect.fake import FakeModel
from variform.inspect.rows import params_by_path
from variform.inspect.table import human_bytes, path_template, path_text
from variform.stack.decodable import undecodable

T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """What a check found.

    Args:
        problems: all of them, each with its path and remedy.
        spec: the resolved spec; None where it could not be resolved.
        dropped: paths of keys that belong to other parts and were set aside (`superset=True`).
        description: cost and shapes, where the check ran the model on stand-in tensors.
        params: parameters, where the check counted them.
    """

    problems: tuple[Problem, ...]
    spec: Spec | None
    dropped: tuple[str, ...] = ()
    description: Description | None = None
    params: int | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """The report as plain data; `spec` is None where it cannot be written."""
        return {
            "ok": self.ok,
            "problems": [problem.to_json() for problem in self.problems],
            "dropped": list(self.dropped),
            "spec": self._plain_spec(),
            "params": self.params,
            "flops": None if self.description is None else self.description.flops,
        }

    def _plain_spec(self) -> dict[str, Any] | None:
        try:
            return None if self.spec is None else to_dict(self.spec)
        except ConfigError:  # it holds a module or a callable, which builds but has no plain form
            return None

    def __str__(self) -> str:
        lines = [f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}:"] if self.problems else ["ok"]
        lines += [f"  {line}" for line in _problem_lines(self.problems)]
        if self.dropped:
            lines.append(f"set aside: {', '.join(self.dropped)}")
        if self.params is not None and self.ok:
            lines[0] = f"ok: {self.params:,} parameters"
        return "\n".join(lines)


def _problem_lines(problems: tuple[Problem, ...]) -> list[str]:
    """Problems as text; the same one in many equal layers is shown once."""
    groups: dict[tuple[Any, ...], list[Problem]] = {}
    for problem in problems:
        key = (path_template(problem.path), str(replace(problem, path="")))
        groups.setdefault(key, []).append(problem)
    return [str(replace(of[0], path=path_text([problem.path for problem in of]))) for of in groups.values()]


def check(
    source: Any,
    *,
    batch: int | None = None,
    length: int | None = None,
    decode: bool = False,
    max_params: int | None = None,
    max_flops: float | None = None,
    max_memory: int | str | None = None,
    superset: bool = False,
    **facts: Any,
) -> Report:
    """Find everything that is wrong with a description. It never raises for what it checks.

    Args:
        source: a spec, a mapping, a config file, or a built model.
        batch: also run the model on stand-in tensors of this many rows, and report what does not fit; 1 where only
            a length or a budget asks for a run.
        length: tokens a row, for that run; the longest the model takes by default.
        decode: report parts that cannot decode step by step.
        max_params: the most parameters it may have.
        max_flops: the most operations of one forward pass.
        max_memory: the most bytes of a training step with AdamW: a number, or text such as "24 GiB".
        superset: set keys aside that belong to another part of the same kind, and list them in `dropped`.
        **facts: what the surroundings provide, when a part is checked alone (`dim=64, heads=4`).

    Raises:
        ConfigError: `max_memory` cannot be read.
    """
    memory = _bytes(max_memory)
    dropped: tuple[str, ...] = ()
    try:
        if superset:
            source, dropped = _superset(source)
        spec = as_spec(source)
    except ConfigError as error:
        return Report(error.problems, None, dropped)
    resolved, problems = examine(spec, **facts)
    if resolved is None or problems:
        return Report(tuple(problems), resolved, dropped)
    if decode:
        problems = problems + undecodable(resolved)
    if any(wanted is not None for wanted in (batch, length, max_flops, memory)):
        described, failure = _attempt(
            resolved, lambda model: describe_model(model, resolved, 1 if batch is None else batch, length)
        )
        params = None if described is None else described.params
    elif max_params is not None:  # counting needs no run, and so no length
        described = None
        params, failure = _attempt(resolved, lambda model: params_by_path(model.tree)[""])
    else:
        return Report(tuple(problems), resolved, dropped)
    budget = _over_budget(described, params, max_params, max_flops, memory)
    return Report((*problems, *failure, *budget), resolved, dropped, described, params)


def _attempt(resolved: Spec, function: Callable[[FakeModel], T]) -> tuple[T | None, list[Problem]]:
    """Build from stand-ins and look at it; what goes wrong is a problem at the part where it went wrong."""
    model: FakeModel | None = None
    try:
        model = FakeModel(resolved, torch.float32)
        return function(model), []
    except ConfigError as error:
        return None, list(error.problems)
    except VariformError as error:
        message = str(error)
    except Exception as error:  # whatever a part raises when it is built or run is what this check is to report
        message = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return None, [Problem("" if model is None else model.failed_path, message)]


def _over_budget(
    described: Description | None,
    params: int | None,
    max_params: int | None,
    max_flops: float | None,
    max_memory: int | None,
) -> list[Problem]:
    problems = []
    if max_params is not None and params is not None and params > max_params:
        message = f"the model has {params:,} parameters, more than max_params = {max_params:,}"
        problems.append(Problem("", message, hint="take a smaller dim or fewer layers"))
    if described is None:
        return problems
    if max_flops is not None and described.flops > max_flops:
        message = f"a forward pass takes {described.flops:.4g} FLOP, more than max_flops = {max_flops:.4g}"
        problems.append(Problem("", message, hint="take a smaller model, batch or length"))
    total = described.memory_training().total
    if max_memory is not None and total > max_memory:
        message = f"a training step takes {human_bytes(total)}, more than max_memory = {human_bytes(max_memory)}"
        rows = described.largest_batch(max_memory / (1 << 30))
        hint = f"the largest batch that fits is {rows}" if rows else "not one row fits: take a smaller model or length"
        problems.append(Problem("", message, hint=hint))
    return problems


def _superset(source: Any) -> tuple[Any, tuple[str, ...]]:
    if isinstance(source, (str, Path)):
        source = read_file(source)
        if isinstance(source, Mapping) and not {"part", "preset"} & set(source) and "model" in source:
            source = source["model"]
    return set_aside(source)


def _bytes(size: int | str | None) -> int | None:
    """Bytes from a number or from text such as `24 GiB` or `80GB`."""
    if size is None or isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(i?)B\s*", size)
    if match is None:
        raise ConfigError("a size of memory is a number of bytes, or text such as '24 GiB'", value=size)
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix or " "))
