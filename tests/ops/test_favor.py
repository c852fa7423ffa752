from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.cases import LENGTHS, error
from tests.ops.test_linear_attention import OPTIONS, _options, _with_gradients
from variform.errors import ShapeError
from variform.ops.favor import (
    FavorState,
    favor_attention,
    favor_state,
    log_features,
    naive_favor_attention,
    orthogonal_features,
)


def inputs(length: int, keys: int | None = None) -> list[Tensor]:
    shapes = ((2, 3, length, 8), (2, 3, keys or length, 8), (2, 3, keys or length, 6))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients(name: str, length: int, causal: bool) -> None:
    options = _options(name, length)
    given = [*inputs(length), torch.randn(2, 3, length, 1, dtype=torch.float64, requires_grad=True)]
    for epsilon in (0.0, 0.3):

        def run(op: Any, leaves: list[Tensor], epsilon: float = epsilon, **more: Any) -> list[Tensor]:
            out = op(*leaves[:3], causal=causal, offset=leaves[3], epsilon=epsilon, **options, **more)
            return _with_gradients(out[0] if isinstance(out, tuple) else out, leaves, options)

        wanted = run(naive_favor_attention, given)
        for dtype, chunk in ((torch.float64, 16), (torch.float64, 128), (torch.float32, 16)):
            leaves = [t.detach().to(dtype).requires_grad_() for t in given]
            found = run(favor_attention, leaves, chunk=chunk)
            assert error(found, wanted) < (1e-10 if dtype == torch.float64 else 1e-5)


def test_another_sequence() -> None:
    given = inputs(5, 9)
    valid, q_ids, k_ids = torch.rand(2, 9) > 0.4, torch.randint(0, 2, (2, 5)), torch.randint(0, 2, (2, 9))
    for options in ({}, {"k_valid": valid}, {"q_segments": q_ids, "k_segments": k_ids}):
        wanted = naive_favor_attention(*given, causal=False, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(favor_attention(*given, causal=False, **options)[0], wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("sizes", [[33], [1] * 33, [5, 1, 1, 17, 9]])
def test_any_pieces_equal_the_whole(name: str, sizes: list[int]) -> None:
    given, options = inputs(33), _options(name, 33)
    wanted = _with_gradients(favor_attention(*given, causal=True, **options)[0], given, options)
    state: FavorState | None = favor_state(2, 3, 8, 6, torch.float64)
    outs, start = [], 0
    for size in sizes:
        piece = slice(start, start + size)
        rest: dict[str, Any] = {key: value[..., piece] for key, value in options.items()}
        out, state = favor_attention(*(t[:, :, piece] for t in given), causal=True, state=state, chunk=8, **rest)
        outs.append(out)
        start += size
    assert error(_with_gradients(torch.cat(outs, 2), given, options), wanted) < 1e-10


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_features_beyond_float32_give_what_float64_gives(causal: bool, shift: float) -> None:
    """exp(300) is no float32, and exp(-300) is 0 in it: what all keys have in common cancels."""
    q, k, v = (t.detach() for t in inputs(33))
    wanted = naive_favor_attention(q, k, v, causal=causal)
    ids = torch.arange(33) // 11
    leaves = [t.float().requires_grad_() for t in (q - shift, k + shift, v)]
    for options in ({}, {"q_segments": ids, "k_segments": ids}):
        found = favor_attention(*leaves, causal=causal, chunk=8, **options)[0]  # type: ignore[arg-type]
        exact = naive_favor_attention(q, k, v, causal=causal, **options) if options else wanted  # type: ignore[arg-type]
        assert error([found.double()], [exact]) < 2e-4  # float32 rounds 300 + x to 3e-5
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(found.sum(), leaves))


def test_a_document_is_not_drowned_by_the_one_before() -> None:
    q, k, v = (t.detach().float() for t in inputs(24))
    k[:, :, :12] += 400.0
    ids = torch.arange(24) // 12
    for chunk in (5, 12, 128):
        packed = favor_attention(q, k, v, causal=True, q_segments=ids, k_segments=ids, chunk=chunk)[0]
        alone = favor_attention(q[:, :, 12:], k[:, :, 12:], v[:, :, 12:], causal=True)[0]
        torch.testing.assert_close(packed[:, :, 12:], alone)


def test_the_past_is_bit_equal_whatever_the_future_holds() -> None:
    q, k, v = (t.detach() for t in inputs(20))
    before = favor_attention(q, k, v, causal=True, chunk=8)[0]
    k[:, :, 11:], v[:, :, 11:] = 500.0, -7.0
    assert torch.equal(favor_attention(q, k, v, causal=True, chunk=8)[0][:, :, :11], before[:, :, :11])


def test_directions_are_orthogonal_and_of_the_right_lengths() -> None:
    torch.manual_seed(0)
    features = orthogonal_features(16, 40)
    assert features.shape == (16, 40)
    block = features[:, 16:32]
    torch.testing.assert_close(block.T @ block, torch.diag(block.square().sum(0)), rtol=0, atol=1e-4)
    many = orthogonal_features(16, 4096)
    assert many.square().sum(0).mean().item() == pytest.approx(16, rel=0.02)
    assert many.norm(dim=0).std().item() == pytest.approx(0.7, rel=0.1)  # that of a chi variable, nearly 1 / sqrt(2)
    assert many.mean(1).abs().max().item() < 0.06  # uniform in direction
    regular = orthogonal_features(16, 40, regular=True)
    torch.testing.assert_close(regular.norm(dim=0), torch.full((40,), 4.0))


def whole(logarithm: tuple[Tensor, Tensor]) -> Tensor:
    return logarithm[0] + logarithm[1]


@pytest.mark.parametrize("mirrored", [False, True])
def test_products_of_features_are_exponentials_in_the_mean(mirrored: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 8, dtype=torch.float64) * 0.5
    features = orthogonal_features(8, 200_000).double()
    phi = whole(log_features(x, features, mirrored)).exp()
    found = phi @ phi.T / phi.shape[-1]
    torch.testing.assert_close(found, (x @ x.T / 8**0.5).exp(), rtol=0.05, atol=0.0)


def test_inputs_may_be_scaled_to_one_length_and_multiplied() -> None:
    x, features = torch.randn(5, 8), orthogonal_features(8, 16)
    scaled = x * 8**0.5 / x.norm(dim=-1, keepdim=True)
    normalised = whole(log_features(7 * x, features, True, normalize=True))
    torch.testing.assert_close(normalised, whole(log_features(scaled, features, True)))
    doubled = whole(log_features(2 * 8**-0.25 * x, features, False, temperature=1.0))
    torch.testing.assert_close(doubled, whole(log_features(2 * x, features, False)))


def test_exponents_are_not_rounded_under_autocast() -> None:
    x, features = 10 * torch.randn(50, 8), orthogonal_features(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = whole(log_features(x, features, True))
    assert torch.equal(found, whole(log_features(x, features, True)))


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = (t.detach() for t in inputs(5))
    with pytest.raises(ShapeError, match="as many queries"):
        favor_attention(q[:, :, :3], k, v, causal=True)
    with pytest.raises(ShapeError, match="do not fit"):
        favor_attention(q, k[:, :2], v, causal=False)
    with pytest.raises(ShapeError, match="history"):
        favor_attention(q, k, v, causal=False, state=favor_state(2, 3, 8, 6, torch.float64))
