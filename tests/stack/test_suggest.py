"""Hints say what mends a program: each is followed here, and the program is right then."""

from typing import Any

import pytest

import variform as vf
from tests.dialects.configaformers.running import no_tensors
from variform.parts.op.cutting import CutOp
from variform.parts.op.heads import MergeHeads, Offset, Scores, SplitHeads, WeightedSum
from variform.parts.op.sampling import DownSample, UpSample
from variform.parts.op.tokenwise import CopyOp, EmbeddingOp, LinearOp, MergeOp
from variform.stack.lines import Step
from variform.stack.program import ProgramModel

X: dict[str, list[Any]] = {"x": ["B", "L", 16]}
Lines = list[vf.Spec]


def step(op: Any, reads: str = "x", into: str = "x") -> vf.Spec:
    return Step.spec(op=op, reads=reads.split(), into=into.split())


def hint(lines: Lines, inputs: dict[str, list[Any]]) -> str:
    with no_tensors(), pytest.raises(vf.ConfigError) as caught:
        vf.build(ProgramModel.spec(lines=lines, inputs=inputs, strict=False))
    (problem,) = caught.value.problems
    return problem.hint


def linear(out: int | None = None, reads: str = "x", into: str = "x") -> vf.Spec:
    return step(LinearOp.spec() if out is None else LinearOp.spec(out=out), reads, into)


def split(name: str, heads: int = 4) -> vf.Spec:
    return step(SplitHeads.spec(heads=heads), name, name)


KEEP, ADD = step(CopyOp.spec(), "x", "r"), step(MergeOp.spec(), "r x")
HALF = step(DownSample.spec(stride=2))
SCORES = [linear(None, "x", "q"), linear(None, "x", "k")]

MENDED: list[tuple[str, Lines, vf.Spec, dict[str, list[Any]], str, Lines]] = [
    ("features", [KEEP, linear(24)], ADD, X, "put a linear to 16 features on 'x' first", [linear(16)]),
    ("heads", [KEEP, split("x")], ADD, X, "merge_heads of 'x' first", [step(MergeHeads.spec())]),
    (
        "a shorter sequence",
        [KEEP, HALF],
        ADD,
        X,
        "bring 'x' to the length L: a linear to 32 features, up_sample by 2 and cut it there",
        [linear(32), step(UpSample.spec(chunks=2)), step(CutOp.spec(start=0, stop="L"), "x r")],
    ),
    (
        "a shorter residual",
        [step(DownSample.spec(stride=3), "x", "r")],
        ADD,
        X,
        "down_sample 'x' by 3 as well",
        [step(DownSample.spec(stride=3))],
    ),
    (
        "an even length",
        [KEEP, step(DownSample.spec(stride=2))],
        ADD,
        {"x": ["B", "2*L", 16]},
        "bring 'x' to the length 2*L: a linear to 32 features, up_sample by 2",
        [linear(32), step(UpSample.spec(chunks=2))],
    ),
    (
        "no heads",
        SCORES,
        step(Scores.spec(), "q k", "s"),
        X,
        "split_heads of 'q' and 'k' first",
        [split("q"), split("k")],
    ),
    (
        "heads of one side",
        [*SCORES, split("q")],
        step(Scores.spec(), "q k", "s"),
        X,
        "split_heads of 'k' into 4 heads first",
        [split("k")],
    ),
    (
        "narrow keys",
        [linear(None, "x", "q"), linear(8, "x", "k"), split("q"), split("k")],
        step(Scores.spec(), "q k", "s"),
        X,
        "put a linear to 4 features on 'k' first",
        [linear(4, "k", "k")],
    ),
    (
        "ids",
        [step(EmbeddingOp.spec(classes=5, out=8), "ids", "x")],
        step(MergeOp.spec(how="cat"), "x ids"),
        {"ids": ["B", 7]},
        "put an embedding before it, which turns the ids 'ids' into features",
        [step(EmbeddingOp.spec(classes=5, out=8), "ids", "ids")],
    ),
]


@pytest.mark.parametrize(
    ("before", "wrong", "inputs", "words", "mending"), [case[1:] for case in MENDED], ids=[case[0] for case in MENDED]
)
def test_what_a_hint_says_mends_the_program(
    before: Lines, wrong: vf.Spec, inputs: dict[str, list[Any]], words: str, mending: Lines
) -> None:
    assert words in hint([*before, wrong], inputs)
    vf.resolve(ProgramModel.spec(lines=[*before, *mending, wrong], inputs=inputs, strict=False, outputs=wrong["into"]))


def test_one_name_for_two_sizes() -> None:
    text = hint([step(MergeOp.spec(), "x y")], {"x": ["B", "L", 4], "y": ["B", "C", 4]})
    assert text.startswith("C and L may differ: if they are always equal, give them one name")
    vf.resolve(ProgramModel.spec(lines=[step(MergeOp.spec(), "x y")], inputs={"x": ["B", "L", 4], "y": ["B", "L", 4]}))


def test_another_stream_that_fits() -> None:
    lines = [linear(None, "x", "q"), split("q"), step(Scores.spec(), "q q", "s"), linear(20, "x", "values_wide")]
    text = hint([*lines, linear(12, "x", "v"), step(WeightedSum.spec(causal=False), "value_wide s", "y")], X)
    assert text == "did you mean 'values_wide'?"
    text = hint([*lines, linear(18, "x", "values"), step(WeightedSum.spec(causal=False), "values s", "y")], X)
    assert "read 'values_wide' (B, L, 20) in place of 'values'" in text


def test_a_declared_shape() -> None:
    lines = [linear(None, "x", "q"), split("q"), step(Scores.spec(), "q q", "s"), step(Offset.spec(), "s o", "s")]
    assert "declare the input 'o' as (B, 4, L, L)" in hint(lines, {**X, "o": ["B", 2, "L", "L"]})


def test_a_name_that_nothing_is_like() -> None:
    assert hint([linear(None, "data", "y")], X) == "live here: x (B, L, 16); or declare 'data' among the inputs"


def test_two_lengths_that_nothing_brings_together() -> None:
    text = hint([step(DownSample.spec(stride=2), "x", "r"), step(DownSample.spec(stride=3)), ADD], X)
    assert text == "change one of the lines that these streams come from, so that they agree"


def test_hints_are_quick_among_many_streams() -> None:
    lines = [linear(None, "x", f"stream_{i}") for i in range(300)]
    assert "linear to 16 features" in hint([*lines, linear(8), step(MergeOp.spec(), "stream_7 x")], X)
