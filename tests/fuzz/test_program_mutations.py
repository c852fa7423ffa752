"""A changed program is refused before anything is made, or every line of it has just the shapes that are printed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

import variform as vf
from tests.dialects.configaformers.running import check_printed_shapes, no_tensors
from tests.fuzz.programs import BASES, Mutant, Program, base, blocks_of, mutant, shapes_of
from variform.dialects.configaformers import ConfigaformersError
from variform.dialects.configaformers.model_builder import ConfigaFormer, program_spec
from variform.errors import Problem

SIZES = ((1, 9, 5), (3, 11, 7))
"""Batch, length and the lengths of all else of the runs."""

LARGEST = 3000
"""The largest size of a tensor that is really made here."""


@pytest.mark.parametrize("name", sorted(BASES))
def test_the_programs_themselves_are_right(name: str) -> None:
    assert _outcome(Mutant(name, base(name))) == "ran"


@pytest.mark.parametrize("first", range(0, 500, 100))
def test_a_changed_program_is_refused_or_runs_as_printed(first: int) -> None:
    outcomes = Counter(_outcome(mutant(seed)) for seed in range(first, first + 100))
    assert outcomes["refused"] >= 20, outcomes
    assert outcomes["ran"] >= 15, outcomes
    assert outcomes["refused when called"] <= 5, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 4000, 500))
def test_many_changed_programs(first: int) -> None:
    outcomes = Counter(_outcome(mutant(seed)) for seed in range(first, first + 500))
    assert outcomes["refused when called"] <= 20, outcomes


def _outcome(changed: Mutant) -> str:
    before = repr(changed.program)
    try:
        return _run(changed.program)
    except Exception as error:
        error.add_note(changed.label)
        raise
    finally:
        assert repr(changed.program) == before, f"{changed.label}: the program was changed"


def _run(program: Program) -> str:
    try:
        with no_tensors():
            spec = program_spec(**program)
    except ConfigaformersError as refusal:
        _check_refusal(refusal, program)
        return "refused"
    model = None
    for batch, length, other in SIZES:
        if model is None:
            if _largest(spec) > LARGEST:
                return "too large to build here"
            model = ConfigaFormer(**program, verbose=False, attention="literal")
        admission = model.admission
        sizes = {name: batch if name == "BSZ" else length if name == "L_in" else other for name in admission.names}
        try:
            check_printed_shapes(model, sizes)
        except vf.ShapeError:  # an offset may be declared with other names than the scores: longer ones are trimmed
            return "refused when called"
    return "ran"


def _largest(spec: vf.Spec) -> int:
    sizes = (value for _, part in spec.walk() if part.kind == "op" for value in part.args.values())
    return max((size for size in sizes if type(size) is int), default=0)


def _check_refusal(refusal: ConfigaformersError, program: Program) -> None:
    """Each problem says something, stands once, and its path leads somewhere."""
    data: dict[str, Any] = {
        "blocks": blocks_of(program),
        "input_streams": shapes_of(program),
        "input_shapes": shapes_of(program),
    }
    for problem in refusal.problems:
        assert problem.message, refusal
        assert _exists(problem, data), f"no such path {problem.path!r}: {refusal}"
    assert len({str(problem) for problem in refusal.problems}) == len(refusal.problems), refusal


def _exists(problem: Problem, data: dict[str, Any]) -> bool:
    """Whether a path leads to a place of the program, or to a key that a module there lacks."""
    node: Any = data
    steps = problem.path.split(".") if problem.path else []
    for place, step in enumerate(steps):
        if isinstance(node, dict):
            keys = {str(key): key for key in node}
            if step not in keys:
                return place == len(steps) - 1
            node = node[keys[step]]
        elif isinstance(node, (list, tuple)):
            if not (step.isdigit() and int(step) < len(node)):
                return False
            node = node[int(step)]
        else:
            return False
    return True


def test_the_seeds_give_the_same_programs_each_time() -> None:
    assert all(repr(mutant(seed)) == repr(mutant(seed)) for seed in range(0, 500, 17))
    assert len({repr(mutant(seed).program) for seed in range(500)}) > 450


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
