"""Nystrom attention against loops over its formulas in float64, and what its causal form promises."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from variform.ops.causal_nystrom import Scheme, scheme
from variform.ops.nystrom import segment_means
from variform.parts.attention.nystrom import NystromAttention
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.kinds import Sides
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-10}


def qkv(length: int, kv_heads: int = 2, keys: int | None = None, seed: int = 0, dim: int = 4) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    sizes = ((4, length, dim), (kv_heads, keys or length, dim), (kv_heads, keys or length, 3))
    return [torch.randn(2, *size, generator=drawn, dtype=torch.float64).requires_grad_() for size in sizes]


def part(causal: bool = False, **fields: Any) -> NystromAttention:
    return vf.build(NystromAttention.spec(causal=causal, **fields)).double()


def softmax(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None = None) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    back = torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])
    if causal:
        scores = scores.masked_fill((back < 0) | (back >= (window or len(back))), -math.inf)
    return scores.softmax(-1) @ v


def assert_equal_with_gradients(got: Tensor, wanted: Tensor, given: list[Tensor]) -> None:
    torch.testing.assert_close(got, wanted, **EXACT)
    weights = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view_as(got)
    found, right = (torch.autograd.grad((out * weights).sum(), given) for out in (got, wanted))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


# ---- not causal ----


def plain(q: Tensor, k: Tensor, v: Tensor, landmarks: int) -> Tensor:
    """The paper's three matrices, with the exact inverse, for equal heads."""

    def means(x: Tensor) -> Tensor:
        sizes = [x.shape[2] // landmarks + (i >= landmarks - x.shape[2] % landmarks) for i in range(landmarks)]
        return torch.stack([run.mean(2) for run in x.split(sizes, 2)], 2)

    def weights(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.transpose(-1, -2) / 2).softmax(-1)

    middle = weights(means(q), means(k))
    return weights(q, means(k)) @ torch.linalg.pinv(middle) @ weights(means(q), k) @ v


@pytest.mark.parametrize("length", [8, 13, 33])
def test_it_is_the_papers_formula(length: int) -> None:
    given = qkv(length, kv_heads=4)
    got = part(landmarks=3, inverse="exact")(*given, Sides())
    assert_equal_with_gradients(got, plain(*given, 3), given)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_other_lengths_of_keys(kv_heads: int) -> None:
    q, k, v = qkv(5, kv_heads, keys=19)
    wide = [t.repeat_interleave(4 // kv_heads, 1) for t in (k, v)]
    torch.testing.assert_close(part(landmarks=4, inverse="exact")(q, k, v, Sides()), plain(q, *wide, 4), **EXACT)
    # Fewer queries than landmarks are landmarks themselves.
    attention, few = part(landmarks=6, inverse="exact"), q[:, :, :3]
    torch.testing.assert_close(attention(few, k, v, Sides()), softmax(few, k, v, causal=False), **EXACT)


@pytest.mark.parametrize("length", [1, 7, 12])
@pytest.mark.parametrize("causal", [True, False])
def test_as_many_landmarks_as_tokens_are_softmax_attention(length: int, causal: bool) -> None:
    given = qkv(length)
    assert_equal_with_gradients(part(causal, landmarks=12)(*given, Sides()), softmax(*given, causal), given)


def test_the_iterative_inverse_converges_to_the_exact_one() -> None:
    given = [t.detach() for t in qkv(40)]
    exact = part(landmarks=5, inverse="exact")(*given, Sides())
    errors = [float((part(landmarks=5, iterations=n)(*given, Sides()) - exact).norm()) for n in (0, 3, 6, 12, 24)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8 < errors[2]


def test_the_original_start_converges_more_slowly_and_keeps_rows_apart() -> None:
    given = [t.detach() for t in qkv(40)]
    exact, own, shared = (
        part(landmarks=5, iterations=4, **more)(*given, Sides())
        for more in ({"inverse": "exact"}, {}, {"original_init": True})
    )
    assert float((own - exact).norm()) < float((shared - exact).norm())
    alone = part(landmarks=5, iterations=4, original_init=True)(*(t[:1] for t in given), Sides())
    torch.testing.assert_close(shared[:1], alone, **EXACT)


def test_landmarks_of_padded_rows_count_real_tokens() -> None:
    x = torch.randn(3, 2, 11, 4, dtype=torch.float64)
    count = torch.tensor([11, 7, 2])
    means, held = segment_means(x, 3, count)
    for row, length in enumerate(count.tolist()):
        if length >= 3:
            torch.testing.assert_close(means[row], segment_means(x[row : row + 1, :, :length], 3)[0][0], **EXACT)
    assert held is not None
    assert held.tolist() == [[True] * 3, [True] * 3, [False, True, True]]


# ---- causal ----


def causal_loops(q: Tensor, k: Tensor, v: Tensor, landmarks: int) -> Tensor:
    """The construction of the docstring, one query and one block at a time; segments are made by recursion."""
    cut = scheme(landmarks)
    groups, length = q.shape[1] // k.shape[1], q.shape[2]
    q = q * q.shape[-1] ** -0.5

    def segment(row: int, head: int, start: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean query, landmark key, value, and log of K(q~, k~)^-1 sum_j K(q~, k_j)."""
        if size == 1:
            mean = q[row, head * groups : (head + 1) * groups, start].mean(0)
            return mean, k[row, head, start], v[row, head, start], torch.zeros((), dtype=q.dtype)
        halves = [segment(row, head, start + i * size // 2, size // 2) for i in (0, 1)]
        mean = (halves[0][0] + halves[1][0]) / 2
        kernel = torch.stack([(mean @ key + bias).exp() for _, key, _, bias in halves])
        key = sum(w * h[1] for w, h in zip(kernel, halves, strict=True)) / kernel.sum()
        value = sum(w * h[2] for w, h in zip(kernel, halves, strict=True)) / kernel.sum()
        assert isinstance(key, Tensor)
        assert isinstance(value, Tensor)
        return mean, key, value, kernel.sum().log() - mean @ key

    out = []
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            for i in range(length):
                kv_head, chunk = head // groups, i // cut.chunk
                seen = [(j, 1) for j in range(max(0, (chunk - 1) * cut.chunk), i + 1)]
                size = cut.chunk
                while i // size >= 2:
                    own, step = i // size, size // cut.segments
                    chunks = [own - 2] if own % 2 == 0 else [own - 3, own - 2]
                    seen += [(c * size + n * step, step) for c in chunks for n in range(cut.segments)]
                    size *= 2
                assert sorted(j for start, n in seen for j in range(start, start + n)) == list(range(i + 1))
                parts = [segment(row, kv_head, start, n) for start, n in seen]
                kernel = torch.stack([(q[row, head, i] @ key + bias).exp() for _, key, _, bias in parts])
                out.append(torch.stack([value for _, _, value, _ in parts]).T @ kernel / kernel.sum())
    return torch.stack(out).view(*q.shape[:3], -1)


@pytest.mark.parametrize(("landmarks", "length", "kv_heads"), [(1, 19, 4), (5, 27, 2), (8, 33, 1)])
def test_the_causal_form_is_its_formula(landmarks: int, length: int, kv_heads: int) -> None:
    given = qkv(length, kv_heads)
    got = part(True, landmarks=landmarks)(*given, Sides())
    assert_equal_with_gradients(got, causal_loops(*given, landmarks), given)


def long_data() -> tuple[Tensor, Tensor, Tensor]:
    """Two fixed sequences of 256 tokens: queries, keys and values independent, and maps of slowly changing features."""
    drawn = torch.Generator().manual_seed(1)
    steady = torch.randn(2, 256, 16, generator=drawn, dtype=torch.float64).cumsum(-2)
    steady = steady / torch.arange(1, 257)[:, None] ** 0.5
    made = torch.randn(3, 2, 2, 256, 16, generator=drawn, dtype=torch.float64)
    for x in made:
        x[1] = steady @ torch.randn(16, 16, generator=drawn, dtype=torch.float64) / 4
    q, k, v = made
    return q, k, v


def relative_errors(got: Tensor, wanted: Tensor) -> Tensor:
    return (got - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)


def test_the_causal_error_falls_as_landmarks_grow() -> None:
    q, k, v = long_data()
    wanted = softmax(q, k, v, causal=True)
    errors = torch.stack(
        [relative_errors(part(True, landmarks=n)(q, k, v, Sides()), wanted) for n in (4, 8, 16, 32, 64, 128, 256)]
    )
    assert bool((errors[1:-1] < errors[:-2]).all())
    assert bool((errors[4] < 0.6 * errors[0]).all())
    assert float(errors[-1].max()) < 1e-12


@pytest.mark.parametrize("landmarks", [4, 8, 16, 32, 64])
def test_the_causal_form_beats_a_window_of_as_many_pairs(landmarks: int) -> None:
    q, k, v = long_data()
    wanted = softmax(q, k, v, causal=True)
    error = relative_errors(part(True, landmarks=landmarks)(q, k, v, Sides()), wanted)
    pairs = visited_pairs(scheme(landmarks), 256)
    size = next(n for n in range(1, 257) if sum(min(i + 1, n) for i in range(256)) >= pairs)
    window = relative_errors(softmax(q, k, v, True, window=size), wanted)
    assert bool((error < window).all()), (error, window)


def visited_pairs(cut: Scheme, length: int) -> int:
    """Pairs of a query and a key or landmark that it sees; the masked rest of a tile is not counted, as in windows."""
    pairs = 0
    for i in range(length):
        pairs += i + 1 - max(0, (i // cut.chunk - 1) * cut.chunk)
        pairs += sum(cut.segments * (1 + (i // cut.chunk >> n) % 2) for n in range(cut.levels(i + 1)))
    return pairs


@pytest.mark.parametrize("landmarks", [16, 64])
def test_the_causal_form_costs_less_than_quadratic_time(landmarks: int) -> None:
    costs = {}
    for name, attention in (
        ("nystrom", NystromAttention.spec(landmarks=landmarks)),
        ("softmax", SoftmaxAttention.spec()),
    ):
        layer = Sublayer.spec(body=MultiHead.spec(attention=attention), norm=None)
        for length in (1024, 4096):
            stack = LayerStack.spec(layers=[layer])
            spec = Transformer.spec(stacks=[stack], causal=True, max_seq_len=length, dim=64, heads=4, embedding=None)
            costs[name, length] = vf.describe(spec, 1, length).flops
    assert costs["nystrom", 4096] < 5 * costs["nystrom", 1024]
    assert costs["softmax", 4096] > 13 * costs["softmax", 1024]
    assert costs["nystrom", 4096] < 0.2 * costs["softmax", 4096]


def test_a_step_of_decoding_does_not_grow_with_what_came_before() -> None:
    """The cost of a step, in products, is that of a query: it grows with the logarithm of the length."""
    cut = scheme(16)
    assert [cut.keys(n) for n in (16, 256, 4096, 65536)] == [16, 48, 80, 112]


def test_a_perturbed_future_changes_no_bit_of_the_past_at_any_cut() -> None:
    q, k, v = (t.detach() for t in qkv(67))
    attention = part(True, landmarks=7)
    before = attention(q, k, v, Sides())
    for cut in range(1, 67, 5):
        others = [torch.cat((t[:, :, :cut], 9 * torch.randn_like(t[:, :, cut:])), 2) for t in (q, k, v)]
        assert torch.equal(attention(*others, Sides())[:, :, :cut], before[:, :, :cut])


# ---- what is added, and what is refused ----


@pytest.mark.parametrize(("causal", "length"), [(True, 21), (True, 5), (False, 21), (False, 5)])
def test_a_convolution_of_the_values_is_added(causal: bool, length: int) -> None:
    given = qkv(length)
    attention = part(causal, landmarks=5, conv_kernel=3, heads=4)
    assert attention.filters is not None
    bare = part(causal, landmarks=5)(*given, Sides())
    added = torch.zeros_like(bare)
    for i in range(length):
        for tap in range(3):
            j = i + tap - (2 if causal else 1)
            if 0 <= j < length:
                value = given[2].repeat_interleave(2, 1)[:, :, j]
                added[:, :, i] += attention.filters[:, 0, tap] * value
    torch.testing.assert_close(attention(*given, Sides()), bare + added, **EXACT)


def test_modules_for_landmarks_and_values() -> None:
    given = qkv(20, kv_heads=4)
    pooled = part(landmarks=5, pooling=nn.AdaptiveAvgPool2d((5, None)))(*given, Sides())
    torch.testing.assert_close(pooled, part(landmarks=5)(*given, Sides()), **EXACT)
    other = part(landmarks=5, pooling=nn.AdaptiveMaxPool2d((5, None)))(*given, Sides())
    assert not torch.allclose(other, pooled)
    skipped = part(landmarks=5, skip=nn.Identity())(*given, Sides())
    torch.testing.assert_close(skipped, part(landmarks=5)(*given, Sides()) + given[2], **EXACT)
    for name in ("pooling", "skip"):
        with pytest.raises(vf.ShapeError, match="padding cannot be kept from"):
            part(landmarks=5, **{name: nn.Identity()})(*given, Sides(k_valid=torch.ones(2, 20, dtype=torch.bool)))
        with pytest.raises(vf.ConfigError, match="is not causal"):
            part(True, **{name: nn.Identity()})


def test_dropout_zeroes_numbers_of_the_result() -> None:
    given = qkv(20)
    for length in (20, 3):
        short = [t[:, :, :length] for t in given]
        attention = part(landmarks=5, dropout=0.5)
        out, kept = attention.train()(*short, Sides()), attention.eval()(*short, Sides())
        assert 0.2 < float((out == 0).double().mean()) < 0.8
        torch.testing.assert_close(out[out != 0], 2 * kept[out != 0], **EXACT)


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = qkv(5, keys=9)
    with pytest.raises(vf.ShapeError, match="as many queries as keys"):
        part(True)(q, k, v, Sides())
    with pytest.raises(vf.ShapeError, match="as many queries as keys"):
        part(conv_kernel=3, heads=4)(q, k, v, Sides())
    for fields, message in (
        ({"conv_kernel": 4, "heads": 4}, "odd size"),
        ({"conv_kernel": 3}, "how many heads"),
        ({"conv_kernel": 3, "heads": 4, "skip": nn.Identity()}, "in place of the convolution"),
        ({"landmarks": 0}, "greater than 0"),
    ):
        with pytest.raises(vf.ConfigError, match=message):
            part(**fields)
    assert part(True, conv_kernel=4, heads=4)(*qkv(9), Sides()).shape == (2, 4, 9, 3)


@pytest.mark.parametrize("inverse", ["iterative", "exact"])
def test_the_inverse_keeps_its_digits_under_autocast(inverse: str) -> None:
    given = [t.detach().float().requires_grad_() for t in qkv(40)]
    attention = part(landmarks=6, inverse=inverse).float()
    wanted = attention(*given, Sides())
    with torch.autocast("cpu", torch.bfloat16):
        got = attention(*given, Sides())
    assert got.dtype == (torch.bfloat16 if inverse == "iterative" else torch.float32)
    assert float((got.float() - wanted).detach().norm() / wanted.detach().norm()) < 0.05
    gradients = torch.autograd.grad(got.float().square().sum(), given)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_compiled_steps_equal_the_whole_sequence_in_few_graphs() -> None:
    attention = NystromAttention.spec(landmarks=3, conv_kernel=3)
    spec = vf.override(
        vf.models.gpt(vocab_size=11, dim=16, depth=1, heads=4, max_seq_len=24),
        {"stacks.0.layers.*.sublayers.0.body.attention": attention},
    )
    model = vf.build(spec).double().eval()
    ids = torch.arange(40).view(2, 20) % 11
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        state, outs = model.init_state(2, 24), []
        for start in range(9, 20):
            chunk = ids[:, :10] if start == 9 else ids[:, start : start + 1]
            out, state = step(chunk, state=state)
            outs.append(out)
        torch.testing.assert_close(torch.cat(outs, 1), model(ids), **EXACT)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
