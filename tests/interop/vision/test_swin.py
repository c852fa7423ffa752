"""A layer of the library with a Swin block's weights, against timm's own block."""

from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

import variform as vf
from variform.interop.timm import swin_layer


def block_of(grid: int = 14, shift: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"dim": 24, "num_heads": 3, "window_size": 7}
    block = SwinTransformerBlock(**{**sizes, **options}, input_resolution=(grid, grid), shift_size=shift)
    with torch.no_grad():  # the table starts so near to zero that leaving it out would hardly be seen
        block.attn.relative_position_bias_table.normal_()
    return block.eval()


def image(grid: int) -> Tensor:
    return torch.randn(2, grid, grid, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False, "head_dim": 5, "mlp_ratio": 1.5}], ids=["plain", "other"])
@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("grid", [7, 14, 28])
def test_values_and_gradients_are_timms(grid: int, shift: int, options: dict[str, Any]) -> None:
    block = block_of(grid, shift, **options)
    layer = swin_layer(block)
    x, y = image(grid), image(grid)
    wanted = block(x)
    got = layer(y.flatten(1, 2), {}).view_as(wanted)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2)) / wanted[0].numel()
    (wanted * weights).sum().backward()
    (got * weights).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=0, atol=1e-5)
    names = {name: p.grad for name, p in layer.named_parameters()}
    mixer, feedforward = "sublayers.0.body", "sublayers.1.body"
    for kind in ("weight", "bias") if block.attn.qkv.bias is not None else ("weight",):
        joined = torch.cat([names.pop(f"{mixer}.{part}.{kind}") for part in "qkv"])
        torch.testing.assert_close(joined, getattr(block.attn.qkv, kind).grad, rtol=1e-4, atol=1e-5)
    others = {
        "sublayers.0.norm": block.norm1,
        "sublayers.1.norm": block.norm2,
        f"{mixer}.out": block.attn.proj,
        f"{feedforward}.up": block.mlp.fc1,
        f"{feedforward}.down": block.mlp.fc2,
    }
    for path, module in others.items():
        for kind in ("weight", "bias"):
            torch.testing.assert_close(names.pop(f"{path}.{kind}"), getattr(module, kind).grad, rtol=1e-4, atol=1e-5)
    table = names.pop(f"{mixer}.position_bias.table")
    torch.testing.assert_close(table, block.attn.relative_position_bias_table.grad, rtol=1e-4, atol=1e-5)
    assert not names


@pytest.mark.parametrize("shift", [0, 3])
def test_it_runs_window_by_window(shift: int) -> None:
    layer = swin_layer(block_of(28, shift))
    (row,) = vf.explain(layer.spec, batch=2, length=28 * 28, dim=24, heads=3).rows
    assert row.chosen == "windows"
    assert "16 windows of 49 tokens: 6.25% of the pairs" in row.candidates[0].why


def test_the_shift_and_the_table_count() -> None:
    x = image(14)
    wanted = swin_layer(block_of(14, 3))(x.flatten(1, 2), {})
    assert not torch.allclose(swin_layer(block_of(14, 0))(x.flatten(1, 2), {}), wanted, atol=1e-2)
    layer: Any = swin_layer(block_of(14, 3))
    with torch.no_grad():
        layer.sublayers[0].body.position_bias.table.zero_()
    assert not torch.allclose(layer(x.flatten(1, 2), {}), wanted, atol=1e-2)


def test_rates_are_taken_over() -> None:
    layer: Any = swin_layer(block_of(attn_drop=0.1, proj_drop=0.2, drop_path=0.3).train())
    attention, mlp = layer.sublayers
    assert layer.training
    assert attention.body.attention.dropout == pytest.approx(0.1)
    assert (attention.dropout, mlp.dropout, mlp.body.dropout) == pytest.approx((0.2, 0.2, 0.2))
    assert (attention.drop_path, mlp.drop_path) == pytest.approx((0.3, 0.3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window_size": (7, 2)}, "no squares"),
        ({"grid": 10}, "fills its grid"),
        ({"act_layer": nn.ReLU}, "not an exact GELU"),
        ({"norm_layer": nn.BatchNorm1d}, "not a LayerNorm"),
    ],
)
def test_blocks_that_no_layer_equals_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(vf.ConfigError, match=words):
        swin_layer(block_of(**options))
