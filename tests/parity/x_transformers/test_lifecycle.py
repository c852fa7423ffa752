"""Every option set lives as models do: compiled in one graph, checkpointed, copied, pickled, stored."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import variform as vf
import variform.dialects.x_transformers as ours
from tests.parity.x_transformers.families import all_sets
from tests.parity.x_transformers.option_set import OptionSet
from tests.parity.x_transformers.runs import arguments, builder, flat, ids_of
from variform.stack.stack import LayerStack

SETS = all_sets()
STEADY = [one for one in SETS if not one.random]
FEATURES_FIRST = [pytest.param(one, marks=() if one.feature else pytest.mark.slow) for one in STEADY]
"""Compilation takes half a second: in the default suite each feature alone, combinations in the slow one."""


def model_of(one: OptionSet) -> nn.Module:
    """The set's model in float32, every parameter perturbed."""
    torch.manual_seed(0)
    model: nn.Module = builder(one)(ours).eval()
    for param in model.parameters():
        param.data += 0.05 * torch.randn_like(param)
    return model


def run(one: OptionSet, model: nn.Module) -> Tensor:
    """The set's output."""
    ids = ids_of(one)
    return flat(model(ids, **arguments(one, ids, torch.float32)))


@pytest.mark.parametrize("one", FEATURES_FIRST, ids=[one.name for one in STEADY])
def test_compiles_in_one_graph(one: OptionSet) -> None:
    torch._dynamo.reset()
    model = model_of(one)
    with torch.no_grad():
        expected = run(one, model)
        found = run(one, torch.compile(model, backend="aot_eager", fullgraph=True))  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("one", FEATURES_FIRST, ids=[one.name for one in STEADY])
def test_learns_in_half_precision(one: OptionSet) -> None:
    for model, autocast in ((model_of(one).bfloat16(), False), (model_of(one), True)):
        ids = ids_of(one)
        given = arguments(one, ids, torch.float32 if autocast else torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = flat(model.train()(ids, **given))
        out.float().square().mean().backward()
        assert out.isfinite().all()
        assert all(bool(param.grad.isfinite().all()) for param in model.parameters() if param.grad is not None)


@pytest.mark.slow
@pytest.mark.parametrize("one", [one for one in STEADY if one.feature], ids=lambda one: one.name)
def test_compiles_in_one_graph_in_training(one: OptionSet) -> None:
    torch._dynamo.reset()
    model = model_of(one)
    expected = gradients(one, model)
    found = gradients(one, model, torch.compile(model, backend="aot_eager", fullgraph=True))  # type: ignore[arg-type]
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-4, msg=name)


def gradients(one: OptionSet, model: nn.Module, called: nn.Module | None = None) -> dict[str, Tensor]:
    """Gradients of all parameters that have one."""
    model.zero_grad()
    out = run(one, model if called is None else called)
    out.square().mean().backward()
    return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


@pytest.mark.parametrize("one", STEADY, ids=lambda one: one.name)
def test_checkpointed_layers_have_the_same_gradients(one: OptionSet) -> None:
    model = model_of(one).double()
    for module in model.modules():
        if isinstance(module, nn.Module) and hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
        if hasattr(module, "layer_drop"):
            module.layer_drop = 0.0
    model.train()
    stacks = [module for module in model.modules() if isinstance(module, LayerStack)]
    assert stacks

    def grads() -> dict[str, Tensor]:
        torch.manual_seed(5)
        ids = ids_of(one)
        model.zero_grad()
        flat(model(ids, **arguments(one, ids))).square().mean().backward()
        return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}

    expected = grads()
    for stack in stacks:
        stack.executor = "checkpoint"
    found = grads()
    assert set(found) == set(expected)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.name)
@torch.no_grad()
def test_copies_pickles_and_stores(one: OptionSet, tmp_path: Path) -> None:
    model = model_of(one)
    torch.manual_seed(1)
    expected = run(one, model)
    stored = vf.save_weights(model, tmp_path / "model.safetensors")
    others = {"deepcopy": copy.deepcopy(model), "pickle": pickle.loads(pickle.dumps(model)), "safetensors": None}
    torch.manual_seed(2)
    fresh = builder(one)(ours).eval()
    vf.load_weights(fresh, stored)
    others["safetensors"] = fresh
    for param in model.parameters():
        param.add_(1.0)  # copies keep their own weights
    for how, other in others.items():
        torch.manual_seed(1)
        torch.testing.assert_close(run(one, other), expected, rtol=1e-5, atol=1e-6, msg=how)
