from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from torch import Tensor

import variform as vf
from tests.dialects.configaformers.running import no_tensors
from variform.core.dims import Shape, parse_shape
from variform.core.part import Facts
from variform.core.registry import unregister
from variform.parts.kinds import CONTENTS, Op
from variform.parts.op.heads import MergeHeads, SplitHeads
from variform.parts.op.tokenwise import ActivationOp, CopyOp, LinearOp, MergeOp
from variform.stack.lines import Block, Step
from variform.stack.program import ProgramModel
from variform.stack.trace import Trace, trace_lines
from variform.stack.values import Value, in_words, input_values


def step(op: Any, reads: str = "x", into: str = "x") -> vf.Spec:
    return Step.spec(op=op, reads=reads.split(), into=into.split())


def block(*lines: vf.Spec, label: str = "layer") -> vf.Spec:
    return Block.spec(lines=lines, label=label)


def traced(*lines: vf.Spec, **inputs: list[Any]) -> Trace:
    inputs = inputs or {"x": ["B", "L", 16]}
    with no_tensors():
        spec = vf.resolve(ProgramModel.spec(lines=lines, inputs=inputs, strict=False))
    return trace_lines(spec["lines"], input_values({name: parse_shape(shape) for name, shape in inputs.items()}))


def refused(*lines: vf.Spec, **inputs: list[Any]) -> list[tuple[str, str]]:
    with no_tensors(), pytest.raises(vf.ConfigError) as caught:
        vf.build(ProgramModel.spec(lines=lines, inputs=inputs or {"x": ["B", "L", 16]}, strict=False))
    return [(problem.path, str(problem)) for problem in caught.value.problems]


# ---- contents ----


class Toy(Op):
    """Takes what it is told to take, and leaves it as it is."""

    def __init__(self, out: str = "") -> None:
        super().__init__()
        self.out = out

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        return inputs[:1]

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0]


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    """Ops named after what they take: `ids`, `features`, ...; `pair` takes scores and a mask."""

    def op(name: str, *accepts: str) -> None:
        class Taker(Toy):
            arity: ClassVar[int | None] = len(accepts)

            @classmethod
            def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
                return (args["out"],)

        Taker.accepts = tuple(frozenset(places.split("|")) for places in accepts)
        vf.register(name)(Taker)

    for kind in CONTENTS:
        op(f"take_{kind}", kind)
    op("take_scores_or_mask", "scores|mask")
    op("take_pair", "scores", "mask")
    yield
    for name in [f"take_{kind}" for kind in CONTENTS] + ["take_scores_or_mask", "take_pair"]:
        unregister("op", name)


def take(kind: str, reads: str = "x", into: str = "y", out: str = "") -> vf.Spec:
    return step(vf.from_dict({"part": f"op/take_{kind}", "out": out}), reads, into)


@pytest.mark.parametrize("kind", CONTENTS)
def test_an_open_input_is_what_its_first_reader_takes(kind: str) -> None:
    assert traced(take(kind), take(kind)).uses.of(Value(None, "", "", "x")) == {kind}
    other = next(name for name in CONTENTS if name != kind)
    ((path, text),) = refused(take(kind), take(other))
    assert path == "lines.1.reads"
    assert f"line 2 (take_{other}): takes {other}, and reads 'x' (B, L, 16)" in text
    assert f"is the input 'x', and line 1 (take_{kind}) reads it as {kind}" in text


def test_readers_narrow_an_input_step_by_step() -> None:
    trace = traced(step(LinearOp.spec(), "x", "y"), take("scores_or_mask"), take("mask"))
    assert trace.uses.of(Value(None, "", "", "x")) == {"mask"}
    ((_, text),) = refused(take("scores_or_mask"), take("mask"), take("scores"))
    assert "line 2 (take_mask) reads it as mask" in text
    ((_, text),) = refused(step(LinearOp.spec(), "x", "y"), take("ids"))
    assert "line 1 (linear) reads it as anything but ids" in text


def test_a_copy_of_an_open_input_is_the_input() -> None:
    ((_, text),) = refused(step(CopyOp.spec(), "x", "c"), take("ids", "c"), take("mask", "x"))
    assert "is the input 'x', and line 2 (take_ids) reads it as ids" in text


def test_what_a_line_makes_is_known_with_the_line() -> None:
    trace = traced(take("features", out="scores"), take("pair", "y x2", "z", out="mask"), x=["B", 4], x2=["B", 4])
    assert [row.holds for row in trace.rows] == [("scores",), ("mask",)]
    assert str(trace.values["z"]) == "(B, 4) from line 2 (take_pair)"
    ((_, text),) = refused(take("features", out="scores"), take("heads", "y"))
    assert "takes heads, and reads 'y' (B, L, 16), which holds scores from line 1 (take_features)" in text


