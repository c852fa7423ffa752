"""Masked diffusion: shares of masks, the bound against its definition, filling in."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.wrappers import MaskedDiffusion
from variform.wrappers.masked import cosine, diffusion_loss, draw_masks, fill_in, likeliest, linear, slope, subset

V, L = 7, 6


def model(causal: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    net: torch.nn.Module = vf.build(
        vf.models.gpt(vocab_size=V, dim=16, depth=1, heads=2, max_seq_len=L).replace(causal=causal)
    )
    return net


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_as_many_are_masked_as_the_schedule_says(schedule: Any) -> None:
    ids = torch.zeros(200, L, dtype=torch.long)
    times, mask = draw_masks(ids, schedule)
    torch.testing.assert_close(mask.sum(1), (schedule(times) * L).clamp(min=1).ceil().long())
    valid = torch.arange(L) < torch.randint(1, L + 1, (200, 1))
    times, mask = draw_masks(ids, schedule, valid)
    assert not (mask & ~valid).any()
    torch.testing.assert_close(mask.sum(1), (schedule(times) * valid.sum(1)).clamp(min=1).ceil().long())
    assert mask.float().mean(0)[0] > 0.3  # any place may be masked


def test_a_subset_is_a_share_of_each_row() -> None:
    mask = torch.rand(50, 20) < 0.5
    part = subset(mask, 0.25)
    assert not (part & ~mask).any()
    torch.testing.assert_close(part.sum(1), (mask.sum(1) * 0.25).ceil().long())


def test_slopes() -> None:
    times = torch.tensor([0.2, 0.7])
    torch.testing.assert_close(slope(linear, times), torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(slope(cosine, times), -torch.pi / 2 * torch.sin(times * torch.pi / 2))


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_the_loss_is_the_expected_cost_of_reading_in_any_order(schedule: Any) -> None:
    """A model that knows a token with a certainty that depends on how much is masked: the bound is known exactly."""
    ids = torch.zeros(40_000, L, dtype=torch.long)
    times, mask = draw_masks(ids, schedule)
    count = mask.sum(1)
    logits = torch.zeros(len(ids), L, V, dtype=torch.float64)
    logits[..., 0] = (-0.4 * count.double()).unsqueeze(1)  # the more is masked, the less it knows
    each = -torch.zeros(L, V, dtype=torch.float64)
    each[:, 0] = -0.4 * torch.arange(1, L + 1)
    wanted = -each.log_softmax(-1)[:, 0].mean()  # the i-th last token is read with i masked ones
    torch.testing.assert_close(diffusion_loss(logits, ids, mask, times, schedule), wanted, rtol=0, atol=0.02)


def test_training_learns_and_fills_in() -> None:
    objective = MaskedDiffusion(model(), mask_id=V - 1, steps=6)
    torch.manual_seed(0)
    ids = torch.randint(0, 6, (64, 1)).expand(-1, L)  # each token says what the others are
    optimiser = torch.optim.Adam(objective.parameters(), lr=1e-2)
    first = objective(ids).item()
    for _ in range(80):
        optimiser.zero_grad()
        loss = objective(ids)
        loss.backward()
        optimiser.step()
    assert first > 1.5
    assert loss.item() < 0.7  # at best log 6 / 6 = 0.3: one token is unknown, five follow
    made = objective.generate(30, L)
    assert made.shape == (30, L)
    assert int(made.max()) < V - 1
    right = (made[:, 1:] == made[:, :-1]).float().mean()
    assert float(right) > 0.8
    assert objective.training


def test_the_surest_are_filled_in_first_and_stay() -> None:
    seen: list[Tensor] = []

    def predict(ids: Tensor) -> Tensor:
        seen.append(ids.clone())
        logits = torch.zeros(*ids.shape, V)
        logits[..., 2] = torch.arange(L) * 3.0  # the further on, the surer
        return logits

    out = fill_in(predict, torch.full((2, L), V - 1), V - 1, 2, linear, temperature=0.0)
    hidden = [(ids == V - 1)[0].tolist() for ids in seen]
    assert hidden == [[True] * 6, [True] * 3 + [False] * 3]
    assert (out != V - 1).all()


def test_the_least_likely_are_never_drawn() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 0.0])
    assert likeliest(logits, 0.5).isfinite().tolist() == [False, True, True, False]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(vf.ConfigError, match="causal=False"):
        MaskedDiffusion(model(causal=True), 0)
    with pytest.raises(vf.ConfigError, match="one of the 7 tokens"):
        MaskedDiffusion(model(), V)
    with pytest.raises(vf.ConfigError, match="linear, cosine"):
        MaskedDiffusion(model(), 0, "linaer")  # type: ignore[arg-type]
    with pytest.raises(vf.ConfigError, match="positive"):
        MaskedDiffusion(model(), 0, steps=0)
