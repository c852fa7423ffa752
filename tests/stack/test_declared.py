"""Streams against what the parts of a step declare."""

from typing import Any

import pytest

import variform as vf
from variform.core.dims import parse_dim, parse_shape
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.op.tokenwise import LinearOp, MergeOp
from variform.stack.declared import _fits
from variform.stack.lines import Block, Step
from variform.stack.program import Program, ProgramModel
from variform.stack.sublayer import Sublayer


def inner(*sizes: int | str) -> Any:
    lines = [
        Step.spec(op=LinearOp.spec(out=32), reads=("c",), into=("c",)),
        Step.spec(op=MergeOp.spec(), reads=("x", "c")),
    ]
    return Program.spec(lines=lines, streams={"c": sizes})


def model(op: Any, name: str, *sizes: int | str) -> Any:
    inputs = {"x": ("B", "L", 32), name: sizes}
    return vf.resolve(ProgramModel.spec(lines=[Step.spec(op=op, reads=("x", name))], inputs=inputs))


@pytest.mark.parametrize("wrap", [False, True])
def test_a_stream_has_the_shape_that_a_nested_program_declares(wrap: bool) -> None:
    def op(*sizes: int | str) -> Any:
        return Sublayer.spec(body=inner(*sizes)) if wrap else inner(*sizes)

    model(op("B", "L", 16), "c", "B", "L", 16)
    for given in (("B", "L", 24), ("B", "M", 16), ("B", "L"), ("B", "L + 1", 16)):
        with pytest.raises(vf.ConfigError, match=r"takes the stream 'c' of shape \(B, L, 16\), and it is"):
            model(op("B", "L", 16), "c", *given)


def test_other_names_take_what_is_there_once() -> None:
    assert _fits(parse_shape(("k", "k")), (3, 3), {})
    assert not _fits(parse_shape(("k", "k")), (3, 4), {})
    assert _fits(parse_shape(("k", "2*k")), parse_shape(("M", "2*M")), {})
    assert not _fits(parse_shape(("k", "2*k")), parse_shape(("M", "M")), {})


def test_a_context_has_the_features_of_the_cross_attention() -> None:
    model(CrossMultiHead.spec(heads=4), "context", "B", "M", 32)
    model(CrossMultiHead.spec(heads=4, dim_context=16), "context", "B", "M", 16)
    with pytest.raises(vf.ConfigError, match=r"\(B, M, 32\), and it is \(B, M, 16\)"):
        model(CrossMultiHead.spec(heads=4), "context", "B", "M", 16)
    with pytest.raises(vf.ConfigError, match=r"'context'"):
        model(Sublayer.spec(body=CrossMultiHead.spec(heads=4)), "context", "C", "M", 32)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_whole_model_must_name_what_its_parts_need(wrap: bool) -> None:
    op = CrossMultiHead.spec(heads=4)
    step = Step.spec(op=Sublayer.spec(body=op) if wrap else op)
    with pytest.raises(vf.ConfigError) as caught:
        vf.resolve(ProgramModel.spec(lines=[Block.spec(lines=[step], label="b")] * 3, inputs={"x": ("B", "L", 32)}))
    (problem,) = caught.value.problems
    assert problem.path == "lines.0.lines.0.reads"
    assert "needs the stream 'context', and reads x" in problem.message
    assert vf.resolve(Program.spec(lines=[step], dim=32)).part is Program  # the model around it may give it


def test_an_expression_at_sizes() -> None:
    dim = parse_dim("2*L*B + (L + 1)//2 - 3")
    assert not isinstance(dim, int)
    assert dim.at({}) == dim
    assert dim.at({"L": 5}) == parse_dim("10*B")
    assert dim.at({"L": 5, "B": 2}) == 20
    assert dim.at({"L": parse_shape(("2*M",))[0]}) == parse_dim("4*M*B + M - 3")
