"""Features that are changed on their way through a model."""

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ConfigError
from variform.stack.model import Transformer
from variform.stack.tapped import tapped


def built(executor: str = "plain") -> Transformer:
    torch.manual_seed(0)
    model = vf.build(vf.models.gpt(vocab_size=11, max_seq_len=12, dim=8, depth=2, heads=2), **{})
    assert isinstance(model, Transformer)
    for stack in model.stacks:
        stack.executor = executor  # type: ignore[assignment]
    return model.double()


IDS = torch.tensor([[1, 5, 3, 8, 2]])


def test_what_a_view_computes() -> None:
    model = built().eval()
    told: dict[int, Tensor] = {}
    found = tapped(model, lambda x: 2 * x, {1: lambda x: x + 1}, told)(IDS)
    x = 2 * torch.nn.functional.embedding(IDS, model.embedding.weight)  # type: ignore[union-attr, arg-type]
    x = x + model.embedding.position(None, 5, x)  # type: ignore[union-attr, misc, operator]
    (stack,) = model.stacks
    first, second = stack.layers.in_order()  # type: ignore[union-attr, operator]
    streams = {"positions": None, "valid": None, "segments": None, "mask": None}
    made = first(x, streams)
    torch.testing.assert_close(told[0], made, rtol=0, atol=1e-12)
    made = second(made + 1, streams)
    torch.testing.assert_close(told[1], made, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, model.head(stack.norm(made), {}), rtol=0, atol=1e-12)  # type: ignore
    assert not torch.equal(found, model(IDS)), "and the model is as it was"


def test_activations_that_are_computed_again_are_changed_again() -> None:
    grads = []
    for executor in ("plain", "checkpoint"):
        model = built(executor).train()
        tapped(model, None, {1: lambda x: x.tanh()})(IDS).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_decode_states_are_those_of_the_model() -> None:
    model = built().eval()
    view = tapped(model, None, {1: lambda x: x + 1})
    _, state = model(IDS[:, :2], state=model.init_state(1))
    out, state = view(IDS[:, 2:3], state=state)
    assert out.shape == (1, 1, 11)
    model(IDS[:, 3:], state=state)


def test_what_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r"layers 0\.\.1"):
        tapped(built(), None, {2: lambda x: x})
    with pytest.raises(ConfigError, match="two streams"):
        tapped(built("reversible"), None, {1: lambda x: x})
