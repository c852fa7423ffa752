"""The executor `reversible`: the formula, its gradients, what is kept, and what is refused."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import variform as vf
from variform.core.spec import Shared, Spec
from variform.errors import ConfigError, ShapeError
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import MLP
from variform.parts.kinds import FeedForward
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.stream_ops.carry import AddStream, Publish
from variform.stack.encoder_decoder import EncoderDecoder
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

DROP: dict[str, Any] = {"dropout": 0.3, "drop_path": 0.2, "layer_drop": 0.1}
ATTEND = Sublayer.spec(body=MultiHead.spec(attention="softmax"), **DROP)
FEED = Sublayer.spec(body=MLP.spec(hidden=6, dropout=0.4), **DROP)
CROSS = Sublayer.spec(body=CrossMultiHead.spec(), dropout=0.2)
ENCODER = TransformerLayer.spec(sublayers=[ATTEND, FEED])
DECODER = TransformerLayer.spec(sublayers=[ATTEND, CROSS, FEED])

LAYERS: dict[str, list[Any]] = {
    "encoder": [ENCODER, ENCODER, ENCODER],
    "decoder": [DECODER, DECODER],
    "one sublayer": [FEED],
    "sublayers alone": [ATTEND, FEED, FEED],
    "shared": [Shared("one", ENCODER), FEED, Shared("one")],
    "post-norm": [TransformerLayer.spec(sublayers=[ATTEND.replace(norm=None, branch_norm="layer_norm"), FEED])],
    "layer scale": [FEED.replace(residual="layer_scale"), ATTEND.replace(residual="layer_scale")],
    "half steps": [FEED.replace(residual={"part": "scaled", "beta": 0.5}), ATTEND],
    "a long skip": [ENCODER, Publish.spec(stream="skip"), FEED, ENCODER, AddStream.spec(stream="skip"), ATTEND],
    "none": [],
}


def built(layers: Sequence[Any], dtype: torch.dtype = torch.float64, **fields: Any) -> Any:
    torch.manual_seed(0)
    fields = {"norm": "layer_norm", "executor": "reversible", **fields}
    stack = vf.build(LayerStack.spec(layers=layers, **fields), dim=8, heads=2, causal=True).to(dtype)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return stack.train()


def literal(stack: Any, x: Tensor, streams: dict[str, Any]) -> Tensor:
    """The formula by plain autograd: each sublayer in turn adds its branch of one stream to the other."""

    def branch(step: Any, x: Tensor) -> Tensor:
        y = x if step.norm is None else step.norm(x)
        y = step.body(y, streams)
        y = y if step.branch_norm is None else step.branch_norm(y)
        if step.training:
            y = step._drop(y)
        if step.residual is not None:
            y = step.residual(torch.zeros_like(y), y)
        if step.training and step.layer_drop:
            y = torch.where(torch.rand(()) < step.layer_drop, torch.zeros_like(y), y)
        return y

    x1 = x2 = x
    for layer in stack.layers.in_order():
        if not isinstance(layer, (Sublayer, TransformerLayer)):
            out = layer((x1 + x2) / 2, streams)
            y, published = out if isinstance(out, tuple) else (out, {})
            x1 = x2 = y
            streams = {**streams, **published}
            continue
        for step in layer.sublayers.in_order() if isinstance(layer, TransformerLayer) else [layer]:
            x1, x2 = x2, x1 + branch(step, x2)
    y = (x1 + x2) / 2
    return y if stack.norm is None else stack.norm(y)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Any]]:
    torch.manual_seed(5)
    x = torch.randn(2, 5, 8, dtype=dtype, requires_grad=True)
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    return x, {"valid": valid, "context": torch.randn(2, 4, 8, dtype=dtype, requires_grad=True)}


def gradients(out: Tensor, stack: Any, x: Tensor, streams: dict[str, Any]) -> list[Tensor | None]:
    loss = (out * torch.linspace(-1, 1, 8, dtype=out.dtype)).sum()
    sources = [x, streams["context"], *stack.parameters()]
    return list(torch.autograd.grad(loss, sources, allow_unused=True))


def assert_same(got: Sequence[Tensor | None], wanted: Sequence[Tensor | None], tolerance: float = 1e-9) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_values_and_gradients_are_those_of_plain_autograd(layers: list[Any], training: bool) -> None:
    stack = built(layers).train(training)
    x, streams = inputs()
    results = []
    for run in (stack, lambda x, streams: literal(stack, x, streams)):
        torch.manual_seed(7)
        out = run(x, streams)
        results.append((out, gradients(out, stack, x, streams)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=1e-12)
    assert_same(results[0][1], results[1][1])


def test_without_gradients_the_values_are_the_same() -> None:
    stack = built(LAYERS["decoder"]).eval()
    x, streams = inputs()
    with torch.no_grad():
        assert torch.equal(stack(x, streams), stack(x.detach(), streams))
        torch.testing.assert_close(stack(x, streams), literal(stack, x, streams))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_several_forwards_before_the_backwards(order: tuple[int, ...]) -> None:
    stack = built(LAYERS["decoder"])
    _, streams = inputs()
    xs = [torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    results = []
    for run in (stack, lambda x, streams: literal(stack, x, streams)):
        torch.manual_seed(3)
        losses = [run(x, streams).square().sum() for x in xs]
        sources = [*xs, streams["context"], *stack.parameters()]
        for source in sources:
            source.grad = None
        for index in order:
            losses[index].backward()
        results.append([source.grad for source in sources])
    assert_same(*results)


def test_the_generator_goes_on_where_the_forward_pass_left_it() -> None:
    stack = built(LAYERS["encoder"])
    x, streams = inputs()
    out = stack(x, streams)
    before = torch.get_rng_state()
    out.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def kept_bytes(model: Any, *args: Any, **streams: Any) -> int:
    """Memory that is kept for the backward pass, beside the parameters'."""
    sizes: dict[int, int] = {}
    held = []
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(*args, **streams)
    return sum(sizes.values())


