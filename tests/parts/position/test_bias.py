"""Biases on scores, against loops over their formulas."""

import math

import pytest
import torch

import variform as vf
from variform.parts.position.bias import AlibiBias, T5Bias, WindowBias


def bias_of(part: vf.Part, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = part().additive(q, k, torch.float64)
    return found


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_alibi_is_its_formula(heads: int) -> None:
    q, k = torch.tensor([0, 5, 9]), torch.tensor([0, 1, 7, 9])
    bias = bias_of(vf.build(AlibiBias.spec(), heads=heads).double(), q, k)
    for head in range(heads):
        slope = 2 ** (-8 * (head + 1) / heads)
        expected = -slope * (q[:, None] - k[None, :]).abs().double()
        torch.testing.assert_close(bias[0, head], expected, rtol=1e-6, atol=1e-7)


def test_alibi_slopes_of_other_head_counts_interleave_those_of_the_powers_around() -> None:
    slopes = vf.build(AlibiBias.spec(), heads=6).slopes
    expected = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    torch.testing.assert_close(slopes, torch.tensor(expected))


def test_learned_slopes_start_at_the_papers_and_get_gradients() -> None:
    part = vf.build(AlibiBias.spec(learned=True), heads=4)
    assert torch.equal(part.slopes, vf.build(AlibiBias.spec(), heads=4).slopes)
    bias_of(part, torch.arange(3), torch.arange(3)).sum().backward()
    assert part.slopes.grad.all()


def bucket(relative: int, causal: bool, buckets: int, farthest: int) -> int:
    """T5's rule in plain Python: exact near by, logarithmic up to `farthest`."""
    start = 0
    if not causal:
        buckets //= 2
        start = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(0, -relative)
    exact = buckets // 2
    if distance < exact:
        return start + distance
    far = exact + int(math.log(distance / exact) / math.log(farthest / exact) * (buckets - exact))
    return start + min(far, buckets - 1)


@pytest.mark.parametrize("causal", [True, False])
def test_t5_is_its_formula(causal: bool) -> None:
    part = vf.build(T5Bias.spec(buckets=8, max_distance=20, std=1.0), heads=3, causal=causal).double()
    q, k = torch.arange(30), torch.arange(30)
    bias = bias_of(part, q, k)
    for i in range(30):
        for j in range(30):
            row = bucket(j - i, causal, 8, 20)
            assert torch.equal(bias[0, :, i, j], part.table[row]), (i, j)


def test_positions_not_places_count() -> None:
    part = vf.build(T5Bias.spec(std=1.0), heads=2).double()
    q, k = torch.tensor([[5, 6], [0, 9]]), torch.tensor([[3, 4], [1, 2]])
    bias = bias_of(part, q, k)
    for row in range(2):
        assert torch.equal(bias[row], bias_of(part, q[row], k[row])[0])


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"buckets": 7}, "an even number"), ({"max_distance": 8}, "must exceed the 8"), ({"buckets": 3}, "greater than")],
)
def test_impossible_buckets(fields: dict[str, int], words: str) -> None:
    with pytest.raises(vf.ConfigError, match=words):
        vf.build(T5Bias.spec(**fields), heads=2)


@pytest.mark.parametrize("window", [(3, 3), (2, 4)])
def test_window_is_its_formula(window: tuple[int, int]) -> None:
    columns, (rows, width) = 6, window
    part = vf.build(WindowBias.spec(columns=columns, window=window, std=1.0), heads=3).double()
    bias = bias_of(part, torch.arange(24), torch.arange(24))
    for i in range(24):
        for j in range(24):
            down = max(1 - rows, min(rows - 1, i // columns - j // columns))
            right = max(1 - width, min(width - 1, i % columns - j % columns))
            row = (down + rows - 1) * (2 * width - 1) + right + width - 1
            assert torch.equal(bias[0, :, i, j], part.table[row]), (i, j)


def test_a_window_bias_starts_small_and_every_row_learns() -> None:
    part = vf.build(WindowBias.spec(columns=5, window=(2, 3), std=0.5), heads=200)
    assert part.table.shape == (15, 200)
    assert 0.47 < float(part.table.detach().std()) < 0.53
    bias_of(part, torch.arange(25), torch.arange(25)).sum().backward()
    assert part.table.grad.all()
