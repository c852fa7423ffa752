import pytest
import torch

import variform as vf
from variform.parts.position.absolute import LearnedPosition
from variform.parts.position.bias import AlibiBias, T5Bias


def test_learned_positions_with_a_factor() -> None:
    position = LearnedPosition(dim=4, max_seq_len=9, scale=0.5).double()
    like = torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(position(None, 5, like), position.weight[:5] * 0.5)
    places = torch.tensor([[3, 1], [8, 8]])
    torch.testing.assert_close(position(places, 2, like), position.weight[places] * 0.5)


def test_a_relative_bias_with_a_factor() -> None:
    plain, scaled = T5Bias(heads=2, causal=True).double(), T5Bias(heads=2, causal=True, scale=3.0).double()
    scaled.table.data = plain.table.data
    q, k = torch.arange(6), torch.arange(6)
    bias, more = (part().additive(q, k, torch.float64) for part in (plain, scaled))
    assert bias is not None
    torch.testing.assert_close(more, 3 * bias)


def test_given_slopes() -> None:
    bias = vf.build(AlibiBias.spec(heads=3, slopes=[0.5, 0.0, 0.25]))
    found = bias().additive(torch.tensor([4]), torch.tensor([1]), torch.float32)
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.5, 0.0, -0.75]))
    again = vf.materialise(vf.build(AlibiBias.spec(heads=3, slopes=[0.5, 0.0, 0.25]), device="meta"), "cpu")
    assert torch.equal(again.slopes, bias.slopes)


def test_one_slope_a_head() -> None:
    with pytest.raises(vf.ConfigError, match="one slope for each of the 3 heads"):
        vf.build(AlibiBias.spec(heads=3, slopes=[0.5]))
