import torch

from variform.parts.residual.gated_multi import GatedMultiResidual
from variform.testing.case import perturb


def test_equals_the_formula() -> None:
    torch.manual_seed(0)
    streams, dim = 3, 5
    part = GatedMultiResidual(rank=2, dim=dim, residual_streams=streams, input_views=3).double()
    perturb(part, 0.5)
    x = torch.randn(2, 4, streams, dim, dtype=torch.float64)
    branch = torch.randn(2, 4, dim, dtype=torch.float64)
    views, kept, gains = part.open(x)
    expected = torch.empty_like(x)
    for b in range(2):
        for t in range(4):
            normed = part.gain * x[b, t] / x[b, t].square().mean(-1, keepdim=True).sqrt()
            hidden = part.down.weight @ normed.flatten() / streams
            hidden = part.scale * hidden * hidden.sigmoid()
            gates = (part.reading_map.weight @ hidden).view(3, streams, dim) + part.reading
            for view in range(3):
                read = sum(gates[view, s].sigmoid() * normed[s] for s in range(streams)) / streams
                torch.testing.assert_close(views[view][b, t], read)
            write = 2 * (part.writing + part.writing_map.weight @ hidden).sigmoid()
            expected[b, t] = x[b, t] + write.unsqueeze(-1) * branch[b, t]
    torch.testing.assert_close(part(kept, branch, gains=gains), expected)
    torch.testing.assert_close(part(x, branch), expected)


def test_streams_are_written_with_one_in_the_beginning() -> None:
    part = GatedMultiResidual(rank=2, dim=5, residual_streams=3, home=4)
    x, branch = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 5)
    torch.testing.assert_close(part(x, branch), x + branch.unsqueeze(2))
    assert part.reading[0, 1].sum() == 5
