from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.cases import LENGTHS, error
from variform.errors import ShapeError
from variform.ops.linear_attention import (
    LinearState,
    elu_features,
    linear_attention,
    linear_state,
    naive_linear_attention,
)


def _inputs(q_len: int, k_len: int | None = None, dim_v: int = 6) -> list[Tensor]:
    k_len = q_len if k_len is None else k_len
    shapes = ((2, 3, q_len, 8), (2, 3, k_len, 8), (2, 3, k_len, dim_v))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def _sorted_ids(length: int) -> Tensor:
    return torch.randint(0, 4, (2, length)).sort()[0]


def _options(name: str, length: int) -> dict[str, Any]:
    torch.manual_seed(length)
    valid = torch.rand(2, length) > 0.3
    left = torch.arange(length) >= torch.tensor([[length // 2], [0]])
    ids = _sorted_ids(length)
    return {
        "plain": {},
        "ragged": {"k_valid": valid},
        "left_padded": {"k_valid": left},
        "nothing_valid": {"k_valid": torch.zeros(2, length, dtype=torch.bool)},
        "packed": {"q_segments": ids, "k_segments": ids},
        "packed_ragged": {"q_segments": ids, "k_segments": ids, "k_valid": valid},
        "packed_shared": {"q_segments": ids[0], "k_segments": ids[0]},
    }[name]


OPTIONS = ("plain", "ragged", "left_padded", "nothing_valid", "packed", "packed_ragged", "packed_shared")


def _with_gradients(out: Tensor, inputs: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    """What tokens that exist get; the answer to a query that is padding is nobody's business."""
    if "k_valid" in options and options["k_valid"].shape[-1] == out.shape[2]:
        out = out.masked_fill(~options["k_valid"][:, None, :, None], 0)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients(name: str, length: int, causal: bool) -> None:
    inputs, options = _inputs(length), _options(name, length)
    wanted = _with_gradients(naive_linear_attention(*inputs, causal=causal, **options), inputs, options)
    for dtype, chunk, tolerance in ((torch.float64, 16, 1e-10), (torch.float64, 128, 1e-10), (torch.float32, 16, 1e-5)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
        found = linear_attention(*leaves, causal=causal, chunk=chunk, **options)[0]
        assert error(_with_gradients(found, leaves, options), wanted) < tolerance
    leaves = [t.detach().bfloat16().requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    rounded = _with_gradients(naive_linear_attention(*exact, causal=causal, **options), exact, options)
    own = error(_with_gradients(naive_linear_attention(*leaves, causal=causal, **options), leaves, options), rounded)
    found = linear_attention(*leaves, causal=causal, chunk=16, **options)[0]
    assert error(_with_gradients(found, leaves, options), rounded) <= 2 * own + 1e-2


def test_cross_lengths() -> None:
    inputs = _inputs(5, 9)
    valid, q_ids, k_ids = torch.rand(2, 9) > 0.4, torch.randint(0, 2, (2, 5)), torch.randint(0, 2, (2, 9))
    for options in ({}, {"k_valid": valid}, {"q_segments": q_ids, "k_segments": k_ids}):
        wanted = naive_linear_attention(*inputs, causal=False, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(linear_attention(*inputs, causal=False, **options)[0], wanted)  # type: ignore[arg-type]


def _in_pieces(inputs: list[Tensor], sizes: list[int], options: dict[str, Any]) -> tuple[Tensor, LinearState]:
    state: LinearState | None = linear_state(2, 3, 8, 6, inputs[0].dtype)
    outs, start = [], 0
    for size in sizes:
        piece = slice(start, start + size)
        rest = {key: value[..., piece] for key, value in options.items()}
        if "q_segments" in rest:
            rest["k_segments"] = rest["q_segments"]
        out, state = linear_attention(*(t[:, :, piece] for t in inputs), causal=True, state=state, chunk=8, **rest)
        outs.append(out)
        start += size
    assert state is not None
    return torch.cat(outs, 2), state


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("sizes", [[33], [1] * 33, [5, 1, 1, 17, 9], [32, 1]])
def test_any_pieces_equal_the_whole(name: str, sizes: list[int]) -> None:
    inputs, options = _inputs(33), _options(name, 33)
    whole, final = linear_attention(*inputs, causal=True, **options)
    wanted = _with_gradients(whole, inputs, options)
    assert final is not None
    out, state = _in_pieces(inputs, sizes, options)
    assert error(_with_gradients(out, inputs, options), wanted) < 1e-10
    torch.testing.assert_close(state.s, final.s)
    torch.testing.assert_close(state.z, final.z)
    assert torch.equal(state.segment, final.segment)


def test_packed_documents_equal_separate_runs() -> None:
    inputs = _inputs(20)
    ids = torch.tensor([3] * 7 + [9] * 1 + [5] * 12)
    packed = linear_attention(*inputs, causal=True, q_segments=ids, k_segments=ids, chunk=4)[0]
    parts = [
        linear_attention(*(t[:, :, p] for t in inputs), causal=True)[0] for p in (slice(7), slice(7, 8), slice(8, 20))
    ]
    torch.testing.assert_close(packed, torch.cat(parts, 2))


def test_an_id_that_returns_starts_anew() -> None:
    inputs = _inputs(12)
    ids = torch.tensor([0] * 4 + [1] * 4 + [0] * 4)
    for chunk in (2, 12):
        out = linear_attention(*inputs, causal=True, q_segments=ids, k_segments=ids, chunk=chunk)[0]
        torch.testing.assert_close(out[:, :, 8:], linear_attention(*(t[:, :, 8:] for t in inputs), causal=True)[0])


def test_invalid_tokens_may_hold_anything() -> None:
    q, k, v = (t.detach() for t in _inputs(9))
    valid = torch.arange(9) != 4
    valid = valid.expand(2, -1)
    wanted = linear_attention(q, k, v, causal=True, k_valid=valid)
    k[:, :, 4], v[:, :, 4] = torch.nan, torch.inf
    found = linear_attention(q, k, v, causal=True, k_valid=valid)
    assert wanted[1] is not None
    assert found[1] is not None
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1].s, wanted[1].s)


def test_rows_without_history_are_zero() -> None:
    inputs = _inputs(6)
    valid = torch.arange(6).expand(2, -1) >= 3
    out = linear_attention(*inputs, causal=True, k_valid=valid)[0]
    assert (out[:, :, :3] == 0).all()
    assert (out[:, :, 3:] != 0).all()


def test_the_future_does_not_leak() -> None:
    q, k, v = (t.detach() for t in _inputs(20))
    before = linear_attention(q, k, v, causal=True, chunk=8)[0]
    k[:, :, 11:], v[:, :, 11:] = 5.0, -7.0
    assert torch.equal(linear_attention(q, k, v, causal=True, chunk=8)[0][:, :, :11], before[:, :, :11])


def test_features_are_elu_plus_one_with_all_digits() -> None:
    x = torch.tensor([-3.0, -0.5, 0.0, 0.5, 4.0], requires_grad=True)
    torch.testing.assert_close(elu_features(x), torch.nn.functional.elu(x) + 1)
    far = torch.tensor([-40.0], requires_grad=True)
    assert elu_features(far).item() == pytest.approx(4.248e-18, rel=1e-3)
    (grad,) = torch.autograd.grad(elu_features(torch.cat((x, far))).sum(), x)
    torch.testing.assert_close(grad, torch.tensor([-3.0, -0.5, 0.0, 0.0, 0.0]).exp())


def test_half_precision_state_is_wide() -> None:
    q, k, v = (t.detach().bfloat16() for t in _inputs(9))
    out, state = linear_attention(q, k, v, causal=True)
    assert out.dtype == torch.bfloat16
    assert state is not None
    assert state.s.dtype == torch.float32


def test_compiles_whole() -> None:
    q, k, v = (t.detach() for t in _inputs(33))
    ids = _sorted_ids(33)
    valid = torch.rand(2, 33) > 0.2

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention(q, k, v, causal=True, k_valid=valid, q_segments=ids, k_segments=ids, chunk=8)[0]

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(q, k, v), run(q, k, v))


@pytest.mark.parametrize("packed", [False, True])
def test_exports_with_any_length(packed: bool) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            segments = ids if packed else None
            return linear_attention(x, x, x, causal=True, chunk=8, q_segments=segments, k_segments=segments)[0]

    shapes = {"x": {2: torch.export.Dim.DYNAMIC}, "ids": {1: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(Model(), (torch.randn(2, 2, 20, 4), _sorted_ids(20)), dynamic_shapes=shapes)
    for size in (5, 8, 33):
        inputs = torch.randn(2, 2, size, 4), _sorted_ids(size)
        torch.testing.assert_close(program.module()(*inputs), Model()(*inputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"causal": True, "q": torch.randn(2, 3, 4, 8)}, "as many queries"),
        ({"causal": False, "state": linear_state(2, 3, 8, 6, torch.float32)}, "history"),
        ({"causal": True, "k_valid": torch.ones(2, 1, dtype=torch.bool)}, "k_valid"),
        ({"causal": False, "q_segments": torch.zeros(5)}, "together"),
        ({"causal": False, "q_segments": torch.zeros(5), "k_segments": torch.zeros(1)}, "k_segments"),
        ({"causal": True, "k": torch.randn(2, 1, 5, 8)}, "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    q, k, v = _inputs(5)
    with pytest.raises(ShapeError, match=message):
        linear_attention(**{"q": q, "k": k, "v": v, **options})


@pytest.mark.parametrize("causal", [False, True])
def test_tiny_features_have_finite_gradients(causal: bool) -> None:
    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
    out = linear_attention(q - 60.0, k, v, causal=causal)[0]
    out[:, :, 1:3].sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (q, k, v))


@pytest.mark.parametrize("causal", [True, False])
def test_features_of_very_negative_inputs_keep_their_weights(causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 9, 4) for _ in range(3))
    tensors = [(q - 60).requires_grad_(), (k - 60).requires_grad_(), v.requires_grad_()]
    out, _ = linear_attention(*tensors, causal=causal)
    wanted = naive_linear_attention(*(t.detach().double() for t in tensors), causal=causal)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), tensors))
