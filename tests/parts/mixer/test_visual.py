"""The mixer `visual` and the feedforward `conv2d`: sums over neighbours on a grid."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import variform as vf
from variform.errors import ConfigError, ShapeError
from variform.parts.activation import ACTIVATIONS
from variform.parts.feedforward.conv2d import Conv2D
from variform.parts.mixer.visual import Visual

GRIDS = [None, (3, 4)]


def near(x: Tensor, conv: nn.Conv2d, dilation: int = 1) -> Tensor:
    """A depthwise convolution of [B, H, W, C], token by token."""
    reach = conv.kernel_size[0] // 2
    assert conv.bias is not None
    out = conv.bias.expand_as(x).clone()
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            for down in range(-reach, reach + 1):
                for right in range(-reach, reach + 1):
                    r, c = row + down * dilation, column + right * dilation
                    if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
                        out[:, row, column] += x[:, r, c] * conv.weight[:, 0, reach + down, reach + right]
    return out


def each(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return F.linear(x, conv.weight[:, :, 0, 0], conv.bias)


def agree(part: nn.Module, x: Tensor, wanted: Tensor) -> None:
    leaves = [x, *part.parameters()]
    torch.testing.assert_close(part(x, {}), wanted, rtol=0, atol=1e-12)
    weights = torch.randn_like(wanted)
    found = torch.autograd.grad((part(x, {}) * weights).sum(), leaves)
    for got, gradient in zip(found, torch.autograd.grad((wanted * weights).sum(), leaves), strict=True):
        torch.testing.assert_close(got, gradient, rtol=0, atol=1e-11)


@pytest.mark.parametrize("grid", GRIDS)
def test_visual_equals_sums_over_neighbours(grid: tuple[int, int] | None) -> None:
    mixer = vf.build(Visual.spec(grid=grid), dim=2).double()
    shape = grid or (4, 4)
    x = torch.randn(2, shape[0] * shape[1], 2, dtype=torch.float64, requires_grad=True)
    first, _, kernel, last = mixer.block
    u = F.gelu(each(x.unflatten(1, shape), first))
    weights = each(near(near(u, kernel.conv0), kernel.conv_spatial, 3), kernel.conv1)
    agree(mixer, x, x + each(u * weights, last).flatten(1, 2))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_conv2d_equals_sums_over_neighbours(grid: tuple[int, int] | None, activation: str) -> None:
    part = vf.build(Conv2D.spec(grid=grid, hidden=5, activation=activation), dim=2).double()
    shape = grid or (3, 3)
    x = torch.randn(2, shape[0] * shape[1], 2, dtype=torch.float64, requires_grad=True)
    inner = ACTIVATIONS[activation](near(each(x.unflatten(1, shape), part.up), part.near))
    agree(part, x, each(inner, part.down).flatten(1, 2))


@pytest.mark.parametrize("spec", [Visual.spec(dropout=0.5), Conv2D.spec(dropout=0.5, mult=2)])
def test_dropout_and_lengths(spec: vf.Spec) -> None:
    part, x = vf.build(spec, dim=4), torch.randn(1, 16, 4)
    assert bool((part(x, {}) == 0).any())
    assert not bool((part.eval()(x, {}) == 0).any())
    with pytest.raises(ShapeError, match="the nearest are 4 and 9"):
        part(x[:, :8], {})
    with pytest.raises(ShapeError, match="cannot honour the stream 'valid'"):
        part(x, {"valid": torch.ones(1, 16, dtype=torch.bool)})


def test_the_width_of_conv2d_and_its_place_in_causal_models() -> None:
    assert vf.build(Conv2D.spec(mult=2), dim=4).up.out_channels == 8
    with pytest.raises(ConfigError, match="leaves no inner feature"):
        vf.build(Conv2D.spec(mult=0.1), dim=4)
    decoder = vf.models.gpt(vocab_size=11, max_seq_len=8, dim=8, depth=1, heads=2)
    with pytest.raises(ConfigError, match="'conv2d' has no causal form"):
        vf.build(vf.override(decoder, {"stacks.0.layers.0.sublayers.1.body": Conv2D.spec()}))
