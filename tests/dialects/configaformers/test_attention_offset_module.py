import math

import pytest
import torch

from variform.dialects.configaformers.attention_offset_module import get_alibi
from variform.errors import ConfigError

LOWEST = torch.finfo(torch.float32).min


def slopes(heads: int) -> list[float]:
    """The paper's rule: a geometric series for powers of two, every other one of the next power for the rest."""

    def series(n: int) -> list[float]:
        return [2 ** (-8 * (i + 1) / n) for i in range(n)]

    below = 2 ** math.floor(math.log2(heads))
    return series(below) + series(2 * below)[::2][: heads - below]


@pytest.mark.parametrize("heads", [1, 2, 8, 12, 5])
@pytest.mark.parametrize("mask", ["causal", None])
def test_values(heads: int, mask: str | None) -> None:
    length = 9
    offset = get_alibi(heads, max_length=length, mask=mask)
    assert offset.shape == (1, heads, length, length)
    assert offset.dtype == torch.float32
    for h, slope in enumerate(slopes(heads)):
        for i in range(length):
            for j in range(length):
                value = LOWEST if mask and j > i else -abs(i - j)
                assert offset[0, h, i, j].item() == pytest.approx(slope * value, rel=1e-6)


def test_default_length_is_2048_and_quick() -> None:
    assert get_alibi(num_heads=1).shape == (1, 1, 2048, 2048)


def test_other_slopes_stay_finite_and_mask() -> None:
    offset = get_alibi(3, max_length=4, slopes=[3.0, 0.0, -1.0])
    assert offset.isfinite().all()
    assert (offset[0, :, 0, 1:] < -1e30).all()
    assert offset[0, 0, 3, 0] == -9.0
    assert offset[0, 2, 3, 0] == 3.0


def test_half_precision_masks_every_head_after_a_cast() -> None:
    offset = get_alibi(12, max_length=4, mask_precision="half").half()
    assert offset.isfinite().all()
    scores = torch.full((1, 12, 4, 4), -300.0).half()
    weights = (scores + offset).float().softmax(-1)
    assert (weights.triu(1) == 0).all()


def test_wrong_arguments_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        get_alibi(0, slopes=[1.0], mask="casual", mask_precision="hlaf")  # type: ignore[arg-type]
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "did you mean 'causal'" in text
    assert "did you mean 'half'" in text
    assert isinstance(caught.value, AssertionError)
