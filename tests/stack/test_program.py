import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import variform as vf
from variform.core.dims import Shape
from variform.core.part import Facts
from variform.core.registry import unregister
from variform.parts.kinds import Op
from variform.parts.op.heads import MergeHeads, Offset, Scores, SplitHeads, WeightedSum
from variform.parts.op.rotary import Rotary
from variform.parts.op.tokenwise import ActivationOp, CopyOp, EmbeddingOp, LinearOp, MergeOp
from variform.stack.lines import Block, Step
from variform.stack.program import Program, ProgramModel

DIM, HEADS = 16, 4


def step(op: Any, reads: str = "x", into: str = "x") -> vf.Spec:
    return Step.spec(op=op, reads=reads.split(), into=into.split())


def attention(causal: bool | None = None, rotary: bool = False) -> list[vf.Spec]:
    turn = [step(Rotary.spec(features=2), name, name) for name in ("q", "k")] if rotary else []
    return [
        step(LinearOp.spec(bias=False), "x", "q"),
        step(LinearOp.spec(bias=False), "x", "k"),
        step(LinearOp.spec(bias=False), "x", "v"),
        *(step(SplitHeads.spec(heads=HEADS), name, name) for name in ("q", "k", "v")),
        *turn,
        step(Scores.spec(), "q k", "s"),
        step(WeightedSum.spec() if causal is None else WeightedSum.spec(causal=causal), "v s", "x"),
        step(MergeHeads.spec()),
        step(LinearOp.spec(bias=False)),
    ]


def layer_of(lines: list[vf.Spec]) -> list[vf.Spec]:
    return [step(CopyOp.spec(), "x", "r"), step({"part": "layer_norm"}), *lines, step(MergeOp.spec(), "r x")]


def model_of(*lines: vf.Spec, executor: str = "plain", **inputs: list[Any]) -> vf.Spec:
    return ProgramModel.spec(lines=lines, inputs=inputs or {"x": ["B", "L", DIM]}, executor=executor)


def transformer(body: vf.Spec, causal: bool = True) -> vf.Spec:
    return vf.from_dict(
        {
            "part": "transformer",
            "dim": DIM,
            "heads": HEADS,
            "vocab_size": 11,
            "causal": causal,
            "embedding": "tokens",
            "stacks": [{"part": "stack", "layers": [{"part": "sublayer", "body": body}], "norm": "layer_norm"}],
            "head": "lm",
        }
    )


# ---- as a layer ----


@pytest.mark.parametrize("causal", [True, False])
def test_attention_as_a_program_equals_the_native_mixer(causal: bool) -> None:
    program = vf.build(transformer(Program.spec(lines=attention()), causal)).double()
    native = vf.build(transformer(vf.from_dict({"part": "multi_head"}), causal)).double()
    names = {"0": "q", "1": "k", "2": "v", "9": "out"}
    weights = {}
    for name, value in program.state_dict().items():
        before, sign, after = name.partition("body.lines.")
        weights[f"{before}body.{names[after.split('.')[0]]}.weight" if sign else name] = value
    native.load_state_dict(weights, strict=True)
    ids = torch.randint(0, 11, (2, 7))
    torch.testing.assert_close(program(ids), native(ids), rtol=1e-10, atol=1e-10)


def test_a_program_inherits_causal() -> None:
    model = vf.build(transformer(Program.spec(lines=attention(rotary=True)))).double()
    ids = torch.randint(0, 11, (2, 9))
    before = model(ids)
    ids[:, 4:] = (ids[:, 4:] + 1) % 11
    assert torch.equal(before[:, :4], model(ids)[:, :4])


def test_what_its_steps_would_ignore_is_refused() -> None:
    model = vf.build(transformer(Program.spec(lines=attention()), causal=False))
    ids, valid = torch.randint(0, 11, (2, 7)), torch.ones(2, 7, dtype=torch.bool)
    with pytest.raises(vf.ShapeError, match="valid"):
        model(ids, valid=valid)
    with pytest.raises(vf.ConfigError, match="decod"):
        model.init_state(2, 8)


def test_native_parts_are_steps_and_keep_their_streams_and_state() -> None:
    lines = [
        step(CopyOp.spec(), "x", "r"),
        step({"part": "rms_norm"}),
        step({"part": "multi_head"}),
        step(MergeOp.spec(), "r x"),
        Block.spec(lines=[step(CopyOp.spec(), "x", "r"), step({"part": "multi_head"}), step(MergeOp.spec(), "r x")]),
        step({"part": "mlp"}),
    ]
    model = vf.build(transformer(Program.spec(lines=lines))).double()
    ids = torch.randint(0, 11, (2, 11))
    whole = model(ids)
    state, parts, start = model.init_state(2, 16), [], 0
    for length in (4, 1, 1, 5):
        with torch.no_grad():
            out, state = model(ids[:, start : start + length], state=state)
        parts.append(out)
        start += length
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-10)
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), ids), 1)
    valid = torch.arange(14).expand(2, -1) >= 3
    torch.testing.assert_close(model(padded, valid=valid)[:, 3:], whole, rtol=1e-10, atol=1e-10)


