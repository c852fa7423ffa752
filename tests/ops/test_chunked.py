"""Attention some queries at a time: equal to the reference, values and gradients, and leaner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from variform.errors import BackendError, ConfigError
from variform.ops.attention import Call, attention, candidates
from variform.ops.attention import chunked as module
from variform.ops.attention.held import tensors_of
from variform.ops.attention.memory import with_memory
from variform.ops.distances import DistanceBias
from variform.ops.learned_scores import (
    AddedScores,
    ContextualBias,
    DistanceCurves,
    ForgetBias,
    ForgetRows,
    ForgetSeen,
    Suppression,
    TalkingScores,
)
from variform.ops.masks import Causal, Dense, Window
from variform.ops.scores import Alibi, BucketBias, DenseBias, SoftCap, alibi_slopes
from variform.ops.weightings import (
    GumbelWeights,
    HardWeights,
    InvertedWeights,
    Normaliser,
    ScaledWeights,
    SigmoidWeights,
    SignedWeights,
    SinkWeights,
    TalkingWeights,
    TopKWeights,
)

H, L, D = 4, 37, 4


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_BYTES", 1)
    monkeypatch.setattr(module, "_FEWEST", 5)
    return iter([None])


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def call(**more: Any) -> Call:
    torch.manual_seed(0)
    tensors = drawn(2, H, L, D), drawn(2, 2, L, D), drawn(2, 2, L, 6)
    return Call(*tensors, **{"structure": Causal(), **more})


PADDING = {"k_valid": torch.arange(L) < torch.tensor([[L], [0]])}
PLACED = {"q_positions": torch.arange(L), "k_positions": torch.arange(L).flip(0), "structure": Causal()}
LAYOUT = torch.rand(2, 1, L, L, generator=torch.Generator().manual_seed(0)) > 0.3

CASES: dict[str, Any] = {
    "cap": lambda: call(scores=(SoftCap(0.5),)),
    "t5": lambda: call(scores=(BucketBias(drawn(8, H), False, 16),)),
    "t5_both_sides": lambda: call(scores=(BucketBias(drawn(8, H), True, 16),), structure=None),
    "alibi_window": lambda: call(scores=(Alibi(alibi_slopes(H).double()),), structure=Causal() & Window(6)),
    "alibi_around": lambda: call(scores=(Alibi(alibi_slopes(H).double()),), structure=Window(4, 3)),
    "dense": lambda: call(scores=(DenseBias(drawn(2, 1, L, L)), SoftCap(1.0))),
    "padding": lambda: call(scores=(SoftCap(0.5),), **PADDING),
    "positions": lambda: call(scores=(Alibi(drawn(H)), SoftCap(2.0)), **PLACED),
    "packed": lambda: call(scores=(SoftCap(0.5),), q_segments=torch.arange(L) // 9, k_segments=torch.arange(L) // 9),
    "pairs": lambda: call(scores=(SoftCap(0.5),), mask=Dense(LAYOUT), structure=None),
    "talking": lambda: call(scores=(TalkingScores(drawn(H, H)),), weights=TalkingWeights(drawn(H, H))),
    "scaled": lambda: call(scores=(SoftCap(1.0),), weights=ScaledWeights(drawn(H, H))),
    "cope": lambda: call(scores=(ContextualBias(drawn(2, H, L, 5), drawn(H, H)),)),
    "cope_soft": lambda: call(scores=(ContextualBias(drawn(2, H, L, 5), None, 0.3),)),
    "forget": lambda: call(scores=(ForgetBias(drawn(2, H, L), drawn(2, H, L)),)),
    "forget_around": lambda: call(
        scores=(ForgetBias(drawn(2, H, L), drawn(2, H, L), (drawn(2, H, L), drawn(2, H, L))),), structure=None
    ),
    "forget_seen": lambda: call(scores=(ForgetSeen(drawn(2, H, L), drawn(2, H, L)),), mask=Dense(LAYOUT)),
    "forget_rows": lambda: call(scores=(ForgetRows(drawn(2, H, L, 3), drawn(2, H, L, 3), 0.5),)),
    "distance": lambda: call(scores=(DistanceCurves(drawn(2, H, L, 3), drawn(3, 9)),)),
    "sink": lambda: call(weights=SinkWeights(drawn(H))),
    "top_k": lambda: call(weights=TopKWeights(3, straight_through=True)),
    "hard": lambda: call(weights=HardWeights()),
    "sigmoid": lambda: call(weights=SigmoidWeights(), **PADDING),
    "signed": lambda: call(weights=SignedWeights(SinkWeights(drawn(H), TopKWeights(3)))),
    "sink_talking": lambda: call(
        weights=SinkWeights(drawn(H), ScaledWeights(drawn(H, H), TalkingWeights(drawn(H, H))))
    ),
    "sink_signed": lambda: call(weights=SinkWeights(drawn(H), SignedWeights(TopKWeights(3)))),
    "memory": lambda: with_memory(
        call(scores=(DistanceCurves(drawn(2, H, L, 3), drawn(3, 9)), SoftCap(1.0))), drawn(2, 3, D), drawn(2, 3, 6)
    ),
    "memory_window": lambda: with_memory(
        call(scores=(Alibi(drawn(H)),), structure=Causal() & Window(5)), drawn(2, 3, D), drawn(2, 3, 6)
    ),
}


def gradients(one: Call, backend: str) -> tuple[Tensor, list[Tensor]]:
    out = attention(one, backend)
    torch.manual_seed(1)
    leaves = [one.q, one.k, one.v, *tensors_of(one.scores), *tensors_of((one.weights,))]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    found = torch.autograd.grad(out, leaves, torch.randn_like(out), allow_unused=True)
    return out, [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_references(name: str) -> None:
    one = CASES[name]()
    expected, wanted = gradients(one, "reference")
    found, grads = gradients(one, "chunked")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(attention(one, "chunked"), expected, rtol=0, atol=1e-12)


SINKS: list[dict[str, Any]] = [
    {},
    PADDING,
    {"scores": (Alibi(alibi_slopes(H).double()),)},
    {"scores": (AddedScores(torch.randn(1, H, L, L).double()),)},
    {"structure": None},
]


@pytest.mark.parametrize("more", SINKS)
def test_a_sink_is_one_key_more_of_the_fused_kernel(more: dict[str, Any]) -> None:
    one = call(weights=SinkWeights(drawn(H)), **more)
    expected, wanted = gradients(one, "reference")
    found, grads = gradients(one, "sdpa")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)
    assert candidates(replace(one, device="cuda"))[0].name == "sdpa"
    with pytest.raises(BackendError, match="softmax alone, not SigmoidWeights"):
        attention(replace(one, weights=SigmoidWeights()), "sdpa")


def test_keys_may_end_before_the_windows_of_the_last_queries() -> None:
    one = call(scores=(SoftCap(0.5),), structure=Window(6, 2))
    one = replace(one, k=one.k[:, :, :9], v=one.v[:, :, :9])
    torch.testing.assert_close(attention(one, "chunked"), attention(one, "reference"), rtol=0, atol=1e-12)


def test_weights_within_weights_keep_all_they_do() -> None:
    torch.manual_seed(0)
    sink, mixing, inverted = drawn(H), drawn(H, H), InvertedWeights()
    one = call()

    def run(weights: Normaliser) -> Tensor:
        return attention(replace(one, weights=weights), "reference")

    within, around = SinkWeights(sink, TalkingWeights(mixing)), TalkingWeights(mixing, SinkWeights(sink))
    torch.testing.assert_close(run(within), run(around), rtol=0, atol=1e-12)
    assert replace(one, weights=within).flops() == replace(one, weights=around).flops()
    assert run(SinkWeights(sink, inverted)).isfinite().all()
    scores = (one.q @ one.expanded()[0].mT) * D**-0.5
    seen = torch.ones(L, L, dtype=torch.bool).tril()
    shares = scores.abs().softmax(-2).masked_fill(~seen, 0.0)
    signed = scores.sign() * shares / shares.sum(-1, keepdim=True)
    torch.testing.assert_close(run(SignedWeights(inverted)), signed @ one.expanded()[1], rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match="signs come first"):
        SignedWeights(SinkWeights(sink, TalkingWeights(mixing)))


def test_a_bias_that_no_single_pair_tells_is_left_to_others() -> None:
    scores = (DistanceBias(lambda distance: torch.stack([distance * 0.01] * H, -1)),)
    long = torch.randn(1, H, 2048, 8)
    one = Call(long, long, long, structure=Causal() & Window(63), scores=scores)
    assert candidates(one)[0].name == "sdpa"
    torch.testing.assert_close(attention(one), attention(one, "reference"), rtol=0, atol=1e-5)
    with pytest.raises(BackendError, match="pair by pair"):
        attention(one, "block_sparse")


def test_what_a_function_learns_is_not_lost() -> None:
    """A backward pass of its own reaches tensors that it is given, not those within a function."""
    network = torch.nn.Linear(1, H, dtype=torch.float64)
    scores = (DistanceBias(lambda distance: network(distance[:, None].double())),)
    one = call(scores=scores)
    frozen = replace(one, q=one.q.detach(), k=one.k.detach(), v=one.v.detach())
    for each in (one, frozen):
        assert candidates(each)[0].name != "chunked"
        assert torch.autograd.grad(attention(each).square().sum(), network.weight)[0].any()
        with pytest.raises(BackendError, match="out of reach"):
            attention(each, "chunked")
    with torch.no_grad():
        torch.testing.assert_close(attention(one, "chunked"), attention(one, "reference"), rtol=0, atol=1e-12)


def test_gradients_of_gradients() -> None:
    one = CASES["cap"]()
    found = []
    for backend in ("reference", "chunked"):
        (first,) = torch.autograd.grad(attention(one, backend).square().sum(), one.q, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), one.k)[0])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-10)


def test_half_precision_errs_no_more_than_the_plain_formula() -> None:
    one = call(scores=(SoftCap(1.0), Alibi(alibi_slopes(H).double())))
    half = replace(one, q=one.q.bfloat16(), k=one.k.bfloat16(), v=one.v.bfloat16())
    exact = attention(one, "reference")
    names = ("chunked", "reference")
    error, plain = ((attention(half, name).double() - exact).square().mean().sqrt() for name in names)
    assert attention(half, "chunked").dtype == torch.bfloat16
    assert error <= 2 * plain


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (lambda: call(scores=(SoftCap(1.0),), dropout=0.1), "drawn anew"),
        (lambda: call(weights=GumbelWeights()), "drawn anew"),
        (lambda: call(weights=InvertedWeights(), structure=None), "InvertedWeights looks at other queries"),
        (lambda: call(scores=(Suppression(torch.zeros(1, L, L, dtype=torch.bool)),)), "Suppression looks at other"),
    ],
)
def test_what_it_refuses(one: Any, reason: str) -> None:
    with pytest.raises(BackendError, match=reason):
        attention(one(), "chunked")


def test_when_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(one: Call) -> str:
        return candidates(one)[0].name

    with torch.no_grad():
        assert chosen(call(scores=(SoftCap(1.0),))) == "reference"  # so few pairs fit into the cache at once
    monkeypatch.setattr(module, "_SMALL", 1)
    assert chosen(call(scores=(SoftCap(1.0),))) == "chunked"
    assert chosen(call(scores=(BucketBias(drawn(8, H), False, 16),))) == "chunked"
    assert chosen(call(scores=(Alibi(alibi_slopes(H).double()),))) == "chunked"
    assert chosen(call(scores=(Alibi(alibi_slopes(H).double()),), structure=None)) == "sdpa"
    assert chosen(call(scores=(DenseBias(drawn(2, 1, L, L)),))) == "sdpa"
    assert chosen(call(scores=(SoftCap(1.0),), device="cuda")) == "reference"
    assert chosen(call()) == "sdpa"


def test_nothing_of_all_pairs_is_kept() -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() * (tensor.dtype != torch.bool))
        return tensor

    one = call(scores=(SoftCap(1.0), Alibi(alibi_slopes(H).double())))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attention(one, "chunked")
    assert max(kept) < L * L
