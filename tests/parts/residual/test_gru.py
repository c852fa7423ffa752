import torch
from torch import nn

from variform.parts.residual.gru import GRUResidual


def test_is_torchs_cell() -> None:
    torch.manual_seed(0)
    part, cell = GRUResidual(dim=6, scaled=True).double(), nn.GRUCell(6, 6).double()
    assert part.scale is not None
    part.scale.data.uniform_(0.5, 2.0)
    for mine, name in ((part.of_branch, "ih"), (part.of_stream, "hh")):
        getattr(cell, f"weight_{name}").data.copy_(mine.weight)
        getattr(cell, f"bias_{name}").data.copy_(mine.bias)
    x, branch = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    expected = cell(branch.flatten(0, 1), (x * part.scale).flatten(0, 1)).view_as(x)
    torch.testing.assert_close(part(x, branch), expected)