def test_each_place_takes_its_own() -> None:
    ((_, text),) = refused(take("pair", "x x", "y"))  # one input cannot be both
    assert "takes mask, and reads 'x'" in text
    assert "line 1 (take_pair) reads it as scores" in text
    found = refused(take("ids", "x", "i", out="ids"), take("pair", "i i", "y"))
    assert [path for path, _ in found] == ["lines.1.reads"] * 2


def test_what_is_open_stays_open() -> None:
    trace = traced(take("features"), take("ids", "y", "a"), step(MergeOp.spec(), "x y", "b"))
    assert [row.holds for row in trace.rows] == [("",)] * 3


def test_parts_that_are_no_ops_take_features_and_give_them() -> None:
    inputs = {"ids": ["B", "L"]}
    embed = step({"part": "embedding/tokens", "vocab_size": 7, "dim": 8}, "ids", "x")
    trace = traced(embed, step({"part": "layer_norm"}), step({"part": "mlp"}), **inputs)
    assert [row.holds for row in trace.rows] == [("features",)] * 3
    assert trace.uses.of(Value(None, "", "", "ids")) == {"ids"}
    (first,) = refused(embed, step(SplitHeads.spec(heads=2)), step({"part": "mlp"}), **inputs)
    assert "takes features, and reads 'x' (B, 2, L, 4), which holds heads" in first[1]
    assert "merge_heads of 'x' first" in first[1]


def test_norms_and_maps_of_heads_are_legitimate() -> None:
    lines = [
        step(SplitHeads.spec(heads=2)),
        step({"part": "layer_norm"}),
        step(LinearOp.spec()),
        step(MergeHeads.spec()),
    ]
    assert [row.holds for row in traced(*lines).rows] == [("heads",)] * 3 + [("features",)]


def test_contents_in_words() -> None:
    assert in_words(frozenset(CONTENTS)) == "anything"
    assert in_words(frozenset(CONTENTS) - {"ids"}) == "anything but ids"
    assert in_words(frozenset({"heads", "features"})) == "features or heads"


# ---- copies of blocks ----


def layer() -> vf.Spec:
    copy, out = step(CopyOp.spec(), "x", "r"), step(MergeOp.spec(), "r x")
    return block(copy, step({"part": "layer_norm"}), step(LinearOp.spec(out=24)), step(LinearOp.spec(out=16)), out)


def test_copies_are_followed_once_and_come_to_the_same() -> None:
    one = layer()
    again = traced(step(LinearOp.spec()), *[one] * 5, step(LinearOp.spec()))
    apart = traced(step(LinearOp.spec()), *[layer() for _ in range(5)], step(LinearOp.spec()))
    assert len(again.sound) == 1
    assert again.rows == apart.rows
    assert again.values == apart.values
    assert again.rows[-2].where == "layer, repeat 5, line 5 (merge)"
    assert again.rows[-2].path == "lines.5.lines.4"
    assert again.copies == apart.copies


def test_a_copy_that_reads_something_else_is_followed_anew() -> None:
    half = block(step(ActivationOp.spec(functions=["gelu", "none"])))
    trace = traced(half, half, step(LinearOp.spec(out=16)), half)
    assert [row.writes[0][1][-1] for row in trace.rows] == [8, 4, 16, 8]


def test_shared_blocks_are_one_module_still() -> None:
    shared = vf.Shared("s", layer())
    model = vf.build(ProgramModel.spec(lines=[shared, vf.Shared("s"), shared], inputs={"x": ["B", "L", 16]}))
    assert len({id(line) for line in model.lines.in_order()}) == 1
    assert vf.resolve(model.spec) == model.spec


def test_a_broken_block_is_told_once_and_another_copy_of_its_heading_too() -> None:
    wrong = block(step(LinearOp.spec(), "nothing", "y"), step(LinearOp.spec()))
    other = block(step(LinearOp.spec(), "nought", "y"), step(LinearOp.spec()))
    found = refused(wrong, wrong, other, wrong)
    assert [path for path, _ in found] == ["lines.0.lines.0.reads", "lines.2.lines.0.reads"]
    assert "layer, repeat 2, line 1" in found[1][1]


def test_what_a_broken_block_does_not_touch_is_checked_after_it() -> None:
    wrong = block(step(LinearOp.spec(), "nothing", "y"), step(CopyOp.spec(), "x", "r"), step(LinearOp.spec()))
    after = [step(SplitHeads.spec(heads=3), "r", "h"), step(LinearOp.spec(), "y", "z"), step(MergeOp.spec(), "z q")]
    paths = [path for path, _ in refused(wrong, wrong, *after)]
    assert paths == ["lines.0.lines.0.reads", "lines.2", "lines.4.reads"]


def test_a_block_that_changes_its_input_is_not_guessed_at_after_a_mistake() -> None:
    wrong = block(step(LinearOp.spec(), "nothing", "y"), step(ActivationOp.spec(functions=["gelu", "none"])))
    assert [path for path, _ in refused(wrong, wrong, step(SplitHeads.spec(heads=3)))] == ["lines.0.lines.0.reads"]