@pytest.mark.parametrize("layer", [ENCODER, DECODER], ids=["encoder", "decoder"])
def test_what_is_kept_does_not_depend_on_the_depth(layer: Spec) -> None:
    x, streams = inputs()
    few, many = (kept_bytes(built([layer] * depth), x, streams) for depth in (4, 32))
    assert few == many
    assert many < kept_bytes(built([layer] * 4, executor="plain"), x, streams) / 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_described_bytes_are_those_that_are_kept(dtype: torch.dtype) -> None:
    spec = Transformer.spec(
        embedding=None, stacks=[LayerStack.spec(layers=[DECODER] * 3, norm="layer_norm", executor="reversible")],
        dim=8, heads=2, causal=True,
    )  # fmt: skip
    model = vf.build(spec, dtype=dtype).train()
    args = (torch.randn(3, 7, 8, dtype=dtype),)
    context = torch.randn(3, 7, 8, dtype=dtype)
    described = vf.describe(spec, batch=3, length=7, dtype=dtype)
    plain = vf.describe(vf.override(spec, {"stacks.0.executor": "plain"}), batch=3, length=7, dtype=dtype)
    assert described.rows[0].activation_bytes == kept_bytes(model, *args, context=context)
    assert described.rows[0].flops == plain.rows[0].flops
    assert described.rows[0].flops_backward == plain.rows[0].flops_backward
    by_path = {row.path: row for row in plain.rows}
    for row in described.rows:
        assert row.flops == by_path[row.path].flops
        assert row.calls == by_path[row.path].calls
        if "layers" in row.path:
            assert row.activation_bytes == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streams_are_carried_in_float32(dtype: torch.dtype) -> None:
    """At depth 24 the gradients are as near to those of plain autograd as the type allows."""
    stack = built([TransformerLayer.spec(sublayers=[
        Sublayer.spec(body=MultiHead.spec()), Sublayer.spec(body=MLP.spec(hidden=16)),
    ])] * 24, dtype)  # fmt: skip
    x, streams = inputs(dtype)
    assert stack(x, {}).dtype == dtype
    got, *_ = gradients(stack(x, {}), stack, x, streams)
    exact = copy.deepcopy(stack).double()
    y = x.detach().double().requires_grad_()
    wanted, *_ = gradients(literal(exact, y, {}), exact, y, streams)
    assert got is not None
    assert wanted is not None
    error = (got.double() - wanted).norm() / wanted.norm()
    assert error < (1e-4 if dtype == torch.float32 else 0.05)


def test_automatic_casts_are_made_again() -> None:
    stack = built(LAYERS["decoder"], torch.float32)
    x, streams = inputs(torch.float32)
    results = []
    for run in (stack, lambda x, streams: literal(stack, x, streams)):
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = run(x, streams)
        results.append((out, gradients(out.float(), stack, x, streams)))
    torch.testing.assert_close(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_casts_made_here_leave_no_parameter_without_gradient() -> None:
    stack = built([FEED], torch.float32)
    x, streams = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stack(x, streams)
        out = stack.layers[0](x, streams)
    out.float().sum().backward()
    assert stack.layers[0].body.up.weight.grad is not None


def test_hooks_on_parameters_run_once() -> None:
    stack, (x, streams) = built(LAYERS["shared"]), inputs()
    weight = next(stack.parameters())
    seen: list[Tensor] = []
    weight.register_hook(lambda gradient: seen.append(gradient))
    stack(x, streams).sum().backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], weight.grad)


