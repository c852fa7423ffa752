"""Steps of programs with parts of every kind: shapes, streams, values, refusals."""

import pytest
import torch

import variform as vf
from variform.core.dims import parse_shape
from variform.core.registry import parts
from variform.errors import ConfigError, ShapeError
from variform.ops.attention.call import Call
from variform.ops.attention.select import attention
from variform.parts.attention.across_layers import ValueResidual
from variform.parts.attention.softmax import SoftmaxAttention
from variform.stack import adapters
from variform.stack.adapt import ADAPTERS, REFUSED
from variform.stack.lines import Block, Step
from variform.stack.program import Program, ProgramModel

B, L, D, H = 3, 7, 24, 4


def step(op, reads=("x",), into=("x",), **fields):
    return Step.spec(op={"part": op, **fields}, reads=reads, into=into)


def model(lines, inputs, outputs=("x",)):
    torch.manual_seed(0)
    built = vf.build(ProgramModel.spec(lines=lines, inputs=inputs, outputs=outputs))
    return built.double()


def shapes(built):
    return {name: [str(size) for size in shape] for row in built.table.rows for name, shape in row.writes}


def test_every_kind_has_an_adapter_or_a_reason():
    kinds = {kind for kind, _ in parts()}
    assert kinds == {"op"} | set(ADAPTERS) | set(REFUSED)


@pytest.mark.parametrize("kind", ["memory", "line", "model"])
def test_other_kinds_are_refused(kind):
    name = next(name for k, name in parts() if k == kind)
    with pytest.raises(ConfigError, match=f"a {kind} does not fit|does not fit here"):
        vf.resolve(ProgramModel.spec(lines=[step(f"{kind}/{name}")], inputs={"x": ("B", "L", D)}))


def test_embedding_stack_head():
    lines = [
        step("tokens", ("ids",), vocab_size=11, dim=D),
        step("stack", layers=[{"part": "sublayer", "body": {"part": "multi_head", "heads": H}}], causal=True),
        step("lm", vocab_size=11),
    ]
    built = model(lines, {"ids": ("B", "L")})
    assert shapes(built)["x"] == ["B", "L", "11"]
    ids = torch.randint(0, 11, (B, L))
    x = built.lines[0].op(ids, {})
    expected = built.lines[2].op(built.lines[1].op(x, {}), {})
    assert torch.equal(built({"ids": ids})["x"], expected)
    (example,), _ = built.example_inputs(2, 5)
    assert example["ids"].dtype == torch.long


