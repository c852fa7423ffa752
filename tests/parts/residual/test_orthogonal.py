import torch

from variform.parts.residual.orthogonal import OrthogonalResidual


def test_what_is_added_is_orthogonal_to_the_stream_for_each_token() -> None:
    torch.manual_seed(0)
    part = OrthogonalResidual(dim=6)
    x, branch = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    added = part(x, branch) - x
    torch.testing.assert_close((added * x).sum(-1), torch.zeros(2, 5, dtype=torch.float64), atol=1e-12, rtol=0)
    rest = branch - added
    torch.testing.assert_close(rest, (branch * x).sum(-1, keepdim=True) / (x * x).sum(-1, keepdim=True) * x)


def test_tokens_do_not_see_one_another() -> None:
    part = OrthogonalResidual(dim=6, scaled=True)
    x, branch = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    before = part(x, branch)
    x[:, 3:], branch[:, 3:] = 7.0, -2.0
    assert torch.equal(part(x, branch)[:, :3], before[:, :3])


def test_a_stream_of_zeros_takes_the_branch_whole() -> None:
    x = torch.zeros(1, 2, 6, requires_grad=True)
    branch = torch.randn(1, 2, 6, requires_grad=True)
    y = OrthogonalResidual(dim=6)(x, branch)
    torch.testing.assert_close(y, branch)
    y.sum().backward()
    for tensor in (x, branch):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_half_precision_is_projected_in_float32() -> None:
    torch.manual_seed(0)
    x, branch = (100 * torch.randn(1, 3, 64)).bfloat16(), torch.randn(1, 3, 64).bfloat16()
    part = OrthogonalResidual(dim=64)
    exact = part(x.double(), branch.double())
    torch.testing.assert_close(part(x, branch).double(), exact, rtol=2**-8, atol=0)
