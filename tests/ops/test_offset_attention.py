"""Attention with an offset, against the plain formula."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from variform.dialects.configaformers import get_alibi
from variform.errors import BackendError
from variform.ops.attention.offset import attend_offset, survey, surveys_remembered

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-2}


def literal(q: Tensor, k: Tensor, v: Tensor, offset: Tensor, scale: float, causal: bool = False) -> Tensor:
    scores = (q @ k.transpose(-1, -2)) * scale + offset
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(-1) @ v


def tensors(
    queries: int, keys: int, dtype: torch.dtype = torch.float32, size: float = 1.0, dim_v: int = 8
) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, dim_v))
    return [(size * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_() for shape in shapes]


def compare(inputs: list[Tensor], offset: Tensor, causal: bool = False, scale: float = 8**-0.5) -> None:
    """Values and gradients, also that of the offset where it asks for one."""
    asked = [*inputs, offset] if offset.requires_grad else inputs
    found = attend_offset(*inputs, offset, scale, causal, offset)
    true = literal(*inputs, offset, scale, causal)
    g = torch.randn_like(true)
    bound = TOLERANCE[true.dtype]
    torch.testing.assert_close(found, true, rtol=bound, atol=bound)
    for a, b in zip(torch.autograd.grad(found, asked, g), torch.autograd.grad(true, asked, g), strict=True):
        torch.testing.assert_close(a, b, rtol=bound, atol=bound * max(1.0, float(b.abs().max())))


def alibi(length: int, dtype: torch.dtype = torch.float32, **more: Any) -> Tensor:
    return get_alibi(3, length, **more).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("length", [7, 257, 531])
@pytest.mark.parametrize("kind", ["causal", "half", "both sides", "window", "padding", "causal twice"])
def test_equals_the_formula(dtype: torch.dtype, length: int, kind: str) -> None:
    offset = alibi(length, dtype, mask=None if kind == "both sides" else "causal")
    if kind == "half":
        offset = alibi(length, dtype, mask_precision="half")
    if kind == "window":
        offset = offset.masked_fill(torch.ones(length, length, dtype=torch.bool).tril(-40), -torch.inf)
    if kind == "padding":
        offset = offset.repeat(2, 1, 1, 1)
        offset[1, :, :, length - length // 4 :] = -1e32
    compare(tensors(length, length, dtype), offset, causal=kind == "causal twice")


def test_bfloat16() -> None:
    compare(tensors(300, 300, torch.bfloat16), alibi(300, torch.bfloat16))


@pytest.mark.parametrize(("queries", "keys"), [(301, 517), (517, 301)])
def test_other_lengths_on_both_sides(queries: int, keys: int) -> None:
    compare(tensors(queries, keys), alibi(600)[:, :, :queries, :keys])


def test_other_features_of_the_values() -> None:
    compare(tensors(300, 300, dim_v=12), alibi(300))


@pytest.mark.parametrize("size", [1.0, 4.0, 30.0, 3000.0])
def test_scores_of_any_size(size: float) -> None:
    """The larger the scores, the less an offset may hide."""
    if size < 1000:
        compare(tensors(300, 300, torch.float64, size), alibi(300, torch.float64, mask_precision="half"))
    q, k, v = (t.detach() for t in tensors(300, 300, torch.float32, size))
    true = literal(q.double(), k.double(), v.double(), alibi(300, torch.float64, mask_precision="half"), 8**-0.5)
    found = attend_offset(q, k, v, alibi(300, mask_precision="half"), 8**-0.5)
    torch.testing.assert_close(found, true.float(), rtol=1e-5 * max(1.0, size**2), atol=1e-5 * max(1.0, size**2))


def test_a_row_that_a_number_masks_throughout_sees_every_key_alike() -> None:
    offset = alibi(300).clone()
    offset[:, :, 130] = -1e37
    offset[:, :, 290, :] = offset.min()
    inputs = tensors(300, 300)
    compare(inputs, offset)
    found = attend_offset(*inputs, offset, 1.0)
    torch.testing.assert_close(found[:, :, 130], inputs[2].mean(2))


@pytest.mark.parametrize("length", [9, 300])
def test_a_row_that_infinity_masks_throughout_is_zero(length: int) -> None:
    inputs, offset = tensors(length, length), alibi(length).clone()
    offset[:, :, 3] = -torch.inf
    found = attend_offset(*inputs, offset, 1.0)
    assert found[:, :, 3].eq(0).all()
    grads = torch.autograd.grad(found.square().sum(), inputs)
    assert all(grad.isfinite().all() for grad in grads)
    assert grads[0][:, :, 3].eq(0).all()
    kept = [row for row in range(length) if row != 3]
    true = literal(*inputs, offset, 1.0)
    torch.testing.assert_close(found[:, :, kept], true[:, :, kept], rtol=1e-5, atol=1e-5)


def test_nothing_is_seen_at_all() -> None:
    inputs = tensors(260, 260)
    found = attend_offset(*inputs, torch.full((1, 3, 260, 260), -torch.inf), 1.0)
    assert found.eq(0).all()
    assert all(grad.eq(0).all() for grad in torch.autograd.grad(found.sum(), inputs))


def test_an_offset_gets_its_gradient() -> None:
    compare(tensors(270, 270), torch.randn(2, 3, 270, 270).requires_grad_())
    compare(tensors(270, 270), torch.randn(1, 3, 270, 270).requires_grad_(), causal=True)


def test_not_a_number_stays_one() -> None:
    inputs, offset = tensors(300, 300), alibi(300).clone()
    offset[0, 0, 299, 299] = torch.nan
    found = attend_offset(*inputs, offset, 1.0)
    assert found[:, 0, 299].isnan().all()
    assert found[:, 0, :299].isfinite().all()


def test_an_offset_of_one_head_and_one_row_broadcasts() -> None:
    hidden = torch.zeros(2, 1, 1, 300)
    hidden[1, :, :, 250:] = -torch.inf
    compare(tensors(300, 300), hidden.expand(-1, -1, 300, -1))


def test_what_is_masked_is_not_visited() -> None:
    def visited(offset: Tensor) -> float:
        tiles = survey(offset, 64.0).tiles
        heads = offset.shape[1]
        count = sum(
            len(range(*t.heads.indices(heads))) * (t.rows.stop - t.rows.start) * (t.keys.stop - t.keys.start)
            for t in tiles
        )
        return count / offset[0].numel()

    assert visited(alibi(1024, mask=None, slopes=[1e-3] * 3)) == 1.0
    assert visited(alibi(1024, slopes=[1e-3] * 3)) == 0.625
    assert visited(alibi(1024, slopes=[1.0] * 3)) < 0.35


def test_each_offset_is_surveyed_once_and_not_held() -> None:
    inputs, offset = tensors(300, 300), alibi(300)
    with surveys_remembered():
        first = attend_offset(*inputs, offset, 1.0, False, offset)
        assert torch.equal(attend_offset(*inputs, offset, 1.0, False, offset), first)
        gone = weakref.ref(offset)
        del offset
        gc.collect()
        first.sum().backward()
        del first
        gc.collect()
        assert gone() is None
    changed = alibi(300)
    before = attend_offset(*inputs, changed, 1.0, False, changed)
    changed[..., :150] = -torch.inf
    assert not torch.equal(attend_offset(*inputs, changed, 1.0, False, changed), before)


def test_a_second_derivative_is_refused() -> None:
    inputs = tensors(300, 300)
    (grad,) = torch.autograd.grad(attend_offset(*inputs, alibi(300), 1.0).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(BackendError, match="no second derivative"):
        grad.sum().backward(retain_graph=True)
    with pytest.raises(BackendError, match="no second derivative"):
        torch.autograd.grad(grad.sum(), inputs[0], allow_unused=True)
