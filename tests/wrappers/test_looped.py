"""The loss of loops: chances that sum to one, weighted losses, a gate that learns what passes gain."""

import math

import torch

from variform.wrappers.looped import exit_chances, loss_of_passes


def test_chances_are_those_of_leaving_one_after_another() -> None:
    gates = torch.randn(2, 4, 3, dtype=torch.float64)
    chances = exit_chances(gates)
    torch.testing.assert_close(chances.sum(1), torch.ones(2, 3, dtype=torch.float64))
    leave = gates[1, :, 2].sigmoid().tolist()
    expected = [leave[0], (1 - leave[0]) * leave[1], (1 - leave[0]) * (1 - leave[1]) * leave[2]]
    torch.testing.assert_close(chances[1, :3, 2], torch.tensor(expected, dtype=torch.float64))


def plainly(losses: torch.Tensor, gates: torch.Tensor, counted: torch.Tensor) -> float:
    chances, total, gate, count = exit_chances(gates), 0.0, 0.0, 0
    for row, place in counted.nonzero().tolist():
        count += 1
        own, logits = losses[row, :, place].tolist(), gates[row, :, place].tolist()
        total += sum(loss * float(p) for loss, p in zip(own, chances[row, :, place], strict=True))
        for now, after, logit in zip(own, own[1:], logits, strict=False):
            wanted = 1 / (1 + math.exp(-7.0 * (after - now + 0.2)))
            p = 1 / (1 + math.exp(-logit))
            gate -= wanted * math.log(p) + (1 - wanted) * math.log(1 - p)
    passes = losses.shape[1]
    return total / (count * passes) + 0.3 * gate / (count * (passes - 1))


def test_the_formula_and_what_it_trains() -> None:
    losses = torch.rand(2, 3, 5, dtype=torch.float64).requires_grad_()
    gates = torch.randn(2, 3, 5, dtype=torch.float64).requires_grad_()
    counted = torch.rand(2, 5) < 0.6
    counted[0, 0] = True
    loss = loss_of_passes(losses, gates, counted, threshold=0.2, slope=7.0, exit_weight=0.3)
    assert abs(float(loss.detach()) - plainly(losses.detach(), gates.detach(), counted)) < 1e-12
    of_losses, of_gates = torch.autograd.grad(loss, (losses, gates))
    chances = exit_chances(gates.detach()) * counted.unsqueeze(1)
    torch.testing.assert_close(of_losses, chances / (counted.sum() * 3))  # the gate's targets are constants
    assert of_gates[:, -1].abs().max() == 0  # after the last pass there is nothing to decide
    assert of_gates[:, 0][counted].abs().min() > 0


def test_nothing_that_counts_gives_zero() -> None:
    found = loss_of_passes(torch.rand(1, 2, 3), torch.randn(1, 2, 3), torch.zeros(1, 3, dtype=torch.bool))
    assert found == 0
