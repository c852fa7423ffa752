"""ListOps: values against an independent reading, lengths, seeds, the share of heuristics, and kept sets."""

import random
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

import variform as vf
from tests.dialects.xformers.lra.settings import TREES
from variform.dialects.xformers.benchmarks.LRA import listops
from variform.dialects.xformers.benchmarks.LRA.config import ListOpsDataset
from variform.dialects.xformers.benchmarks.LRA.listops import IDS, generate, generated, trees
from variform.dialects.xformers.benchmarks.LRA.rows import baselines

SMALL = ListOpsDataset(**TREES)
RULES: dict[str, Any] = {"[MIN": min, "[MAX": max, "[MED": lambda v: int(median(v)), "[SM": lambda v: sum(v) % 10}


def evaluate(tokens: list[str]) -> tuple[int, int]:
    """The value of a tree and its levels, with a stack."""
    stack: list[Any] = [[]]
    levels = 1
    for token in tokens:
        if token in RULES:
            stack.append([token])
            levels = max(levels, len(stack))
        elif token == "]":
            operator, *values = stack.pop()
            stack[-1].append(RULES[operator](values))
        else:
            stack[-1].append(int(token))
    (value,) = stack.pop()
    return value, levels


def test_values_are_those_of_the_operators() -> None:
    draw, depths = random.Random(1), set()
    for _ in range(300):
        tokens, value = generate(draw, 5, 4)
        expected, levels = evaluate(tokens)
        assert value == expected
        depths.add(levels)
    assert depths == {1, 2, 3, 4, 5}


def test_lengths_and_arguments_are_bounded() -> None:
    stream = trees(SMALL)
    found = [next(stream)[0] for _ in range(300)]
    assert len({" ".join(tokens) for tokens in found}) == 300
    assert {len(tokens) for tokens in found} <= set(range(6, 24))
    assert max(len(tokens) for tokens in found) > 18


def test_a_node_is_a_digit_three_times_of_four() -> None:
    draw = random.Random(0)
    leaves = sum(len(generate(draw, 2, 2)[0]) == 1 for _ in range(4000))
    assert abs(leaves / 4000 - 0.75) < 0.03


def test_a_seed_repeats_a_set(tmp_path: Path) -> None:
    first, again = (generated(SMALL, (30, 5, 5), tmp_path) for _ in range(2))
    other = generated(replace(SMALL, seed=1), (30, 5, 5), tmp_path)
    assert np.array_equal(first[0].inputs[0].flat, again[0].inputs[0].flat)
    assert not np.array_equal(first[0].labels, other[0].labels)
    assert [len(split.labels) for split in first] == [30, 5, 5]
    assert not list(tmp_path.iterdir())


def test_splits_are_trees_with_their_values(tmp_path: Path) -> None:
    names = {index: token for token, index in IDS.items()}
    for split in generated(SMALL, (20, 6, 7), tmp_path):
        for i, label in enumerate(split.labels):
            assert evaluate([names[int(index)] for index in split.inputs[0][i]])[0] == label


def test_large_sets_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listops, "KEPT_FROM", 10)
    first = generated(SMALL, (10, 2, 2), tmp_path / "kept")
    monkeypatch.setattr(listops, "trees", None)  # what is kept is not generated again
    again = generated(SMALL, (10, 2, 2), tmp_path / "kept")
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.labels, other.labels)
        assert all(np.array_equal(one.inputs[0][i], other.inputs[0][i]) for i in range(len(one.labels)))


def test_impossible_lengths_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listops, "TRIES", 50)
    with pytest.raises(vf.ConfigError, match="allow more lengths"):
        next(trees(replace(SMALL, min_length=100, max_length=101)))


@pytest.mark.slow
def test_at_full_size_the_root_operator_tells_a_third(tmp_path: Path) -> None:
    train, _, test = generated(ListOpsDataset(), (2000, 1, 800), tmp_path)
    lengths = train.inputs[0].lengths()
    assert (lengths.min() > 500, lengths.max() < 2000) == (True, True)
    assert abs(lengths.mean() - 1055) < 40
    found = baselines(train, test, True)
    assert 0.14 < found["majority"] < 0.21
    assert 0.32 < found["root_operator"] < 0.42
