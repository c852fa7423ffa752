import functools
import math

import pytest
import torch
from torch import Tensor

from tests.ops.cases import CASES, LENGTHS, assert_matches_reference, build, cast, error, qkv, run_with_gradients
from variform.errors import BackendError, ConfigError, ShapeError
from variform.ops.attention import (
    Call,
    Candidate,
    attention,
    backends,
    candidates,
    reference,
    reference_weights,
    register_backend,
)
from variform.ops.attention.sdpa import _without_empty_rows
from variform.ops.masks import Causal, Dense, Segments, Window
from variform.ops.scores import SoftCap


def _by_hand(call: Call) -> Tensor:
    """Attention in Python loops; an oracle of the oracle."""
    batch, heads, q_len, _ = call.q.shape
    k_len, group = call.k.shape[2], heads // call.k.shape[1]
    out = torch.zeros(batch, heads, q_len, call.v.shape[-1], dtype=call.q.dtype)
    mask = call.full_mask()
    seen = (
        torch.ones(batch, heads, q_len, k_len, dtype=torch.bool)
        if mask is None
        else mask.expand(batch, heads, q_len, k_len)
    )
    for b in range(batch):
        for h in range(heads):
            for i in range(q_len):
                keys = [j for j in range(k_len) if seen[b, h, i, j]]
                if not keys:
                    continue
                scores = [(call.q[b, h, i] @ call.k[b, h // group, j]).item() * call.softmax_scale for j in keys]
                total = sum(math.exp(score) for score in scores)
                for j, score in zip(keys, scores, strict=True):
                    out[b, h, i] += math.exp(score) / total * call.v[b, h // group, j].detach()
    return out


@pytest.mark.parametrize("name", ["causal", "grouped", "one_kv_head", "empty_rows", "cross_padded"])
def test_reference_is_attention(name: str) -> None:
    call = build(name, 7)
    torch.testing.assert_close(reference(call).detach(), _by_hand(call))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", CASES)
def test_auto_matches_reference(name: str, length: int) -> None:
    assert_matches_reference(attention, build(name, length))


@pytest.mark.parametrize("backend", [name for name in backends() if name not in ("reference", "flex")])
@pytest.mark.parametrize("name", CASES)
def test_backend_serves_or_refuses(name: str, backend: str) -> None:
    for length in (7, 65):
        call = build(name, length)
        if backends()[backend].refuses(call, training=True) is None:
            assert_matches_reference(functools.partial(attention, backend=backend), call)
        else:
            with pytest.raises(BackendError, match=backend):
                attention(call, backend=backend)


@pytest.mark.parametrize("name", ["empty_rows", "nothing_valid", "dense_bias", "window_padded"])
def test_rows_without_keys_are_kept_from_kernels(name: str) -> None:
    from variform.ops.attention.sdpa import _mask

    def run(call: Call) -> Tensor:
        mask = _mask(call)
        assert mask is not None
        return _without_empty_rows(call, mask)

    assert_matches_reference(run, build(name, 7))


def test_rows_without_keys_are_zero() -> None:
    call = build("empty_rows", 7)
    for backend in ("auto", "sdpa", "reference"):
        out = attention(call, backend=backend)
        assert (out[0, :, 0] == 0).all()
        assert (out[1] == 0).all()
    assert reference_weights(call)[1].sum() == 0


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_dropout_by_mean_and_variance(backend: str) -> None:
    base = qkv(9, batch=1, heads=2, kv_heads=2)
    call = Call(**{name: t.detach() for name, t in base.items()}, structure=Causal(), dropout=0.3)
    draws = torch.stack([attention(call, backend=backend) for _ in range(3000)])
    weights = reference_weights(call)
    mean = weights @ call.v
    variance = (weights**2 * (0.3 / 0.7)) @ call.v**2
    sigma = (variance / len(draws)).sqrt()
    assert ((draws.mean(0) - mean).abs() <= 5 * sigma + 1e-12).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.25, atol=1e-6)


def test_half_precision_bias_keeps_its_fraction() -> None:
    call = cast(build("alibi", 65), torch.bfloat16)
    wanted = run_with_gradients(reference, cast(call, torch.float64))
    assert error(run_with_gradients(attention, call), wanted) < 0.03


@pytest.mark.parametrize(
    "name", ["plain", "causal", "grouped", "window", "packed", "left_padded", "alibi", "soft_cap", "blocks"]
)
def test_compiles_whole(name: str) -> None:
    call = cast(build(name, 33), torch.float32)
    names = ("structure", "mask", "q_positions", "k_positions", "q_segments", "k_segments", "k_valid", "scores")
    rest = {field: getattr(call, field) for field in names}

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(Call(q, k, v, **rest))

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = run_with_gradients(lambda c: compiled(c.q, c.k, c.v), call)
    assert error(found, run_with_gradients(attention, call)) < 1e-5


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.structure = Causal() & Window(4)

    def forward(self, x: Tensor, mask: Dense | None = None) -> Tensor:
        heads = x.unflatten(-1, (2, 8)).transpose(1, 2)
        return attention(Call(heads, heads, heads, structure=self.structure, mask=mask))


def test_exports_with_any_length_and_a_mask() -> None:
    x = torch.randn(2, 9, 16)
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(_Model(), (x,), dynamic_shapes={"x": {1: length}})
    other = torch.randn(2, 13, 16)
    torch.testing.assert_close(program.module()(other), _Model()(other))
    mask = Dense(torch.rand(9, 9) > 0.5)
    program = torch.export.export(_Model(), (x, mask))
    torch.testing.assert_close(program.module()(x, mask), _Model()(x, mask))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_valid": torch.ones(2, 1, dtype=torch.bool)}, "k_valid"),
        ({"k_valid": torch.ones(1, 7, dtype=torch.bool)}, "k_valid"),
        ({"k_valid": torch.ones(2, 7)}, "k_valid"),
        ({"mask": Dense(torch.ones(7, 1, dtype=torch.bool))}, "does not fit"),
        ({"mask": Dense(torch.ones(3, 1, 7, 7, dtype=torch.bool))}, "batch"),
        ({"mask": Dense(torch.ones(2, 2, 7, 7, dtype=torch.bool))}, "head"),
        ({"q_positions": torch.arange(1)}, "q_positions"),
        ({"q_segments": torch.zeros(7)}, "together"),
        ({"k_segments": torch.zeros(7), "structure": Causal()}, "together"),
        ({"mask": Segments()}, "segment ids"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    for backend in ("auto", "sdpa", "reference"):
        with pytest.raises(ShapeError, match=message):
            attention(Call(**qkv(7), **change), backend=backend)  # type: ignore[arg-type]


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ShapeError, match="3 key/value heads"):
        attention(Call(**qkv(7, kv_heads=3)))


def test_unknown_backend_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="sdpa"):
        attention(Call(**qkv(3)), backend="spda")


def test_explicit_backend_is_refused_with_the_reason() -> None:
    with pytest.raises(BackendError, match="SoftCap"):
        attention(Call(**qkv(3), scores=(SoftCap(3.0),)), backend="sdpa")


def test_candidates_tell_choice_and_reasons() -> None:
    found = candidates(Call(**qkv(3), scores=(SoftCap(3.0),), dropout=0.1))
    assert found[0].name == "reference"
    assert [candidate.chosen for candidate in found] == [True] + [False] * (len(found) - 1)
    assert "SoftCap" in next(candidate for candidate in found if candidate.name == "sdpa").why
    learned = candidates(build("dense_bias", 7))
    assert learned[0].name == "sdpa"
    assert "learned bias" in learned[0].why
    assert candidates(build("plain", 7), backend="reference")[0].why == "asked for by name"


def test_candidates_on_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        heads = torch.empty(1, 2, 4096, 64)
        assert candidates(Call(heads, heads, heads, structure=Causal(), device="cuda"))[0].name == "sdpa"


def test_a_registered_backend_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zeros:
        name = "zeros"

        def refuses(self, call: Call, training: bool) -> str | None:
            return "zeros have no gradient" if training else None

        def advantage(self, call: Call, training: bool) -> str | None:
            return "nothing is faster" if call.mask is not None else None

        def run(self, call: Call) -> Tensor:
            return torch.zeros_like(call.v)

    monkeypatch.setattr("variform.ops.attention.select._specialised", [])
    register_backend(Zeros())
    with pytest.raises(ConfigError, match="already registered"):
        register_backend(Zeros())
    call = build("dense", 7)
    assert candidates(call)[0].name == "sdpa"
    with torch.no_grad():
        assert attention(call).abs().sum() == 0
        assert candidates(call)[0] == Candidate("zeros", None, True, "nothing is faster")
        assert attention(build("plain", 7)).abs().sum() > 0
    with pytest.raises(BackendError, match="zeros have no gradient"):
        attention(call, backend="zeros")