def test_images_become_tokens():
    lines = [
        step("patches", ("image",), image_size=8, patch_size=4, dim=D, class_tokens=1, position="position/learned"),
        step("classifier", classes=5, pool="first"),
    ]
    built = model(lines, {"image": ("B", 3, 8, 8)})
    assert [str(row.writes[0][1]) for row in built.table.rows] == ["(B, 5, 24)", "(B, 5)"]
    image = torch.randn(B, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(built({"image": image})["x"], built.lines[1].op(built.lines[0].op(image, {}), {}))
    with pytest.raises(ConfigError, match=r"images are \[B, 3, 8, 8\]"):
        vf.resolve(ProgramModel.spec(lines=lines, inputs={"image": ("B", 3, 9, 9)}))


def test_class_tokens_move_positions_and_padding_along():
    embed = {"dim": D, "class_tokens": 2, "position": {"part": "position/learned", "max_seq_len": 12}}
    lines = [
        step("features", ("f", "positions", "valid"), ("x", "valid", "positions"), **embed),
        step("multi_head", ("x", "positions", "valid"), heads=H, rotation="rotation/rotary"),
        step("classifier", ("x", "valid"), classes=3),
    ]
    inputs = {"f": ("B", "L", D), "positions": ("B", "L"), "valid": ("B", "L")}
    built = model(lines, inputs)
    assert [str(size) for size in dict(built.table.rows[0].writes)["valid"]] == ["B", "L + 2"]
    given = {
        "f": torch.randn(B, L, D, dtype=torch.float64),
        "positions": torch.arange(L).expand(B, L),
        "valid": torch.arange(L).expand(B, L) < torch.tensor([[7], [3], [5]]),
    }
    x, streams = built.lines[0].op(given["f"], given)
    expected = built.lines[2].op(built.lines[1].op(x, streams), streams)
    assert torch.equal(built(given)["x"], expected)
    (example,), _ = built.example_inputs(2, 4)
    assert example["valid"].dtype == torch.bool
    assert bool(example["valid"].all())
    lines[0] = step("features", ("f", "positions", "valid"), **embed)
    with pytest.raises(ConfigError, match="publishes positions, valid: name just that"):
        vf.resolve(ProgramModel.spec(lines=lines, inputs=inputs))


def test_attention_from_its_pieces():
    lines = [
        step("linear", ("x",), ("q",), out=H * 6),
        step("linear", ("x",), ("k",), out=2 * 6),
        step("linear", ("x",), ("v",), out=2 * 6),
        step("split_heads", ("q",), ("q",), heads=H),
        step("split_heads", ("k",), ("k",), heads=2),
        step("split_heads", ("v",), ("v",), heads=2),
        step("rotation/rotary", ("q", "k", "positions"), ("q", "k")),
        step("softmax", ("q", "k", "v", "positions", "valid"), ("x",), causal=True),
        step("merge_heads"),
    ]
    built = model(lines, {"x": ("B", "L", D), "positions": ("B", "L"), "valid": ("B", "L")})
    x = torch.randn(B, L, D, dtype=torch.float64)
    positions, valid = torch.arange(L).expand(B, L) + 2, torch.rand(B, L) > 0.3
    got = built({"x": x, "positions": positions, "valid": valid})["x"]

    def heads(place, count):
        return built.lines[place].op(x).view(B, L, count, 6).transpose(1, 2)

    q, k, v = heads(0, H), heads(1, 2), heads(2, 2)
    q, k = built.lines[6].op(q, k, positions, positions)
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) / 6**0.5
    allowed = torch.ones(L, L, dtype=torch.bool).tril() & valid[:, None, None, :]
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(0.0)
    expected = (weights @ v.repeat_interleave(2, 1)).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_attention_with_a_bias_and_a_mask():
    built = model(
        [step("softmax", ("q", "k", "v", "bias", "mask"), ("x",))],
        {
            **{name: ("B", H, size, 6) for name, size in (("q", "L"), ("k", "M"), ("v", "M"))},
            "bias": (1, H, "L", "M"),
            "mask": ("L", "M"),
        },
    )
    q, k, v = (torch.randn(B, H, size, 6, dtype=torch.float64) for size in (5, 9, 9))
    bias, mask = torch.randn(1, H, 5, 9, dtype=torch.float64), torch.rand(5, 9) > 0.4
    got = built({"q": q, "k": k, "v": v, "bias": bias, "mask": mask})["x"]
    scores = (q @ k.transpose(-1, -2) / 6**0.5 + bias).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(got, scores.softmax(-1).nan_to_num(0.0) @ v, rtol=1e-10, atol=1e-10)


