import math

import pytest
import torch
from torch import Tensor

from variform.errors import ConfigError, ShapeError
from variform.ops.scores import Alibi, BucketBias, DenseBias, GridBias, ScoreMod, SoftCap, alibi_slopes, t5_bucket


def test_alibi_slopes_of_powers_of_two_and_others() -> None:
    torch.testing.assert_close(alibi_slopes(8), torch.tensor([2.0**-i for i in range(1, 9)]))
    twelve = alibi_slopes(12)
    torch.testing.assert_close(twelve[:8], alibi_slopes(8))
    torch.testing.assert_close(twelve[8:], alibi_slopes(16)[::2][:4])
    assert alibi_slopes(1).tolist() == [2.0**-8]
    with pytest.raises(ConfigError):
        alibi_slopes(0)


def _t5_bucket_by_hand(relative: int, bidirectional: bool, buckets: int, max_distance: int) -> int:
    result, n = 0, -relative
    if bidirectional:
        buckets //= 2
        result += buckets if n < 0 else 0
        n = abs(n)
    else:
        n = max(n, 0)
    exact = buckets // 2
    if n < exact:
        return result + n
    return result + min(
        buckets - 1, exact + int(math.log(n / exact) / math.log(max_distance / exact) * (buckets - exact))
    )


@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5_buckets(bidirectional: bool) -> None:
    # Distances at which the logarithm is a whole number are left out: there rounding decides.
    relative = [d for d in range(-300, 301) if abs(d) not in (8, 16, 32, 64, 128)]
    found = t5_bucket(torch.tensor(relative), bidirectional, 32, 128).tolist()
    assert found == [_t5_bucket_by_hand(d, bidirectional, 32, 128) for d in relative]


def _mods() -> list[ScoreMod]:
    bias = torch.randn(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    return [
        Alibi(alibi_slopes(3).double().requires_grad_()),
        BucketBias(torch.randn(8, 3, dtype=torch.float64, requires_grad=True), False, 16),
        BucketBias(torch.randn(8, 3, dtype=torch.float64, requires_grad=True), True, 16),
        GridBias(torch.randn(15, 3, dtype=torch.float64, requires_grad=True), 3, (2, 3)),
        DenseBias(bias),
        DenseBias(bias[0, 0]),
        DenseBias(bias[:, 0], per="batch"),
        DenseBias(torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True), per="head"),
        SoftCap(2.0),
    ]


@pytest.mark.parametrize("mod", _mods(), ids=lambda mod: type(mod).__name__)
@pytest.mark.parametrize("ragged", [False, True])
def test_apply_additive_and_score_mod_agree(mod: ScoreMod, ragged: bool) -> None:
    q_pos, k_pos = torch.arange(5) + 2, torch.arange(6)
    if ragged:
        q_pos, k_pos = torch.stack([q_pos, q_pos + 3]), torch.stack([k_pos, k_pos.flip(0)])
    mod.check(2, 3, 5, 6)
    scores = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    applied = mod.apply(scores, q_pos, k_pos)
    assert applied.shape == scores.shape
    points = torch.meshgrid(*(torch.arange(n) for n in scores.shape), indexing="ij")
    function = mod.score_mod(q_pos, k_pos)
    assert function is not None
    torch.testing.assert_close(function(scores, *points), applied)
    bias = mod.additive(q_pos, k_pos, torch.float64)
    assert (bias is None) == (not mod.is_additive)
    if bias is not None:
        torch.testing.assert_close(scores + bias, applied)
        held = [value for value in vars(mod).values() if isinstance(value, Tensor)]
        grads = torch.autograd.grad(bias.sum(), held)
        assert all(torch.isfinite(grad).all() for grad in grads)


def test_alibi_and_cap_by_hand() -> None:
    scores = torch.zeros(1, 2, 1, 3)
    found = Alibi(torch.tensor([0.5, 0.25])).apply(scores, torch.tensor([1]), torch.arange(3))
    assert found[0, :, 0].tolist() == [[-0.5, 0.0, -0.5], [-0.25, 0.0, -0.25]]
    capped = SoftCap(3.0).apply(torch.tensor([[[[100.0, -100.0, 0.0]]]]), torch.tensor([0]), torch.arange(3))
    assert capped.flatten().tolist() == [3.0, -3.0, 0.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: SoftCap(0.0),
        lambda: DenseBias(torch.ones(2, 2, dtype=torch.bool)),
        lambda: DenseBias(torch.ones(2, 2, 2)),
        lambda: DenseBias(torch.ones(2, 2), per="head"),
        lambda: DenseBias(torch.ones(2, 1)).check(1, 1, 2, 2),
        lambda: Alibi(torch.ones(3)).check(1, 4, 2, 2),
        lambda: BucketBias(torch.ones(8, 3), True).check(1, 4, 2, 2),
        lambda: GridBias(torch.ones(9, 3), 4, (2, 2)).check(1, 4, 4, 4),
        lambda: GridBias(torch.ones(8, 4), 4, (2, 2)).check(1, 4, 4, 4),
        lambda: BucketBias(torch.ones(2, 4), True).check(1, 4, 2, 2),
    ],
)
def test_wrong_arguments_are_refused(make: object) -> None:
    with pytest.raises((ShapeError, ConfigError)):
        make()  # type: ignore[operator]
