from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import variform as vf
from variform.parts.feedforward.mlp import MLP
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.recurrent import LoopedStack, RecycledStack
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer


def stack(part: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    steps = [Sublayer.spec(body=MultiHead.spec()), Sublayer.spec(body=MLP.spec(hidden=12))]
    inner = LayerStack.spec(layers=steps, norm="layer_norm", dim=16, heads=4, causal=True)
    return vf.build(part.spec(stack=inner, **options), dim=16, causal=True).double().eval()


def features() -> Tensor:
    return torch.randn(2, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_recycling() -> None:
    part = stack(RecycledStack, passes=3)
    x = features()
    weight = part.project.weight.detach().clone().requires_grad_()
    with torch.no_grad():
        y = part.stack(x, {})
        y = part.stack(x + y @ weight.T, {})
    expected = part.stack(x + y @ weight.T, {})
    found = part(x, {})
    torch.testing.assert_close(found, expected)
    (wanted,) = torch.autograd.grad(expected.square().sum(), weight)
    found.square().sum().backward()
    torch.testing.assert_close(part.project.weight.grad, wanted)
    torch.testing.assert_close(part(x, {"passes": 1}), part.stack(x, {}))


def test_passes_are_drawn_in_training() -> None:
    part = stack(RecycledStack, passes=3, train_passes=3).train()
    x = features()
    choices = [part(x, {"passes": n}) for n in (1, 2, 3)]
    drawn = set()
    for seed in range(12):
        torch.manual_seed(seed)
        out = part(x, {})
        drawn |= {n for n, one in enumerate(choices) if torch.equal(one, out)}
        out.sum().backward()
        assert part.project.weight.grad is not None
    assert drawn == {0, 1, 2}


def test_drawn_passes_compile_in_one_graph() -> None:
    part = stack(RecycledStack, passes=3, train_passes=3).train()
    x = features()
    choices = [part(x, {"passes": n}) for n in (1, 2, 3)]
    torch._dynamo.reset()
    compiled = torch.compile(part, backend="aot_eager", fullgraph=True)
    for seed in range(4):
        torch.manual_seed(seed)
        out = compiled(x, {})
        assert any(torch.allclose(out, one, rtol=0, atol=1e-10) for one in choices)


@pytest.mark.parametrize("result", ["last", "mean"])
def test_looping(result: str) -> None:
    part = stack(LoopedStack, passes=3, result=result)
    passes, x = [], features()
    for _ in range(3):
        x = part.stack(x, {})
        passes.append(x)
    gates = [torch.sigmoid(F.linear(one, part.gate.weight)) for one in passes]
    chances = [gates[0], (1 - gates[0]) * gates[1], (1 - gates[0]) * (1 - gates[1])]
    expected = passes[-1] if result == "last" else sum(p * one for p, one in zip(chances, passes, strict=True))
    torch.testing.assert_close(part(features(), {}), expected)
    for told, chance in zip(part.leaving(passes), chances, strict=True):
        torch.testing.assert_close(told, chance)
    for threshold in (0.3, 0.55, 0.8, 1.0):
        out, left = torch.full_like(x, torch.nan), torch.zeros_like(gates[0])
        for place, one in enumerate(passes):
            left = left + chances[place]
            out = torch.where(out.isnan() & ((left >= threshold) | (place == 2)), one, out)
        torch.testing.assert_close(part(features(), {"exit": threshold}), out)


def test_the_mean_trains_the_gate() -> None:
    part = stack(LoopedStack, passes=3, result="mean")
    part(features(), {}).square().sum().backward()
    assert part.gate.weight.grad.abs().max() > 0


@pytest.mark.parametrize("part", [RecycledStack, LoopedStack])
@pytest.mark.parametrize("passes", [0, True, 1.5])
def test_passes_are_a_number(part: Any, passes: Any) -> None:
    with pytest.raises(vf.ShapeError, match="passes is a number of at least 1"):
        stack(part)(features(), {"passes": passes})


def test_a_state_is_of_its_number_of_passes() -> None:
    inner = {"part": "stack", "layers": [{"part": "sublayer", "body": "multi_head"}]}
    spec = {"part": "transformer", "embedding": "tokens", "stacks": [{"part": "looped", "stack": inner}], "head": "lm"}
    model = vf.build({**spec, "dim": 16, "heads": 4, "causal": True, "vocab_size": 11})
    ids = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(vf.ShapeError, match="the decode state holds 4 passes, and 2 were asked for"):
        model(ids, passes=2, state=model.init_state(1, 9))
    whole, state = model(ids, passes=2), model.init_state(1, 9, passes=2)
    for place in range(3):  # the state knows how many
        one, state = model(ids[:, place : place + 1], state=state)
        torch.testing.assert_close(one, whole[:, place : place + 1])
    with pytest.raises(vf.ShapeError, match="the decode state holds 2 passes, and 3 were asked for"):
        model(ids, passes=3, state=state)
    with pytest.raises(vf.ShapeError, match="passes is a number of at least 1"):
        model.init_state(1, 9, passes=0)
    found = vf.generate(model, ids, 4, passes=2, greedy=True)
    assert torch.equal(found, vf.generate(model, ids, 4, passes=2, greedy=True, use_cache=False))
    plain = vf.build({**spec, "stacks": [inner], "dim": 16, "heads": 4, "causal": True, "vocab_size": 11})
    with pytest.raises(vf.ShapeError, match="no part of this model reads it"):
        plain.init_state(1, 9, passes=2)