def test_residual_position_and_bias():
    lines = [
        step("position/learned", ("x", "positions"), max_seq_len=20),
        step("layer_scale", ("x", "y"), init=0.5),
        step("split_heads", ("x",), ("h",), heads=H),
        step("scores", ("h", "h"), ("s",)),
        step("alibi", ("s",), ("s",)),
    ]
    inputs = {"x": ("B", "L", D), "y": ("B", "L", D), "positions": ("B", "L")}
    built = model(lines, inputs, ("x", "s"))
    x, y = torch.randn(B, L, D, dtype=torch.float64), torch.randn(B, L, D, dtype=torch.float64)
    positions = torch.randint(0, 20, (B, L))
    out = built({"x": x, "y": y, "positions": positions})
    expected = x + built.lines[0].op.weight[positions] + 0.5 * y
    torch.testing.assert_close(out["x"], expected, rtol=1e-10, atol=1e-10)
    h = expected.view(B, L, H, -1).transpose(1, 2)
    distance = (torch.arange(L)[:, None] - torch.arange(L)).abs()
    bias = -distance * torch.tensor([2.0 ** (-2 * (i + 1)) for i in range(H)]).view(H, 1, 1)
    torch.testing.assert_close(out["s"], h @ h.transpose(-1, -2) / (D // H) ** 0.5 + bias, rtol=1e-10, atol=1e-10)


def test_what_a_layer_publishes_is_named():
    lines = [
        step("publish", ("x",), ("x", "skip"), stream="skip"),
        step("mlp"),
        step("add_stream", ("x", "skip"), stream="skip"),
    ]
    built = model(lines, {"x": ("B", "L", D)})
    x = torch.randn(B, L, D, dtype=torch.float64)
    assert torch.equal(built({"x": x})["x"], built.lines[1].op(x, {}) + x)
    nested = {"part": "layer/layer", "sublayers": [{"part": "publish", "stream": "skip"}]}
    for first in ({"part": "publish", "stream": "skip"}, nested):
        broken = [Step.spec(op=first), *lines[1:]]
        with pytest.raises(ConfigError, match="publishes skip: name just that after what it writes"):
            vf.resolve(ProgramModel.spec(lines=broken, inputs={"x": ("B", "L", D)}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (step("mlp", ("x", "valid")), "does not read the stream 'valid'; it reads no stream"),
        (step("multi_head", ("x", "valdi"), heads=H), "'valdi'; did you mean 'valid'"),
        (step("multi_head", ("x", "short"), heads=H), "does not read the stream 'short'"),
        (step("residual/scaled"), "takes at least 2 streams, and reads 1"),
        (step("residual/scaled", ("x", "valid")), "joins two tensors of one shape"),
        (step("softmax", ("x", "x", "x")), r"takes queries, keys and values of \[B, H, L, D\]"),
        (step("tokens", ("x",), vocab_size=5, dim=D), r"takes ids of \[B, L\]"),
        (step("classifier", ("valid",), classes=2), "needs a known number of features"),
    ],
)
def test_what_does_not_fit_is_refused(line, message):
    inputs = {"x": ("B", "L", D), "valid": ("B", "L"), "valdi": ("B", "L"), "short": ("B", "M")}
    with pytest.raises(ConfigError, match=message):
        vf.resolve(ProgramModel.spec(lines=[line], inputs=inputs, strict=False))


def test_streams_belong_to_the_tokens():
    lines = [step("multi_head", ("x", "valid"), heads=H)]
    with pytest.raises(ConfigError, match=r"the stream 'valid' is \(B, M\), and the tokens are \(B, L\)"):
        vf.resolve(ProgramModel.spec(lines=lines, inputs={"x": ("B", "L", D), "valid": ("B", "M")}))


def test_a_layer_program_hands_its_streams_to_its_parts():
    """Padding that a model is given reaches an attention step without being declared."""
    heads = [step("split_heads", ("x",), ("h",), heads=H), step("softmax", ("h", "h", "h")), step("merge_heads")]
    program = vf.build(Program.spec(lines=heads, dim=D)).double()
    x, valid = torch.randn(B, L, D, dtype=torch.float64), torch.arange(L).expand(B, L) < 4
    h = x.view(B, L, H, -1).transpose(1, 2)
    expected = attention(Call(h, h, h, k_valid=valid), "auto").transpose(1, 2).flatten(-2)
    torch.testing.assert_close(program(x, {"valid": valid}), expected, rtol=1e-10, atol=1e-10)


def test_a_residual_is_given_the_streams_that_it_reads():
    """Padding has no part in a mean, whether a program declares it or a model gives it."""
    join = step("residual/mean_split", ("before", "x", "valid"), alpha=0.5)
    lines = [step("copy", ("x",), ("before",)), step("mlp"), join]
    program = model(lines, {"x": ("B", "L", D), "valid": ("B", "L")})
    x, valid = torch.randn(B, L, D, dtype=torch.float64), torch.arange(L).expand(B, L) < 4
    whole, cut = program({"x": x, "valid": valid})["x"], program({"x": x[:, :4], "valid": valid[:, :4]})["x"]
    torch.testing.assert_close(whole[:, :4], cut)
    assert (program({"x": x, "valid": valid | True})["x"][:, :4] - cut).abs().max() > 1e-4


@pytest.mark.parametrize(("kind", "name"), [key for key in parts() if key[0] in ("embedding", "head")])
def test_declared_output_shapes_are_those_of_runs(kind, name):
    inner = {"part": "tokens", "vocab_size": 11}
    more = {
        "patches": {"image_size": 8, "patch_size": 2, "class_tokens": 3},
        "image": {
            "height": 7,
            "width": 8,
            "patches": {"part": "conv_patches", "kernel": 3, "stride": 2, "padding": 1, "out": D},
            "embedding": {"part": "features", "class_tokens": 1},
        },
        "features": {"class_tokens": 2},
        "tokens": {"vocab_size": 11},
        "factorised": {"embedding": inner, "dim_embedding": 5},
        "placed": {"embedding": inner, "position": "position/sinusoidal"},
        "prefixed": {"embedding": inner},
        "deep": {"embedding": inner, "vocab_size": 11},
        "summed": {"embedding": inner},
        "numbers": {"embedding": inner, "number_id": 3},
        "lm": {"vocab_size": 11},
        "linear": {"outputs": 3},
        "joined": {"parts": ["head/pool", "head/pool"]},
        "mixture": {"head": {"part": "lm", "vocab_size": 11}},
        "sigsoftmax": {"head": {"part": "lm", "vocab_size": 11}},
        "probe": {"head": {"part": "lm", "vocab_size": 11}},
        "squeezed": {"head": {"part": "lm", "vocab_size": 1}},
        "readouts": {"main": {"part": "lm", "vocab_size": 11}},
        "pooled": {"head": {"part": "lm", "vocab_size": 11}},
        "attention_pool": {"body": {"part": "cross_attention", "heads": 2}, "queries": 3},
        "tied_lm": {"embedding": inner},
        "classifier": {"classes": 3},
    }
    part = vf.build({"part": f"{kind}/{name}", **more.get(name, {})}, dim=D)
    x = part.example_inputs(B, L) if kind == "embedding" else torch.zeros(B, L, D)
    out = part(x, {})
    out = out[0] if isinstance(out, tuple) else out
    shape = parse_shape(x.shape)
    told = part.out_shape(part.spec.args, shape, {}) if kind == "embedding" else part.out_shape(part.spec.args, shape)
    assert told == tuple(out.shape)
    assert kind == "head" or (part.takes(part.spec.args) == "ids") == (not x.is_floating_point())


def test_blocks_of_such_steps_are_recomputed():
    block = Block.spec(lines=[step("multi_head", heads=H), step("mlp")], label="Block #1")
    lines, inputs = [block, block], {"x": ("B", "L", D)}
    x = torch.randn(B, L, D, dtype=torch.float64)
    plain = model(lines, inputs)
    again = vf.build(ProgramModel.spec(lines=lines, inputs=inputs, executor="checkpoint")).double()
    again.load_state_dict(plain.state_dict())
    for built in (plain, again):
        built({"x": x})["x"].square().sum().backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_a_published_stream_that_is_not_named_is_refused_at_the_call():
    """In a layer, streams come in from around it, and what is published of them is known when they do."""
    lines = [
        step("split_heads", ("x",), ("q",), heads=H),
        step("features", class_tokens=2),
        step("split_heads", ("x",), ("k",), heads=H),
        step("softmax", ("q", "k", "k")),
        step("merge_heads"),
    ]
    program = vf.build(Program.spec(lines=lines, dim=D))
    x = torch.randn(B, L, D)
    assert program(x, {}).shape == x.shape
    with pytest.raises(ShapeError, match="publishes valid: name it among what the step writes"):
        program(x, {"valid": torch.ones(B, L, dtype=torch.bool)})


def test_an_attention_that_hands_something_on_is_no_step() -> None:
    attention = ValueResidual(attention=SoftmaxAttention(causal=True), dim=8, kv_heads=2)
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    with pytest.raises(ShapeError, match="hands first_values on to later layers"):
        adapters._run_attention(attention, (q, k, v), {"first_values": ()}, "step", {})
