import pytest
import torch

import variform as vf
from variform.parts.position.absolute import LearnedPosition, ScaledSinusoidalPosition


def test_sines_then_cosines_times_a_learned_factor() -> None:
    part = vf.build(ScaledSinusoidalPosition.spec(base=100.0), dim=6).double()
    assert part.factor.item() == pytest.approx(6**-0.5)
    like = torch.zeros(2, 5, 6, dtype=torch.float64)
    frequencies = torch.tensor([100.0 ** (-i / 3) for i in range(3)], dtype=torch.float64)
    angles = torch.arange(5, dtype=torch.float64).unsqueeze(1) * frequencies
    expected = torch.cat((angles.sin(), angles.cos()), -1) * part.factor
    torch.testing.assert_close(part(None, 5, like), expected)
    torch.testing.assert_close(part(torch.tensor([[4, 0], [2, 3]]), 2, like), expected[torch.tensor([[4, 0], [2, 3]])])
    part(None, 5, like).sum().backward()
    torch.testing.assert_close(part.factor.grad, (expected / part.factor).sum().detach().view(1))


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(vf.ConfigError, match="come in pairs"):
        vf.build(ScaledSinusoidalPosition.spec(), dim=5)


def test_learned_vectors_of_length_one() -> None:
    part = vf.build(LearnedPosition.spec(unit=True, scale=2.0, std=1e-5), dim=6, max_seq_len=5).double()
    code = part(None, 4, torch.zeros(1, 4, 6, dtype=torch.float64))
    torch.testing.assert_close(code.norm(dim=-1), torch.full((4,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(code, 2 * part.weight[:4] / part.weight[:4].norm(dim=-1, keepdim=True))
