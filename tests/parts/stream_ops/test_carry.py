"""Publishing the residual stream and adding it back."""

import torch

import variform as vf
from variform.parts.stream_ops.carry import AddStream, Publish
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

WORK = Sublayer.spec(body="mlp", norm=None)


def test_a_long_skip_adds_what_was_published() -> None:
    layers = [WORK, Publish.spec(stream="skip"), WORK, AddStream.spec(stream="skip")]
    stack = vf.build(LayerStack.spec(layers=layers), dim=8).double()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    first = stack.layers[0](x, {})
    torch.testing.assert_close(stack(x, {}), stack.layers[2](first, {}) + first)


def test_names_pass_out_of_nested_layers_and_end_with_the_stack() -> None:
    deep = TransformerLayer.spec(sublayers=[TransformerLayer.spec(sublayers=[WORK, Publish.spec(stream="a")]), WORK])
    stack = vf.build(LayerStack.spec(layers=[deep, AddStream.spec(stream="a")]), dim=8)
    out = stack(torch.randn(2, 3, 8), {})
    assert isinstance(out, torch.Tensor)


def test_streams_of_the_caller_are_left_alone() -> None:
    stack = vf.build(LayerStack.spec(layers=[Publish.spec(stream="a"), AddStream.spec(stream="a")]), dim=8)
    streams = {"valid": None}
    stack(torch.randn(2, 3, 8), streams)
    assert streams == {"valid": None}
