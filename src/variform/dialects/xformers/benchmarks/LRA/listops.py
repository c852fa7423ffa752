"""ListOps (arXiv:1804.06028) as the Long Range Arena generates it: nested operators on lists of digits."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from variform.dialects.xformers.benchmarks.LRA.config import ListOpsDataset
from variform.dialects.xformers.benchmarks.LRA.rows import Rows, Split
from variform.errors import ConfigError

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
END = "]"
TOKENS = (*(str(digit) for digit in range(10)), *OPERATORS, END)
IDS = {token: index for index, token in enumerate(TOKENS, 1)}
"""Token ids from 1 on; 0 pads."""

LEAVES = 0.75
"""Probability that a node above the last level is a digit."""

KEPT_FROM = 20_000
"""Sets of this many trees are kept on disk: generating them takes longer than reading them."""

TRIES = 20_000
"""Trees in a row that do not fit before the lengths are called impossible."""


def generate(draw: random.Random, max_depth: int, max_args: int, depth: int = 1) -> tuple[list[str], int]:
    """A tree in prefix order, and its value.

    Args:
        draw: of random numbers.
        max_depth: nodes of this level are digits.
        max_args: arguments of an operator at most; at least two.
        depth: of the node.
    """
    if depth >= max_depth or draw.random() < LEAVES:
        digit = draw.randrange(10)
        return [str(digit)], digit
    arguments = [generate(draw, max_depth, max_args, depth + 1) for _ in range(draw.randint(2, max_args))]
    operator = draw.choice(OPERATORS)
    tokens = [operator, *(token for argument, _ in arguments for token in argument), END]
    return tokens, value_of(operator, [value for _, value in arguments])


def value_of(operator: str, values: list[int]) -> int:
    """What an operator makes of its arguments; the median of an even number of them is rounded down."""
    if operator == "[MIN":
        return min(values)
    if operator == "[MAX":
        return max(values)
    if operator == "[SM":
        return sum(values) % 10
    ordered = sorted(values)
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) // 2


def trees(dataset: ListOpsDataset) -> Iterator[tuple[list[str], int]]:
    """Different trees of the right length, without end.

    Raises:
        ConfigError: hardly any tree has such a length.
    """
    draw, seen, tries = random.Random(dataset.seed), set(), 0
    while True:
        tokens, value = generate(draw, dataset.max_depth, dataset.max_args)
        mark = hashlib.blake2b(" ".join(tokens).encode(), digest_size=16).digest()  # a set of the texts takes 100 MB
        tries += 1
        if dataset.min_length < len(tokens) < dataset.max_length and mark not in seen:
            seen.add(mark)
            tries = 0
            yield tokens, value
        elif tries > TRIES:
            lengths = f"between {dataset.min_length} and {dataset.max_length} tokens"
            message = f"{TRIES} trees in a row were seen before, or do not have {lengths}"
            raise ConfigError(message, path="listops.dataset", hint="allow more lengths, or ask for fewer examples")


def generated(dataset: ListOpsDataset, counts: tuple[int, int, int], kept: Path) -> list[Split]:
    """The splits, generated from the seed, or read where a large set was kept.

    Args:
        dataset: lengths and seed.
        counts: examples to learn from, to choose by, to be judged on.
        kept: the folder of large sets.
    """
    settings = json.dumps({**asdict(dataset), "counts": counts}, sort_keys=True)
    file = kept / f"listops-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.npz"
    if file.is_file():
        with np.load(file, allow_pickle=False) as found:
            flat, ends, labels = (found[name] for name in ("flat", "ends", "labels"))
    else:
        some = itertools.islice(trees(dataset), sum(counts))
        examples = [(np.array([IDS[token] for token in tokens], np.uint8), value) for tokens, value in some]
        flat = np.concatenate([row for row, _ in examples])
        ends = np.cumsum([len(row) for row, _ in examples])
        labels = np.array([value for _, value in examples], np.int64)
        if len(examples) >= KEPT_FROM:
            _keep(file, flat, ends, labels)
    whole = Split((Rows(flat, ends),), labels)
    first, second = counts[0], counts[0] + counts[1]
    return [whole.cut(0, first), whole.cut(first, second), whole.cut(second, len(labels))]


def _keep(file: Path, flat: np.ndarray, ends: np.ndarray, labels: np.ndarray) -> None:
    partial = file.with_name(f".{os.getpid()}.{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(partial, flat=flat, ends=ends, labels=labels)
        os.replace(partial, file)
    except OSError as error:
        raise ConfigError(f"cannot write {str(file)!r}: {error.strerror}", hint="set XDG_CACHE_HOME") from None
