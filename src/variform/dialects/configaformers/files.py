"""Programs in files: a YAML or JSON mapping with the key `blocks`, the shapes of the inputs, and `sizes`."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from variform.core.change import override
from variform.core.formats import register_format
from variform.core.resolve import resolve
from variform.core.spec import Spec
from variform.core.text import parse_yaml, read_file
from variform.dialects.configaformers.budget import within
from variform.dialects.configaformers.errors import ConfigaformersError
from variform.dialects.configaformers.model_builder import program_spec
from variform.errors import Problem, did_you_mean

KEYS = ("blocks", "input_streams", "input_shapes", "output_streams", "sizes", "budget")
"""What a program file holds, under the names of the arguments of `program_spec`."""

FIELDS = ("attention", "executor", "strict")
"""What it may hold beside them: fields of the program itself."""


def load_program(path: str | Path, overrides: Iterable[str] = ()) -> Spec:
    """The program in a file, resolved; see `program_of`."""
    return program_of(read_file(path), overrides)


def program_of(content: Mapping[str, Any], overrides: Iterable[str] = ()) -> Spec:
    """The program that a mapping describes, resolved.

    Args:
        content: `blocks`, `input_streams` or `input_shapes`, and if need be `sizes`, `output_streams`, and the
            fields of the program: `attention`, `executor`, `strict`; and `budget`, limits that it must keep to.
        overrides: `path=value` into the mapping: `sizes.d=64`, `blocks.1.repeat=2`, `executor=checkpoint`.

    Raises:
        ConfigaformersError: all problems at once.
    """
    if "blocks" not in content:
        raise ConfigaformersError(Problem("", "a program is a mapping with the key 'blocks'", content))
    settings = {str(key): copy.deepcopy(value) for key, value in content.items()}
    problems = [
        Problem(key, "a program has no such key", hint=did_you_mean(key, (*KEYS, *FIELDS)))
        for key in settings
        if key not in (*KEYS, *FIELDS)
    ]
    for text in overrides:
        name, sign, value = text.partition("=")
        steps = re.sub(r"\[([^\]]*)\]", r".\1", name.strip()).strip(".").split(".")
        if not sign or not steps[0]:
            problems.append(Problem("", "an override is written path=value", text))
        else:
            problems += _put(settings, steps, parse_yaml(value, f"the override {text!r}"))
    if problems:
        raise ConfigaformersError(problems)
    budget = settings.pop("budget", None)
    spec = program_spec(**{key: value for key, value in settings.items() if key in KEYS})
    changes = {key: settings[key] for key in FIELDS if key in settings}
    return within(resolve(override(spec, changes)) if changes else spec, budget)


register_format("blocks", program_of)


def _put(settings: dict[str, Any], steps: list[str], value: Any) -> list[Problem]:
    """Set one value; a key of a module or block may be new, all before it must be there."""
    path = ".".join(steps)
    place: Any = settings
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        if isinstance(place, list):
            if not re.fullmatch(r"-?\d+", step) or not -len(place) <= int(step) < len(place):
                return [Problem(path, f"there is no item {step!r} in a list of {len(place)}", value)]
            key: Any = int(step)
        elif isinstance(place, dict):
            free = last and (step in FIELDS if depth == 0 else depth > 1 and steps[0] == "blocks")
            if step not in place and not free:
                known = [str(name) for name in place] + (list(FIELDS) if depth == 0 else [])
                return [Problem(path, f"the program has no {step!r} here", value, did_you_mean(step, known))]
            key = step
        else:
            return [Problem(path, f"there is nothing below {steps[depth - 1]!r}", value)]
        if last:
            place[key] = value
        else:
            place = place[key]
    return []