def test_a_program_reads_the_streams_it_declares() -> None:
    lines = [step(MergeOp.spec(), "x early")]
    program = Program.spec(lines=lines, streams={"early": ["B", "L", DIM]})
    stack = {
        "part": "stack",
        "dim": DIM,
        "layers": [{"part": "publish", "stream": "early"}, {"part": "sublayer", "body": "mlp"}, program],
    }
    layers = vf.build(stack)
    x = torch.randn(2, 3, DIM)
    torch.testing.assert_close(layers(x, {}), layers.layers[1](x, {}) + x)
    with pytest.raises(vf.ConfigError, match="'early', which no part before it publishes"):
        vf.build({**stack, "layers": [program]})


@pytest.mark.parametrize("executor", ["plain", "checkpoint"])
def test_compiles_whole_in_a_stack(executor: str) -> None:
    stack = {
        "part": "stack",
        "dim": DIM,
        "causal": True,
        "executor": executor,
        "layers": [Program.spec(lines=layer_of(attention(rotary=True)))] * 2,
    }
    layers = vf.build(stack)
    x = torch.randn(2, 5, DIM)
    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, {}), layers(x, {}))


# ---- as a model ----


def whole_model(executor: str = "plain") -> Any:
    block = Block.spec(lines=layer_of(attention(rotary=True, causal=True)), label="layer")
    ids = {"ids": ["B", "L"]}
    embedding = step(EmbeddingOp.spec(classes=11, out=DIM), "ids", "x")
    return model_of(embedding, block, block, step(LinearOp.spec(out=11)), executor=executor, **ids)


def test_the_inputs_are_left_alone() -> None:
    model = vf.build(model_of(step(LinearOp.spec()), step(LinearOp.spec())))
    x = torch.randn(2, 3, DIM)
    inputs, kept = {"x": x}, x.clone()
    out = model(inputs)
    assert list(inputs) == ["x"]
    assert inputs["x"] is x
    assert torch.equal(x, kept)
    assert out["x"] is not x


def test_gradients_are_the_same_under_checkpointing() -> None:
    plain = vf.build(whole_model()).double()
    blocks = vf.build(whole_model("checkpoint")).double()
    blocks.load_state_dict(plain.state_dict())
    ids = torch.randint(0, 11, (2, 7))
    runs = [
        plain({"ids": ids})["x"],
        blocks({"ids": ids})["x"],
        checkpoint(plain, {"ids": ids}, use_reentrant=False)["x"],
    ]
    models = [plain, blocks, plain]
    first = None
    for out, model in zip(runs, models, strict=True):
        grads = torch.autograd.grad(out.square().sum(), list(model.parameters()))
        if first is None:
            first = grads
        assert all(torch.equal(a, b) for a, b in zip(grads, first, strict=True))


def test_checkpointing_keeps_less() -> None:
    def saved(executor: str) -> int:
        model, total = vf.build(whole_model(executor)), 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model({"ids": torch.randint(0, 11, (2, 32))})
        return total

    assert saved("checkpoint") < saved("plain") / 2


def test_compiles_whole() -> None:
    model = vf.build(whole_model())
    ids = torch.randint(0, 11, (2, 7))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled({"ids": ids})["x"], model({"ids": ids})["x"])


def test_copies_and_the_codec_round_trip() -> None:
    model = vf.build(whole_model())
    spec = whole_model()
    assert vf.from_yaml(vf.to_yaml(spec)) == spec
    assert vf.from_yaml(vf.to_yaml(model.spec)) == model.spec
    assert vf.resolve(model.spec) == model.spec
    twin = copy.deepcopy(model)
    ids = torch.randint(0, 11, (1, 4))
    assert torch.equal(twin({"ids": ids})["x"], model({"ids": ids})["x"])
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert not torch.equal(twin({"ids": ids})["x"], model({"ids": ids})["x"])


def test_a_shared_block_is_one_module() -> None:
    block = vf.Shared("block", Block.spec(lines=[step(LinearOp.spec()), step(ActivationOp.spec())]))
    model = vf.build(model_of(block, vf.Shared("block"), block))
    assert sum(p.numel() for p in model.parameters()) == DIM * DIM + DIM
    x = torch.randn(2, 3, DIM)
    y = x
    for _ in range(3):
        y = torch.nn.functional.gelu(model.lines[0].lines[0].op(y))
    torch.testing.assert_close(model({"x": x})["x"], y)
    assert vf.from_yaml(vf.to_yaml(model.spec)) == model.spec


