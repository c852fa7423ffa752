"""Compositional attention of xFormers: its maps under other names, and its score in other pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from variform.weights.entries import Entry, plain

MAPS = {
    "q": "in_proj_container.q_proj",
    "k": "in_proj_container.k_proj",
    "v": "in_proj_container.v_proj",
    "out": "out_proj",
    "value_q": "value_q",
}


def compositional_entries(prefix: str, maps: Any, tensors: Mapping[str, Tensor]) -> Iterator[Entry]:
    """How the tensors of a checkpoint make up the maps of a `Compositional` part.

    Args:
        prefix: what their names begin with.
        maps: the part's own.
        tensors: the checkpoint; it names the queries' map again where keys and values share it.
    """
    for own, theirs in MAPS.items():
        for what in ("weight", "bias"):
            key = f"{prefix}{theirs}.{what}"
            module = getattr(maps, own)
            param = getattr(maps.q if module is None else module, what, None)
            if isinstance(param, Tensor) and (module is not None or key in tensors):
                yield plain(key, param)
    yield from _score(prefix, maps.selection, maps.rules)


def compositional_idle(prefix: str) -> tuple[str, ...]:
    """Offsets that cancel in the softmax over rules, which are not there."""
    return tuple(f"{prefix}{name}.bias" for name in ("value_k", "score_network", "score_network.2"))


def _score(prefix: str, selection: Any, rules: int) -> Iterator[Entry]:
    if selection.score == "dot":
        yield plain(f"{prefix}value_k.weight", selection.key.weight)
    elif selection.score == "mlp":
        yield _beside(f"{prefix}score_network.0.weight", selection.hidden_value.weight, selection.hidden_query.weight)
        yield plain(f"{prefix}score_network.0.bias", selection.hidden_query.bias)
        yield plain(f"{prefix}score_network.2.weight", selection.last.weight)
    else:
        yield _linear(f"{prefix}score_network.weight", selection, rules)


def _beside(key: str, left: Tensor, right: Tensor) -> Entry:
    """Two matrices side by side."""
    sizes = [left.shape[1], right.shape[1]]
    return Entry(key, (left, right), lambda t: t.split(sizes, 1), lambda ps: torch.cat(list(ps), 1))  # type: ignore[no-untyped-call]


def _linear(key: str, selection: Any, rules: int) -> Entry:
    """One row for value and query, where the part has a row of the query for each rule, and an offset."""
    value, query, offset = selection.value_score.weight, selection.query_score.weight, selection.query_score.bias
    sizes = [value.shape[1], query.shape[1]]

    def load(tensor: Tensor) -> Sequence[Tensor]:
        left, right = tensor.split(sizes, 1)  # type: ignore[no-untyped-call]
        return left, right.expand(rules, -1), torch.zeros_like(offset)

    return Entry(key, (value, query, offset), load, lambda ps: torch.cat((ps[0], ps[1][:1]), 1))
