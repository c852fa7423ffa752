"""Sparse masks, weights and tensors of the dialect against dense matrices, values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from variform.dialects.xformers.components import MultiHeadDispatch
from variform.dialects.xformers.components import attention as attentions
from variform.dialects.xformers.components.attention import AttentionMask, build_attention, maybe_sparsify, sparsify
from variform.dialects.xformers.components.attention._sputnik_sparse import SparseCS, _dense_to_sparse
from variform.dialects.xformers.components.attention.core import (
    _create_random_sparsity,
    bmm,
    scaled_dot_product_attention,
    scaled_query_key_softmax,
)
from variform.dialects.xformers.errors import CallError
from variform.dialects.xformers.ops import masked_matmul
from variform.dialects.xformers.sparse import BlockSparseTensor, SparseCSRTensor
from variform.ops.attention import candidates, metering

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def pattern(rows: int = 9, columns: int = 11) -> Tensor:
    torch.manual_seed(rows)
    mask = torch.rand(rows, columns) < 0.3
    mask[2] = False
    return mask


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def check(found: Tensor, wanted: Tensor, *given: Tensor) -> None:
    torch.testing.assert_close(found, wanted, **EXACT)
    weights = torch.randn_like(wanted)
    pair = [torch.autograd.grad((y * weights).sum(), given, retain_graph=True) for y in (found, wanted)]
    for a, b in zip(*pair, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def dense_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0)


@pytest.mark.parametrize("kind", [SparseCSRTensor, SparseCS])
def test_by_single_pairs(kind: Any) -> None:
    mask = pattern()
    empty = mask.double().expand(2, -1, -1)
    sparse = kind.from_dense(empty) if kind is SparseCSRTensor else kind(empty)
    a, b, v = numbers(2, 9, 4), numbers(2, 4, 11), numbers(2, 11, 5)
    check(masked_matmul(a, b, sparse).to_dense(), (a @ b) * mask, a, b)
    weights = masked_matmul(a, b, sparse).softmax()
    check(weights.to_dense(), dense_softmax(a @ b, mask), a, b)
    out = torch.bmm(weights, v) if kind is SparseCSRTensor else weights.spmm(v)
    check(out, dense_softmax(a @ b, mask) @ v, a, b, v)
    check((weights * 2.0 + weights).transpose().to_dense(), 3 * dense_softmax(a @ b, mask).transpose(1, 2), a, b)
    finer = torch.rand(9, 11) < 0.5
    check((weights & finer).to_dense(), dense_softmax(a @ b, mask) * finer, a, b)
    assert weights.is_sparse
    assert weights.ndim == 3
    assert weights.shape == (2, 9, 11)
    assert weights.to(torch.float32).dtype == torch.float32
    assert weights.row_offsets[-1] == mask.sum() == weights.values.shape[1] == len(weights.column_indices)


def test_torch_functions_of_sparse_rows() -> None:
    sparse = SparseCSRTensor.from_dense(pattern().double()[None])
    assert torch.equal(torch.softmax(sparse, -1).values, sparse.softmax().values)  # type: ignore[call-overload]
    assert torch.equal(torch.matmul(sparse, torch.eye(11).double()[None]), sparse.to_dense())  # type: ignore[call-overload]
    assert torch.equal(torch.mul(sparse, 3).values, 3 * sparse.values)  # type: ignore[call-overload]
    assert torch.equal(torch.add(sparse, sparse).values, 2 * sparse.values)  # type: ignore[call-overload]
    assert functional.dropout(sparse, 0.9).values.eq(0).any()  # type: ignore[arg-type]
    with pytest.raises(CallError, match="over their rows"):
        torch.softmax(sparse, 1)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        torch.exp(sparse)  # type: ignore[call-overload]


def test_by_blocks() -> None:
    layout = torch.tensor([[[1, 0, 1], [0, 0, 0], [1, 1, 0]], [[0, 1, 0], [1, 1, 1], [0, 0, 1]]])
    mask = layout.repeat_interleave(4, 1).repeat_interleave(4, 2).bool()
    sparse = BlockSparseTensor.from_dense(mask.double().expand(2, -1, -1, -1), layout)
    assert torch.equal(sparse.to_dense(), mask.double().expand(2, -1, -1, -1))
    a, b, v = numbers(2, 2, 12, 3), numbers(2, 2, 3, 12), numbers(2, 2, 12, 5)
    check(masked_matmul(a, b, sparse).to_dense(), (a @ b) * mask, a, b)
    weights = torch.softmax(masked_matmul(a, b, sparse), dim=-1)
    check(weights.to_dense(), dense_softmax(a @ b, mask), a, b)
    check(torch.matmul(weights, v), dense_softmax(a @ b, mask) @ v, a, b, v)
    assert functional.dropout(weights, 0.9).values.eq(0).any()  # type: ignore[arg-type]
    with pytest.raises(CallError, match="are not the blocks of a layout"):
        BlockSparseTensor(torch.zeros(2, 5, 4, 4), layout)


def test_masked_matmul_with_dense_masks() -> None:
    a, b, mask = numbers(2, 9, 4), numbers(2, 4, 11), pattern()
    assert torch.equal(masked_matmul(a, b), a @ b)
    assert torch.equal(masked_matmul(a, b, mask), (a @ b).masked_fill(~mask, -torch.inf))


def test_random_sparsity() -> None:
    matrix = torch.rand(3, 16, 20) + 1
    kept = _create_random_sparsity(matrix, 0.7)
    assert int((kept[0] != 0).sum()) == 96
    assert ((kept != 0) == (kept[0] != 0)).all()
    assert torch.equal(kept[kept != 0], matrix[kept != 0])
    assert int((_create_random_sparsity(matrix, 0.7, 10)[0] != 0).sum()) == 90
    values, rows, offsets, columns = _dense_to_sparse(kept, "cpu")
    again = SparseCS.wrap((3, 16, 20), values, rows, offsets, columns, None)
    assert torch.equal(again.to_dense(), kept)
    values, *places = _dense_to_sparse(kept[0], "cpu")
    assert torch.equal(SparseCS.wrap((1, 16, 20), values[None], *places, None).to_dense()[0], kept[0])
    sparse = SparseCS(kept, "cpu")
    assert torch.equal((sparse & (kept > 1.5)[:1]).to_dense() != 0, (kept > 0) & (kept > 1.5)[:1])
    assert torch.equal((sparse & torch.ones_like(kept, dtype=torch.bool)).to_dense(), sparse.to_dense())
    with pytest.raises(CallError, match="a mask for all of them is needed"):
        sparse & (kept > 1.5)
    with pytest.raises(CallError, match="zero at the same places"):
        SparseCS(torch.stack([torch.eye(3), torch.ones(3, 3)]))


@pytest.mark.parametrize("form", ["sparse", "bool", "AttentionMask", "none"])
def test_the_functions_of_core(form: str) -> None:
    mask = pattern(9, 9)
    forms: dict[str, Any] = {"sparse": SparseCS(mask), "bool": mask, "AttentionMask": AttentionMask.from_bool(mask)}
    given, seen = forms.get(form), mask if form != "none" else torch.ones_like(mask)
    q, k, v = numbers(4, 9, 6), numbers(4, 9, 6), numbers(4, 9, 5)
    weights = scaled_query_key_softmax(q, k, given)
    assert isinstance(weights, SparseCS) == (form == "sparse")
    wanted = dense_softmax(q @ k.transpose(1, 2) * 6**-0.5, seen)
    check(weights.to_dense() if form == "sparse" else weights, wanted, q, k)
    check(bmm(weights, v), wanted @ v, q, k, v)
    check(scaled_dot_product_attention(q, k, v, given), wanted @ v, q, k, v)
    off = nn.Dropout(0.5).eval()
    check(scaled_dot_product_attention(q, k, v, given, dropout=off), wanted @ v, q, k, v)
    dropped = scaled_dot_product_attention(q, k, v, given, dropout=nn.Dropout(0.5))
    assert not torch.allclose(dropped, wanted @ v)


def test_a_module_of_ones_own_as_dropout() -> None:
    class Halved(nn.Module):
        def forward(self, weights: Any) -> Any:
            return weights * 0.5

    q = numbers(2, 9, 6)
    for mask in (None, SparseCS(pattern(9, 9))):
        plain = scaled_dot_product_attention(q, q, q, mask)
        torch.testing.assert_close(scaled_dot_product_attention(q, q, q, mask, dropout=Halved()), plain / 2)


@pytest.mark.parametrize("name", ["scaled_dot_product", "local", "blocksparse"])
def test_a_sparse_mask_serves_where_a_mask_does(name: str) -> None:
    torch.manual_seed(0)
    config: dict[str, Any] = {"name": name, "dropout": 0.0, "num_heads": 2, "dim_model": 8, "window_size": 5}
    config |= {"layout": torch.ones(2, 2)} if name == "blocksparse" else {}
    module = MultiHeadDispatch(dim_model=8, num_heads=2, attention=build_attention(config)).eval()
    x, mask = torch.randn(3, 20, 8), torch.rand(20, 20) < 0.4
    found = module(x, att_mask=sparsify(mask))
    torch.testing.assert_close(found, module(x, att_mask=mask))
    assert not torch.allclose(found, module(x))


def test_a_sparse_mask_is_looked_at_once_and_computed_sparsely() -> None:
    torch.manual_seed(0)
    mask, x = sparsify(torch.rand(600, 600) < 0.05), torch.randn(2, 600, 64)
    seen: list[tuple[str, int]] = []
    attention = build_attention({"name": "scaled_dot_product", "dropout": 0.0})
    with metering(lambda call, backend: seen.append((candidates(call, backend)[0].name, id(call.mask.tensor)))):  # type: ignore[union-attr]
        attention(x, x, x, att_mask=mask)
        attention(x, x, x, att_mask=mask)
    assert seen[0][0] == "sparse"
    assert seen[0] == seen[1]


def test_the_density_threshold_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[:3] = True
    assert isinstance(maybe_sparsify(mask), SparseCS)
    mask[3] = True
    assert isinstance(maybe_sparsify(mask), AttentionMask)
    monkeypatch.setattr(attentions, "_DENSITY_THRESHOLD", 0.5)
    assert isinstance(maybe_sparsify(mask), SparseCS)
    assert torch.equal(sparsify(mask).allowed, mask)