# ---- liveness ----


@pytest.fixture
def witness() -> Any:
    """An op that notes which earlier results are still alive when it runs."""
    alive: list[list[bool]] = []
    made: list[weakref.ref[Tensor]] = []

    @vf.register("witness")
    class Witness(Op):
        """Adds one and looks around."""

        def __init__(self) -> None:
            super().__init__()

        @classmethod
        def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
            return inputs

        def forward(self, *inputs: Tensor) -> Tensor:
            gc.collect()
            alive.append([ref() is not None for ref in made])
            out = inputs[0] + 1
            made.append(weakref.ref(out))
            return out

    yield Witness, alive
    unregister("op", "witness")


@pytest.mark.parametrize("nested", [False, True])
def test_a_name_is_freed_after_its_last_reader(witness: Any, nested: bool) -> None:
    op, alive = witness
    lines = [
        step(op.spec(), "x", "a"),  # 0
        step(op.spec(), "a", "b"),  # 1: a is read again by the last
        step(op.spec(), "b", "b"),  # 2: the first b dies here
        step(op.spec(), "b", "b"),  # 3
        step(MergeOp.spec(), "a b", "x"),
        step(op.spec()),  # 4: a and b are gone, and so is their sum once it is read
        step(op.spec()),  # 5
    ]
    spec = model_of(Block.spec(lines=lines, label="all")) if nested else model_of(*lines)
    with torch.no_grad():
        vf.build(spec)({"x": torch.zeros(1, 2, DIM)})
    assert alive == [
        [],
        [True],
        [True, True],
        [True, False, True],
        [False, False, False, False],
        [False, False, False, False, True],
    ]


# ---- mistakes ----


def problems(*lines: vf.Spec, **more: Any) -> list[vf.errors.Problem]:
    with pytest.raises(vf.ConfigError) as caught, torch.device("meta"):
        vf.build(ProgramModel.spec(lines=lines, **{"inputs": {"x": ["B", "L", DIM]}, **more}))
    return list(caught.value.problems)


def test_a_read_without_a_writer() -> None:
    (found,) = problems(
        step(LinearOp.spec(), "x", "queries"), step(LinearOp.spec(), "querys"), outputs=["queries", "x"]
    )
    assert found.path == "lines.1.reads"
    assert "line 2 (linear): reads 'querys'" in found.message
    assert "'queries'" in found.hint


def test_a_write_that_nothing_reads() -> None:
    (found,) = problems(step(LinearOp.spec(), "x", "y"), step(LinearOp.spec()))
    assert found.path == "lines.0.into"
    assert "writes 'y', which nothing reads" in found.message


def test_a_write_that_is_overwritten_unread() -> None:
    (found,) = problems(step(LinearOp.spec(), "x", "y"), step(ActivationOp.spec(), "x", "y"), step(CopyOp.spec(), "y"))
    assert found.path == "lines.0.into"
    assert "line 2 (activation) overwrites" in found.message


def test_an_input_that_nothing_reads_and_an_output_that_nothing_writes() -> None:
    found = problems(step(LinearOp.spec()), inputs={"x": ["B", "L", DIM], "m": ["B"]}, outputs=["x", "logit"])
    assert [p.path for p in found] == ["inputs.m", "outputs"]


def test_diagnostics_in_place_of_errors() -> None:
    lines = [step(LinearOp.spec(), "x", "y"), step(LinearOp.spec())]
    model = vf.build(ProgramModel.spec(lines=lines, inputs={"x": ["B", "L", DIM]}, strict=False))
    assert [p.path for p in model.diagnostics] == ["lines.0.into"]


def test_all_problems_at_once_without_those_that_follow_from_others() -> None:
    found = problems(
        step(LinearOp.spec(out=15), "x", "q"),
        step(SplitHeads.spec(heads=4), "q", "q"),  # does not divide
        step(Scores.spec(), "q q", "s"),  # follows from it
        step(LinearOp.spec(outt=3), "x", "k"),  # no such field
        step(MergeOp.spec(), "x k"),  # follows from it
        step(MergeOp.spec(), "x"),  # x is lost by now
        step(Rotary.spec(features=2), "v", "v"),  # no such stream
    )
    assert [p.path for p in found] == ["lines.3.op.outt", "lines.1", "lines.6.reads"]


def test_numbers_of_streams() -> None:
    (found,) = problems(step(MergeOp.spec(), "x"))
    assert "takes 2 streams, and reads 1" in found.message
    (found,) = problems(step(CopyOp.spec(), "x", "x y"))
    assert "gives 1 stream, and 2 are named" in found.message
    found_both = problems(Step.spec(op=CopyOp.spec(), reads=[], into=[]))
    assert {p.path for p in found_both} == {"lines.0.reads", "lines.0.into"}


