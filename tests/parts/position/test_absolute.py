"""Positions that are added, against their formulas."""

import math

import pytest
import torch

import variform as vf
from variform.parts.position.absolute import LearnedPosition, SinusoidalPosition

LIKE = torch.zeros((), dtype=torch.float64)


def test_sinusoidal_is_its_formula() -> None:
    part = SinusoidalPosition(dim=6, base=100.0, scale=0.5)
    places = torch.tensor([[0, 3, 250], [7, 7, 1]])
    code = part(places, 3, LIKE)
    assert code.shape == (2, 3, 6)
    for row in range(2):
        for step in range(3):
            for pair in range(3):
                angle = int(places[row, step]) / 100.0 ** (2 * pair / 6)
                assert code[row, step, 2 * pair].item() == pytest.approx(0.5 * math.sin(angle), abs=1e-12)
                assert code[row, step, 2 * pair + 1].item() == pytest.approx(0.5 * math.cos(angle), abs=1e-12)


@pytest.mark.parametrize("part", [SinusoidalPosition(dim=6), LearnedPosition(dim=6, max_seq_len=20)])
def test_none_means_counting_from_zero(part: vf.Part) -> None:
    assert torch.equal(part(None, 7, torch.zeros(())), part(torch.arange(7), 7, torch.zeros(())))
    assert part(torch.arange(7).expand(3, 7), 7, torch.zeros(())).shape == (3, 7, 6)


def test_a_narrow_model_gets_exact_angles_at_large_positions() -> None:
    """Positions in bfloat16 are whole numbers up to 256 only; the code is computed wide and rounded once."""
    part = SinusoidalPosition(dim=8)
    places = torch.tensor([1001, 1002, 4095])
    narrow = part(places, 3, torch.zeros((), dtype=torch.bfloat16))
    assert narrow.dtype == torch.bfloat16
    assert (narrow.double() - part(places, 3, LIKE)).abs().max() < 4e-3


def test_learned_looks_up() -> None:
    part = LearnedPosition(dim=4, max_seq_len=5).double()
    assert torch.equal(part(torch.tensor([[4, 0], [2, 2]]), 2, LIKE), part.weight[torch.tensor([[4, 0], [2, 2]])])
    assert part(None, 3, torch.zeros((), dtype=torch.bfloat16)).dtype == torch.bfloat16
