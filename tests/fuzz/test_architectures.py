"""Random architectures keep every promise: a few in each run, some hundreds with `-m slow`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fuzz.architectures import Drawn, draw
from tests.fuzz.invariants import INVARIANTS, SLOW_INVARIANTS, compiled

QUICK, SLOW = range(40), range(40, 340)


@pytest.mark.parametrize("seed", QUICK)
def test_a_random_architecture(seed: int) -> None:
    drawn = draw(seed)
    # What traces a whole model is dear: every architecture has one such check here, and all of them below.
    for invariant in (*INVARIANTS, SLOW_INVARIANTS[seed % len(SLOW_INVARIANTS)]) if seed % 4 == 0 else INVARIANTS:
        invariant(drawn)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(SLOW.start, SLOW.stop, 10))
@pytest.mark.parametrize("invariant", [*INVARIANTS, *SLOW_INVARIANTS], ids=lambda function: function.__name__)
def test_many_random_architectures(first: int, invariant: Callable[[Drawn], None]) -> None:
    for seed in range(first, first + 10):
        try:
            invariant(draw(seed))
        except Exception as error:
            error.add_note(f"the architecture of seed {seed}: {draw(seed).data}")
            raise


@pytest.mark.parametrize("seed", [1, 6])
def test_a_random_architecture_compiles_to_one_graph(seed: int) -> None:
    compiled(draw(seed))


def test_a_seed_gives_the_same_architecture() -> None:
    assert draw(3) == draw(3)
    assert len({str(draw(seed).data) for seed in range(100)}) >= 95  # two seeds may draw the same small one