def test_features_must_be_a_number() -> None:
    (found,) = problems(step(LinearOp.spec(), "ids"), inputs={"ids": ["B", "L"]})
    assert "needs a known number of features, and ids is (B, L)" in found.message


def test_names_of_sizes_are_told_apart() -> None:
    inputs = {"x": ["B", "L", DIM], "y": ["B", "L + 1", DIM]}
    (found,) = problems(step(MergeOp.spec(), "x y"), inputs=inputs)
    assert "L is not L + 1" in found.message


def test_a_layer_must_give_back_its_shape() -> None:
    with pytest.raises(vf.ConfigError, match=r"gives back .*\(B, L, 16\)"):
        vf.build(Program.spec(lines=[step(LinearOp.spec(out=3))]), dim=DIM)
    with pytest.raises(vf.ConfigError, match="no line writes the result"):
        vf.build(Program.spec(lines=[step(LinearOp.spec())], output="z"), dim=DIM)


def test_a_bad_shape_is_named() -> None:
    with pytest.raises(vf.ConfigError, match="not a size"):
        vf.build(model_of(step(LinearOp.spec()), x=["B", "L/2", DIM]))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": (2, 3, DIM)}, "'y' is missing"),
        ({"x": (2, 3, DIM), "y": (2, 4, DIM), "z": (1,)}, "'z' is no input"),
        ({"x": (2, 3, DIM), "y": (2, 3, DIM)}, "size 1 must be 4"),
        ({"x": (2, 3, DIM), "y": (3, 4, DIM)}, "'x' says B = 2"),
        ({"x": (2, 3, DIM), "y": (2, 4, 5)}, "size 2 must be 16"),
        ({"x": (2, 3), "y": (2, 4, DIM)}, "has the shape [2, 3]"),
    ],
)
def test_inputs_are_checked_when_it_is_called(inputs: dict[str, tuple[int, ...]], words: str) -> None:
    spec = ProgramModel.spec(
        lines=[step(LinearOp.spec()), step(LinearOp.spec(), "y", "y")],
        inputs={"x": ["B", "L", DIM], "y": ["B", "L + 1", DIM]},
        outputs=["x", "y"],
    )
    model = vf.build(spec)
    assert set(model({"x": torch.zeros(2, 3, DIM), "y": torch.zeros(2, 4, DIM)})) == {"x", "y"}
    with pytest.raises(vf.ShapeError) as caught:
        model({name: torch.zeros(shape) for name, shape in inputs.items()})
    assert words in str(caught.value)


def test_an_offset_that_only_offsets_read_may_be_larger() -> None:
    lines = [step(Offset.spec(), "s o", "s")]
    shape = ["B", 2, "L", "L"]
    model = vf.build(ProgramModel.spec(lines=lines, inputs={"s": shape, "o": shape}, outputs=["s"]))
    assert model({"s": torch.zeros(3, 2, 4, 4), "o": torch.ones(1, 2, 9, 9)})["s"].shape == (3, 2, 4, 4)
    both = vf.build(
        ProgramModel.spec(
            lines=[*lines, step(MergeOp.spec(), "s o", "s")], inputs={"s": shape, "o": shape}, outputs=["s"]
        )
    )
    with pytest.raises(vf.ShapeError, match="size 2 must be 4"):
        both({"s": torch.zeros(3, 2, 4, 4), "o": torch.ones(1, 2, 9, 9)})


def test_what_is_only_merged_with_something_computed_may_be_of_batch_size_one() -> None:
    shape = ["B", 2, "L", "L"]
    inputs = {"s": shape, "o": shape}
    computed = [step(CopyOp.spec(), "s", "t"), step(MergeOp.spec(), "t o", "t")]
    model = vf.build(ProgramModel.spec(lines=computed, inputs=inputs, outputs=["t"]))
    assert model({"s": torch.zeros(3, 2, 4, 4), "o": torch.ones(1, 2, 4, 4)})["t"].eq(1).all()
    with pytest.raises(vf.ShapeError, match="size 0 must be 3"):
        model({"s": torch.zeros(3, 2, 4, 4), "o": torch.ones(2, 2, 4, 4)})
    two_inputs = [step(MergeOp.spec(), "s o", "t")]
    read_again = [*computed, step(CopyOp.spec(), "o", "u")]
    for lines in (two_inputs, read_again):
        exact = vf.build(ProgramModel.spec(lines=lines, inputs=inputs, strict=False, outputs=["t"]))
        with pytest.raises(vf.ShapeError, match="size 0 must be 3"):
            exact({"s": torch.zeros(3, 2, 4, 4), "o": torch.ones(1, 2, 4, 4)})
