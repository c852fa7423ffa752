"""`vf.check`: everything that is wrong with a description, as a report; nothing is allocated."""

from __future__ import annotations

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
from variform.inspect.budget import Amount, Limits, over
from variform.inspect.describe import Description, check_optimizer
from variform.inspect.fake import FakeModel
from variform.inspect.loads import Measured, counted, measured
from variform.inspect.table import path_template, path_text
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
        flops: operations of a forward pass, where the check ran the model.
    """

    problems: tuple[Problem, ...]
    spec: Spec | None
    dropped: tuple[str, ...] = ()
    description: Description | None = None
    params: int | None = None
    flops: int | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def notes(self) -> tuple[Problem, ...]:
        """What is not wrong and still worth a look, such as streams that nothing reads."""
        if self.spec is None or self.problems:
            return ()
        return tuple(note.below(path) for path, spec in self.spec.walk() for note in spec.part.notes(spec.args))

    def to_json(self) -> dict[str, Any]:
        """The report as plain data; `spec` is None where it cannot be written."""
        return {
            "ok": self.ok,
            "problems": [problem.to_json() for problem in self.problems],
            "notes": [note.to_json() for note in self.notes],
            "dropped": list(self.dropped),
            "spec": self._plain_spec(),
            "params": self.params,
            "flops": self.flops,
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
        lines += [f"warning: {replace(note, path='')}" for note in self.notes]
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
    at: Mapping[str, int] | None = None,
    max_params: Amount = None,
    max_flops: Amount = None,
    max_memory: Amount = None,
    optimizer: str = "adamw",
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
        at: the sizes of that run by name, in place of batch and length; see `vf.costs`.
        max_params: the most parameters it may have: a number, or text such as "100M".
        max_flops: the most operations of one forward pass.
        max_memory: the most bytes of a training step in float32: parameters, gradients, the optimizer's values and
            what the forward pass keeps; a number, or text such as "24 GiB".
        optimizer: by name; it says how many values are kept for each parameter.
        superset: set keys aside that belong to another part of the same kind, and list them in `dropped`.
        **facts: what the surroundings provide, when a part is checked alone (`dim=64, heads=4`).

    Raises:
        ConfigError: a limit or the optimizer cannot be read, or sizes are given twice.
    """
    limits = Limits.read(max_params, max_flops, max_memory)
    check_optimizer(optimizer)
    if at is not None and (batch is not None or length is not None):
        raise ConfigError("give sizes by name, or batch and length, not both", path="at")
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
    runs = limits.needs_run or any(wanted is not None for wanted in (batch, length, at))
    if not runs and not limits:
        return Report(tuple(problems), resolved, dropped)

    def measure(model: FakeModel) -> Measured:
        if not runs:  # counting needs no run, and so no length
            return counted(model)
        return measured(model, resolved, 1 if batch is None else batch, length, at, optimizer)

    found, failure = _attempt(resolved, measure)
    if found is None:
        return Report((*problems, *failure), resolved, dropped)
    exceeded = over(limits, found.loads, found.fits)
    whole = found.loads[0]
    flops = whole.flops if runs else None
    return Report((*problems, *exceeded), resolved, dropped, found.description, whole.params, flops)


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


def _superset(source: Any) -> tuple[Any, tuple[str, ...]]:
    if isinstance(source, (str, Path)):
        source = read_file(source)
        if isinstance(source, Mapping) and not {"part", "preset"} & set(source) and "model" in source:
            source = source["model"]
    return set_aside(source)
