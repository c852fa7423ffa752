import torch

import variform as vf
from variform.parts.feedforward.mlp import GLU
from variform.parts.gate.branches import Branches
from variform.parts.nonlinearity.clamps import SoftClamp, SoftClamped


def test_a_bounded_unit_is_its_formula() -> None:
    before = Branches.spec(gate=SoftClamped.spec(value=0.7), up=SoftClamp.spec(value=0.5), gain=True)
    part = vf.build(GLU.spec(dim=4, hidden=6, before=before, activation="none")).double()
    with torch.no_grad():
        part.before.gain.normal_()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    g, u = part.gate(x), part.up(x)
    inner = part.before.gain * 0.7 * torch.tanh(g / 0.7) * torch.sigmoid(g) * 0.5 * torch.tanh(u / 0.5)
    torch.testing.assert_close(part(x, {}), part.down(inner))


def test_nothing_is_changed_by_default() -> None:
    gate, up = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for part in (Branches(4), Branches(4, gain=True)):
        assert all(torch.equal(a, b) for a, b in zip(part(gate, up), (gate, up), strict=True))