def test_frozen_parameters_get_none() -> None:
    stack, (x, streams) = built(LAYERS["decoder"]), inputs()
    wanted = gradients(stack.eval()(x, streams), stack, x, streams)
    frozen = stack.layers[0].sublayers[1].body
    frozen.requires_grad_(False)
    for source in (x, streams["context"], *stack.parameters()):
        source.grad = None
    (stack(x, streams) * torch.linspace(-1, 1, 8, dtype=torch.float64)).sum().backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert_same([x.grad, streams["context"].grad], wanted[:2])


def test_a_parameter_changed_before_the_backward_pass_is_noticed() -> None:
    stack, (x, streams) = built(LAYERS["encoder"]), inputs()
    out = stack(x, streams)
    with torch.no_grad():
        next(stack.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        out.sum().backward()


@pytest.mark.parametrize("inner", ["plain", "checkpoint"])
def test_within_a_checkpoint(inner: str) -> None:
    stack, (x, streams) = built(LAYERS["decoder"]), inputs()
    results = []
    for run in (stack, lambda x, streams: checkpoint(stack, x, streams, use_reentrant=False)):
        torch.manual_seed(7)
        out = run(x, streams)
        results.append(gradients(out, stack, x, streams))
    assert_same(*results)


class Careful(FeedForward):
    """Computes its inside again in the backward pass."""

    def __init__(self, inner: FeedForward) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, streams: Any) -> Tensor:
        out: Tensor = checkpoint(self.inner, x, streams, use_reentrant=False)
        return out


def test_around_a_checkpoint() -> None:
    layers = [ATTEND, FEED.replace(body=Careful.spec(inner=MLP.spec(hidden=6, dropout=0.4)))]
    stack, (x, streams) = built(layers), inputs()
    results = []
    for run in (stack, lambda x, streams: literal(stack, x, streams)):
        torch.manual_seed(7)
        out = run(x, streams)
        results.append(gradients(out, stack, x, streams))
    assert_same(*results)


def test_names_are_those_of_the_plain_stack() -> None:
    stack, plain = built(LAYERS["decoder"]), built(LAYERS["decoder"], executor="plain")
    assert list(stack.state_dict()) == list(plain.state_dict())
    twin = copy.deepcopy(stack)
    twin.load_state_dict(plain.state_dict())
    x, streams = inputs()
    assert torch.equal(twin.eval()(x, streams), stack.eval()(x, streams))
    assert not torch.allclose(plain.eval()(x, streams), stack(x, streams))


def encoder_decoder(executor: str = "reversible") -> Spec:
    def side(layer: Spec, **more: Any) -> Spec:
        stack = LayerStack.spec(layers=[layer] * 2, norm="layer_norm", executor=executor)
        return Transformer.spec(embedding=TokenEmbedding.spec(), stacks=[stack], max_seq_len=12, **more)

    return EncoderDecoder.spec(
        encoder=side(ENCODER), decoder=side(DECODER, causal=True, head="lm"), dim=8, heads=2, vocab_size=11
    )


def test_a_decoder_passes_gradients_to_its_encoder() -> None:
    model = vf.build(encoder_decoder(), dtype=torch.float64).train()
    source, target = torch.randint(0, 11, (2, 6)), torch.randint(0, 11, (2, 5))
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 4:] = False

    def plainly() -> Tensor:
        def run(side: Any, ids: Tensor, streams: dict[str, Any]) -> Tensor:
            return literal(side.stacks[0], side.embedding(ids, streams), streams)

        from variform.stack.state import count_positions

        inner = {"valid": valid, "positions": count_positions(valid, None)}
        context = run(model.encoder, source, inner)
        outer = {"context": context, "context_mask": valid}
        out: Tensor = model.decoder.head(run(model.decoder, target, outer), outer)
        return out

    results = []
    for run in (lambda: model(source, target, source_valid=valid), plainly):
        torch.manual_seed(7)
        out = run()
        results.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))])
    assert_same(*results)


def test_it_decodes() -> None:
    model = vf.build(encoder_decoder(), dtype=torch.float64).eval()
    source, target = torch.randint(0, 11, (2, 6)), torch.randint(0, 11, (2, 7))
    whole = model(source, target)
    state = model.init_state(2, 7, source=source)
    parts = []
    for chunk in target.split((3, 1, 2, 1), dim=1):
        out, state = model(None, chunk, state=state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-10)


