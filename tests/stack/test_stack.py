"""Stacks: executors give the same values and gradients, names end, shared layers are one module."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.core.spec import Shared, Spec
from variform.parts.feedforward.mlp import MLP
from variform.parts.kinds import Layer
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.stream_ops.carry import AddStream, Publish
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

ATTEND = Sublayer.spec(body=MultiHead.spec())
FEED = Sublayer.spec(body=MLP.spec(hidden=6))
LAYER = TransformerLayer.spec(sublayers=[ATTEND, FEED])
NESTED = TransformerLayer.spec(sublayers=[Publish.spec(stream="deep"), FEED])

STACKS: dict[str, list[Any]] = {
    "plain layers": [LAYER, LAYER, LAYER],
    "a long skip": [ATTEND, Publish.spec(stream="skip"), FEED, ATTEND, AddStream.spec(stream="skip")],
    "two skips, crossed": [
        Publish.spec(stream="a"),
        FEED,
        Publish.spec(stream="b"),
        AddStream.spec(stream="a"),
        ATTEND,
        AddStream.spec(stream="b"),
    ],
    "published deep inside": [NESTED, ATTEND, AddStream.spec(stream="deep")],
    "a shared layer": [Shared("one", LAYER), FEED, Shared("one")],
    "a shared publisher": [Publish.spec(stream="a"), Shared("one", ATTEND), AddStream.spec(stream="a"), Shared("one")],
    "no layer": [],
}


def built(layers: list[Any], **fields: Any) -> Any:
    torch.manual_seed(0)
    stack = vf.build(LayerStack.spec(layers=layers, **fields), dim=8, heads=2, causal=True).double()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return stack.train()


def run(stack: Any, **streams: Any) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(1)
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    out = stack(x, streams)
    loss = (out * torch.linspace(-1, 1, 8, dtype=torch.float64)).sum()
    return out, list(torch.autograd.grad(loss, [x, *stack.parameters()]))


@pytest.mark.parametrize("streams", [{}, {"valid": torch.tensor([[True] * 5, [True] * 3 + [False] * 2])}])
@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
def test_checkpointing_changes_neither_values_nor_gradients(layers: list[Any], streams: dict[str, Any]) -> None:
    plain, lean = (run(built(layers, executor=name, norm="layer_norm"), **streams) for name in ("plain", "checkpoint"))
    assert torch.equal(plain[0], lean[0])
    for a, b in zip(plain[1], lean[1], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


def test_checkpointing_draws_the_same_dropout_twice() -> None:
    layers = [Sublayer.spec(body=MLP.spec(hidden=6, dropout=0.4), dropout=0.3, drop_path=0.3)] * 2
    results = []
    for executor in ("plain", "checkpoint"):
        results.append(run(built(layers, executor=executor)))
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


def test_checkpointing_keeps_less_for_the_backward_pass() -> None:
    kept: list[int] = []
    for executor in ("plain", "checkpoint"):
        stack = built(STACKS["plain layers"], executor=executor)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            stack(torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True), {})
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 3


def test_the_final_norm_comes_last_at_any_depth() -> None:
    for depth in (1, 2, 3):
        stack = built([FEED] * depth, norm="rms_norm")
        x = torch.randn(2, 5, 8, dtype=torch.float64)
        wanted = x
        for layer in stack.layers:
            wanted = layer(wanted, {})
        torch.testing.assert_close(stack(x, {}), stack.norm(wanted))


def test_a_shared_layer_is_registered_once_and_runs_twice() -> None:
    stack = built(STACKS["a shared layer"])
    assert len(stack.layers) == 2
    assert stack.layers.order == (0, 1, 0)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    shared, feed = stack.layers[0], stack.layers[1]
    torch.testing.assert_close(stack(x, {}), shared(feed(shared(x, {}), {}), {}))


@pytest.mark.parametrize("how", ["deepcopy", "materialise", "state dict"])
def test_sharing_survives(how: str) -> None:
    stack = built(STACKS["a shared layer"])
    if how == "deepcopy":
        other = copy.deepcopy(stack)
    elif how == "materialise":
        other = vf.materialise(vf.build(stack.spec, device="meta"), "cpu").double()
        other.load_state_dict(stack.state_dict())
    else:
        other = vf.build(stack.spec).double()
        other.load_state_dict({name: value.clone() for name, value in stack.state_dict().items()}, assign=True)
    assert len(list(other.parameters())) == len(list(stack.parameters()))
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    assert torch.equal(other(x, {}), stack(x, {}))
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    assert not torch.equal(other(x, {}), stack(x, {}))


def test_streams_that_were_passed_in_are_not_changed() -> None:
    stack = built(STACKS["a long skip"], executor="checkpoint")
    streams: dict[str, Any] = {"valid": torch.ones(2, 5, dtype=torch.bool)}
    stack(torch.randn(2, 5, 8, dtype=torch.float64), streams)
    assert list(streams) == ["valid"]
    assert streams["valid"].all()


class Odd(Layer):
    """Publishes something else than a tensor of the stream's shape: history as a tuple."""

    def forward(self, x: Tensor, streams: Any) -> Any:
        return x + 1, {"history": (*streams.get("history", ()), x)}


def test_history_over_layers_grows_as_a_tuple() -> None:
    for executor in ("plain", "checkpoint"):
        seen: list[int] = []

        class Last(Layer):
            def forward(self, x: Tensor, streams: Any, seen: list[int] = seen) -> Tensor:
                seen.append(len(streams["history"]))
                return x

        stack = LayerStack([Odd(), Odd(), Last()], executor=executor, dim=None, heads=None, causal=False)
        out = stack.train()(torch.zeros(1, 2, 3, requires_grad=True), {})
        assert isinstance(out, Tensor)
        assert seen == [2]


def test_unknown_executors_are_refused() -> None:
    spec: Spec = LayerStack.spec(layers=[FEED], executor="chekpoint")
    with pytest.raises(vf.ConfigError, match="did you mean 'checkpoint'"):
        vf.build(spec, dim=8)
