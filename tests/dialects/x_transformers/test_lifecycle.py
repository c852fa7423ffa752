"""Wrappers, and calls that tell more than an answer: compiled, checkpointed, copied, pickled, stored."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from tests.dialects.x_transformers.wrapped import CALLS, IDS, REAL, WRAPPERS, Case, net
from variform.dialects.x_transformers.intermediates import Intermediates
from variform.parts.embedding.tokens import TokenEmbedding
from variform.stack.stack import LayerStack

CASES = {**{f"call: {name}": case for name, case in CALLS.items()}, **WRAPPERS}
QUICK_FIRST = [
    pytest.param(case, id=name, marks=() if case.quick else pytest.mark.slow) for name, case in CASES.items()
]


def model_of(case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The wrapper, every parameter perturbed."""
    torch.manual_seed(0)
    model = case.make().to(dtype)
    for param in model.parameters():
        param.data += 0.05 * torch.randn_like(param)
    return model


def tensors(told: Any) -> Iterator[Tensor]:
    """All that was told, in order; of attentions their maps."""
    if isinstance(told, Tensor):
        yield told
    elif isinstance(told, Intermediates):
        yield from (told.pre_softmax_attn, told.post_softmax_attn)
    elif isinstance(told, Mapping):
        for value in told.values():
            yield from tensors(value)
    elif isinstance(told, list | tuple):
        for value in told:
            yield from tensors(value)
    elif is_dataclass(told) and not isinstance(told, type):
        yield from tensors([getattr(told, one.name) for one in fields(told) if one.name != "cache"])


def run(case: Case, model: Any) -> list[Tensor]:
    """The call, drawn alike."""
    torch.manual_seed(1)
    dtype = next(model.parameters()).dtype
    args = [one.to(dtype) if isinstance(one, Tensor) and one.is_floating_point() else one for one in case.args]
    keywords = dict(case.keywords)
    if "mems" in keywords:
        keywords["mems"] = [one.to(dtype) for one in keywords["mems"]]
    return list(tensors(model(*args, **keywords)))


def gradients(case: Case, model: Any, called: Any = None) -> dict[str, Tensor]:
    """Those of all that was told."""
    model.zero_grad()
    told = run(case, model if called is None else called)
    found = [x.masked_fill(x == -torch.inf, 0.0).square().mean() for x in told if x.requires_grad]
    torch.stack(found).sum().backward()
    return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


def compiled(case: Case, model: nn.Module) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager", fullgraph=case.whole)


@pytest.mark.parametrize("case", QUICK_FIRST)
@torch.no_grad()
def test_compiles(case: Case) -> None:
    model = model_of(case).eval()
    expected, found = run(case, model), run(case, compiled(case, model))
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items() if name != "entropies"])
def test_compiles_in_training(case: Case) -> None:
    model = model_of(case).train()
    expected, found = gradients(case, model), gradients(case, model, compiled(case, model))
    assert set(found) == set(expected)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items() if name != "entropies"])
def test_checkpointed_layers_have_the_same_gradients(case: Case) -> None:
    model = model_of(case, torch.float64).train()
    expected = gradients(case, model)
    stacks = [module for module in model.modules() if isinstance(module, LayerStack)]
    assert stacks
    for stack in stacks:
        stack.executor = "checkpoint"
    found = gradients(case, model)
    assert set(found) == set(expected)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in WRAPPERS.items()])
@torch.no_grad()
def test_copies_pickles_and_stores(case: Case, tmp_path: Path) -> None:
    model = model_of(case).eval()
    expected = run(case, model)
    stored = vf.save_weights(model, tmp_path / "model.safetensors")
    others: dict[str, nn.Module] = {"deepcopy": copy.deepcopy(model), "pickle": pickle.loads(pickle.dumps(model))}
    others["safetensors"] = case.make().eval()
    vf.load_weights(others["safetensors"], stored)
    for param in model.parameters():
        param.add_(1.0)  # copies keep their own weights
    for how, other in others.items():
        for one, wanted in zip(run(case, other), expected, strict=True):
            torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-6, msg=how)


def test_a_call_that_tells_leaves_nothing_on_the_modules() -> None:
    """Hooks took a millisecond a step, and no graph holds them."""
    model = net()
    before = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    _, told = model(IDS, mask=REAL, return_intermediates=True)
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == before
    assert len(told.hiddens) == 2
    assert len(told.layer_hiddens) == 5


def test_layers_that_are_computed_again_are_not_told_twice() -> None:
    model = net().train()
    stack = next(module for module in model.modules() if isinstance(module, LayerStack))
    stack.executor = "checkpoint"
    out, told = model(IDS, return_intermediates=True)
    counts = [len(x) for x in (told.hiddens, told.layer_hiddens, told.attn_intermediates)]
    out.sum().backward()
    assert [len(x) for x in (told.hiddens, told.layer_hiddens, told.attn_intermediates)] == counts == [2, 5, 2]


def test_predicted_features_embed_their_tokens_once() -> None:
    model = net(add_continuous_pred_head=True)
    count = 0

    def counted(*args: Any) -> None:
        nonlocal count
        count += 1

    embedding = next(module for module in model.modules() if isinstance(module, TokenEmbedding))
    embedding.register_forward_hook(counted)
    _, (_, embedded) = model(IDS, return_next_embed_pred=True)
    assert count == 1
    torch.testing.assert_close(embedded, embedding(IDS, {"positions": None}))