def test_it_decodes_with_layers_of_another_make_in_between() -> None:
    stack = LayerStack.spec(layers=LAYERS["a long skip"], norm="layer_norm", executor="reversible")
    spec = Transformer.spec(
        embedding=TokenEmbedding.spec(), stacks=[stack], head="lm", dim=8, heads=2, vocab_size=11, causal=True,
        max_seq_len=9,
    )  # fmt: skip
    model = vf.build(spec, dtype=torch.float64).eval()
    ids = torch.randint(0, 11, (2, 7))
    state, parts = model.init_state(2, 7), []
    for chunk in ids.split((3, 1, 2, 1), dim=1):
        out, state = model(chunk, state=state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=1e-10, atol=1e-10)


class Counting(FeedForward):
    """Keeps a count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, streams: Any) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_a_layer_that_keeps_something_is_refused() -> None:
    stack, (x, streams) = built([Sublayer.spec(body=Counting.spec())]), inputs()
    with pytest.raises(ShapeError, match="Counting changes its buffer 'calls' in place"):
        stack(x, streams)


def test_features_that_are_drawn_anew_are_those_of_their_own_forward_pass() -> None:
    attend = MultiHead.spec(attention={"part": "favor", "dim_features": 6, "iter_before_redraw": 1})
    layers = [Shared("one", Sublayer.spec(body=attend, dropout=0.2)), FEED, Shared("one")]
    results, features = [], []
    for plainly in (False, True):
        stack, (x, _) = built(layers), inputs()
        torch.manual_seed(3)
        losses = [(literal(stack, x, {}) if plainly else stack(x, {})).square().sum() for _ in range(3)]
        for index in (1, 0, 2):
            losses[index].backward()
        results.append([x.grad, *(p.grad for p in stack.parameters())])
        features.append(list(stack.buffers()))
    assert_same(results[0], results[1])
    assert_same(features[0], features[1], 0)


def test_sharded_parameters_are_refused() -> None:
    stack, (x, streams) = built(LAYERS["encoder"]), inputs()
    next(stack.parameters()).device_mesh = "as a DTensor has it"
    with pytest.raises(ShapeError, match="DDP"):
        stack(x, streams)


REFUSED: dict[str, tuple[Any, str, str]] = {
    "publishes": (
        [TransformerLayer.spec(sublayers=[Publish.spec(stream="a"), FEED, AddStream.spec(stream="a")])],
        "layers.0.sublayers.0",
        "is made of sublayers",
    ),
    "publishes inside": (
        [Sublayer.spec(body=Publish.spec(stream="a")), AddStream.spec(stream="a")],
        "layers.0.body",
        "publishes a",
    ),
    "norms the sum": ([FEED.replace(out_norm="layer_norm")], "layers.0.out_norm", "branch_norm"),
    "scales the stream": (
        [FEED.replace(residual={"part": "scaled", "alpha": 2.0})],
        "layers.0.residual",
        "changes the stream itself",
    ),
    "deepnorm": ([FEED.replace(residual="deepnorm")], "layers.0.residual", "checkpoint"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_computed_back_is_refused_before_it_is_built(case: tuple[Any, str, str]) -> None:
    layers, path, message = case
    spec = LayerStack.spec(layers=layers, executor="reversible")
    with pytest.raises(ConfigError, match=message) as caught:
        vf.build(spec, dim=8, heads=2)
    assert caught.value.path == path
    vf.build(spec.replace(executor="plain"), dim=8, heads=2)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch looks at it itself
def test_it_is_compiled_layer_by_layer() -> None:
    torch.compiler.reset()
    stack, (x, streams) = built(LAYERS["decoder"]), inputs()
    results = []
    for run in (stack, torch.compile(stack, backend="eager")):
        torch.manual_seed(7)
        out = run(x, streams)
        results.append(gradients(out, stack, x, streams))
    assert_same(results[0], results[1])


def test_a_compiled_graph_as_a_whole_says_why_not() -> None:
    torch.compiler.reset()
    stack, (x, streams) = built(LAYERS["encoder"]), inputs()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="reversible layers are compiled one by one"):
        torch.compile(stack, backend="eager", fullgraph=True)(x, streams)
    with torch.no_grad():
        out = torch.compile(stack.eval(), backend="eager", fullgraph=True)(x, streams)
        torch.testing.assert_close(out, stack(x, streams))
