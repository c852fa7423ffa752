"""Recurrences in chunks: compiled and exported graphs, and what they share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from variform.errors import ShapeError
from variform.ops.chunks import blocks_below, borders
from variform.ops.delta_rule import delta_attention, unit_length
from variform.ops.favor import favor_attention
from variform.ops.gated_linear_attention import decayed_attention, gated_attention


def favor(x: Tensor, ids: Tensor | None) -> Tensor:
    return favor_attention(x, x, x, causal=True, chunk=8, q_segments=ids, k_segments=ids)[0]


def decayed(x: Tensor, ids: Tensor | None) -> Tensor:
    return decayed_attention(x, x, x, functional.logsigmoid(x[..., 0]), segments=ids, chunk=8)[0]


def gated(x: Tensor, ids: Tensor | None) -> Tensor:
    return gated_attention(x, x, x, functional.logsigmoid(x), segments=ids, chunk=8)[0]


def delta(x: Tensor, ids: Tensor | None) -> Tensor:
    return delta_attention(unit_length(x), unit_length(x), x, x[..., 0].sigmoid(), segments=ids, chunk=8)[0]


class Model(torch.nn.Module):
    def __init__(self, op: Callable[..., Tensor], packed: bool) -> None:
        super().__init__()
        self.op, self.packed = op, packed

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.op(x, ids if self.packed else None)


def inputs(length: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 2, length, 4), torch.randint(0, 4, (2, length)).sort()[0]


SHAPES: dict[str, Any] = {"x": {2: torch.export.Dim.DYNAMIC}, "ids": {1: torch.export.Dim.DYNAMIC}}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("op", [favor, decayed, gated])
def test_exports_with_any_length(op: Callable[..., Tensor], packed: bool) -> None:
    program = torch.export.export(Model(op, packed), inputs(20), dynamic_shapes=SHAPES)
    for length in (5, 8, 33):
        given = inputs(length)
        torch.testing.assert_close(program.module()(*given), Model(op, packed)(*given))


def test_the_delta_rule_exports_for_one_length() -> None:
    given = inputs(20)
    program = torch.export.export(Model(delta, True), given)
    torch.testing.assert_close(program.module()(*given), Model(delta, True)(*given))
    with pytest.raises(ShapeError, match="for one length"):
        torch.export.export(Model(delta, True), given, dynamic_shapes=SHAPES)


@pytest.mark.parametrize("op", [favor, decayed, gated, delta])
def test_compiles_whole(op: Callable[..., Tensor]) -> None:
    torch._dynamo.reset()
    given = inputs(33)
    compiled = torch.compile(Model(op, True), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), Model(op, True)(*given))


def test_borders_of_documents() -> None:
    ids = torch.tensor([[1, 1, 1, 2, 2, 2, 3]])
    found = borders(ids, None, torch.tensor([1]), 3)
    assert found.first[0, 0, 0].tolist() == [True, True, True]  # the tokens before were of document 1
    assert found.first[0, 0, 1].tolist() == [False, False, False]
    assert found.last[0, 0, 1].tolist() == [True, True, True]
    assert found.through[0, 0].tolist() == [True, False, False]
    assert found.ids.tolist() == [3]
    padded = borders(ids, torch.tensor([[True] * 6 + [False]]), torch.tensor([1]), 3)
    assert padded.ids.tolist() == [2]  # a token that is not real opens no document


def test_blocks_below_the_diagonal() -> None:
    pairs = torch.arange(16).view(4, 4)
    assert blocks_below(pairs, 1).tolist() == [[[4]], [[14]]]
    assert blocks_below(pairs, 2).tolist() == [[[8, 9], [12, 13]]]
