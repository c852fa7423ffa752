from typing import Any

import pytest
import torch

import variform as vf
from variform.dialects.x_transformers import Decoder, TransformerWrapper

LAYERS: dict[str, Any] = {"dim": 16, "depth": 3, "heads": 2, "attn_dim_head": 8}


@pytest.mark.parametrize("more", [{}, {"macaron": True, "gate_residual": True}, {"cross_attend": True}])
def test_branches_begin_as_nothing(more: dict[str, Any]) -> None:
    stack = Decoder(**LAYERS, zero_init_branch_output=True, **more)
    last = [m for name, m in stack.named_modules() if name.endswith(("body.out", "body.down")) or name[-5:] == ".down"]
    assert len(last) >= 6
    assert not any(m.weight.any() for m in last)


def test_one_kind_of_branch_begins_as_nothing() -> None:
    stack = Decoder(**LAYERS, attn_zero_init_output=True)
    sizes = {n: bool(m.weight.any()) for n, m in stack.named_modules() if n.endswith((".out", ".down"))}
    assert sizes
    assert all(begins == name.endswith(".down") for name, begins in sizes.items())


def test_branches_begin_the_smaller_the_deeper_they_stand() -> None:
    torch.manual_seed(0)
    stack = Decoder(dim=64, depth=3, heads=4, attn_dim_head=16, depth_scale_residual=True)
    for name, module in stack.named_modules():
        if name.endswith((".out", ".down")):
            block = int(name.split(".layers.")[1].split(".")[0]) + 1
            wanted = (2 * module.in_features * block) ** -0.5
            assert float(module.weight.detach().std()) == pytest.approx(wanted, rel=0.05)


def test_layers_are_dropped_by_torchs_numbers() -> None:
    torch.manual_seed(0)
    model = TransformerWrapper(
        num_tokens=20, max_seq_len=8, attn_layers=Decoder(**{**LAYERS, "depth": 2}, layer_dropout=(0.0, 0.9, 0.5, 0.0))
    ).train()
    ids, runs = torch.tensor([[1, 2, 3]]), []
    for seed in (0, 0, 1, 2, 3, 4):
        torch.manual_seed(seed)
        runs.append(model(ids))
    assert torch.equal(runs[0], runs[1])
    assert any(not torch.equal(runs[0], other) for other in runs[2:])


def test_several_streams_are_described() -> None:
    model = TransformerWrapper(
        num_tokens=20, max_seq_len=8, attn_layers=Decoder(**LAYERS, num_residual_streams=3, softclamp_output=True)
    )
    told = vf.describe(model.native.spec, batch=2, length=5)
    assert told.params == sum(p.numel() for p in model.parameters())
    assert "(B, L, 3, 16)" in str(told)
    assert "residual hyper_connection" in str(told)
    assert len(vf.explain(model.native, batch=2, length=5).rows) == 3


def test_executors() -> None:
    """Recomputed layers have the same gradients; reversible ones are refused with a reason."""
    stack = Decoder(**LAYERS, num_residual_streams=2, qkv_receive_diff_residuals=True).spec
    x, found = torch.randn(2, 5, 16, dtype=torch.float64), []
    for executor in ("plain", "checkpoint"):
        torch.manual_seed(0)
        built = vf.build(stack.replace(stack=stack["stack"].replace(executor=executor))).double().train()
        built(x, {}).square().sum().backward()
        found.append([p.grad for p in built.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(vf.ConfigError, match="changes the stream itself"):
        vf.build(stack.replace(stack=stack["stack"].replace(executor="reversible")))
