"""Tokens of the context are left out in training, each layer drawing from the whole."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ShapeError
from variform.ops.masks import Causal
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.stream_ops.context import ContextDropout

FACTS = {"dim": 8, "heads": 2}
X, CONTEXT = torch.randn(2, 3, 8), torch.randn(2, 10, 8)


def part(rate: float, seen: list[dict[str, Any]]) -> Any:
    built = vf.build(ContextDropout.spec(body=CrossMultiHead.spec(), rate=rate), **FACTS)
    built.body.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    return built


def test_evaluation_reads_everything() -> None:
    seen: list[dict[str, Any]] = []
    part(0.5, seen).eval()(X, {"context": CONTEXT})
    assert seen[0]["context"] is CONTEXT


def test_a_share_is_kept_in_order_and_never_compounds() -> None:
    seen: list[dict[str, Any]] = []
    built = part(0.5, seen).train()
    for _ in range(3):
        built(X, {"context": CONTEXT})
    assert [one["context"].shape[1] for one in seen] == [5, 5, 5]
    for row in range(2):
        places = [
            next(i for i, t in enumerate(CONTEXT[row]) if torch.equal(t, kept)) for kept in seen[0]["context"][row]
        ]
        assert places == sorted(set(places))
    assert not torch.equal(seen[0]["context"], seen[1]["context"])


def test_of_padded_rows_a_share_of_the_real_tokens_is_kept() -> None:
    seen: list[dict[str, Any]] = []
    mask = torch.arange(10) < torch.tensor([[10], [3]])
    part(0.5, seen).train()(X, {"context": CONTEXT, "context_mask": mask})
    kept: Tensor = seen[0]["context_mask"]
    assert kept.sum(1).tolist() == [5, 2]
    real = [CONTEXT[row][mask[row]] for row in range(2)]
    for row in range(2):
        assert all(any(torch.equal(t, r) for r in real[row]) for t in seen[0]["context"][row][kept[row]])


def test_a_mask_of_pairs_is_refused_in_training() -> None:
    with pytest.raises(ShapeError, match="must be a bool tensor"):
        part(0.5, []).train()(X, {"context": CONTEXT, "context_mask": Causal()})
