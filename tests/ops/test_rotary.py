import math

import pytest
import torch
from torch import Tensor

from variform.errors import ConfigError, ShapeError
from variform.ops.rotary import apply_rotary, rotary_frequencies, rotary_tables


def _by_hand(x: Tensor, positions: Tensor, dim: int, interleaved: bool, base: float = 10000.0) -> Tensor:
    """One pair at a time, in float64."""
    out = x.double().clone()
    positions = positions.expand(x.shape[0], -1)
    for pair in range(dim // 2):
        i, j = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + dim // 2)
        angle = (positions.double() * base ** (-2 * pair / dim))[:, None]
        a, b = x[..., i].double(), x[..., j].double()
        out[..., i] = a * angle.cos() - b * angle.sin()
        out[..., j] = b * angle.cos() + a * angle.sin()
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [16, 6])
@pytest.mark.parametrize(
    "positions", [None, torch.tensor([4, 0, 90, 7, 7]), torch.tensor([[0, 1, 2, 3, 4], [9, 3, 5, 7, 80]])]
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_values_and_gradients(
    interleaved: bool, dim: int, positions: Tensor | None, dtype: torch.dtype, tolerance: float
) -> None:
    x = torch.randn(2, 3, 5, 16).to(dtype).requires_grad_()
    cos, sin = rotary_tables(100, dim, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    out = apply_rotary(x, cos, sin, positions, interleaved=interleaved)
    assert out.dtype == dtype
    used = torch.arange(5) if positions is None else positions
    wanted = _by_hand(x.detach(), used, dim, interleaved)
    torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance)
    # The map is a rotation, so its gradient is the turn back.
    upstream = torch.randn(out.shape).to(dtype)
    (grad,) = torch.autograd.grad(out, x, upstream)
    torch.testing.assert_close(
        grad.double(), _by_hand(upstream, -used, dim, interleaved), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_distance_alone(interleaved: bool) -> None:
    cos, sin = rotary_tables(64, 8, dtype=torch.float64)
    q, k = torch.randn(1, 1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 1, 8, dtype=torch.float64)

    def score(i: int, j: int) -> float:
        turned = [apply_rotary(t, cos, sin, torch.tensor([p]), interleaved=interleaved) for t, p in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum().item()

    assert score(5, 2) == pytest.approx(score(60, 57), abs=1e-12)


@pytest.mark.parametrize("interleaved", [False, True])
def test_compiled_equals_eager(interleaved: bool) -> None:
    cos, sin = rotary_tables(16, 6)
    x = torch.randn(2, 2, 9, 8)
    torch._dynamo.reset()
    compiled = torch.compile(apply_rotary, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(x, cos, sin, interleaved=interleaved), apply_rotary(x, cos, sin, interleaved=interleaved)
    )


def test_context_scaling() -> None:
    cos, _ = rotary_tables(9, 8, interpolation=4.0)
    torch.testing.assert_close(cos[8], rotary_tables(9, 8)[0][2])
    frequencies, wider = rotary_frequencies(8), rotary_frequencies(8, ntk=4.0)
    assert wider[0] == 1.0
    assert wider[-1] == pytest.approx(frequencies[-1] / 4.0)
    assert math.log(wider[1] / frequencies[1]) == pytest.approx(-2 / 8 * math.log(4.0 ** (8 / 6)))


def test_far_positions_keep_their_angle() -> None:
    cos, _ = rotary_tables(100_001, 4)
    assert cos[100_000, 0].item() == pytest.approx(math.cos(100_000), abs=1e-6)


def test_wrong_arguments_are_refused() -> None:
    for arguments in ({"dim": 5}, {"dim": 2, "ntk": 2.0}, {"dim": 8, "ntk": -1.0}):
        with pytest.raises(ConfigError):
            rotary_frequencies(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        rotary_tables(4, 8, interpolation=0.0)
    cos, sin = rotary_tables(4, 8)
    with pytest.raises(ShapeError, match="tables hold 4"):
        apply_rotary(torch.randn(1, 1, 5, 8), cos, sin)
    with pytest.raises(ShapeError, match="there are 6"):
        apply_rotary(torch.randn(1, 1, 4, 6), cos, sin)
