"""Instances of steps, blocks and programs, each inside a program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from variform.core.spec import Spec
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.norm.norms import LayerNorm, RMSNorm
from variform.parts.op.heads import MergeHeads, Offset, Scores, SplitHeads, WeightedSum
from variform.parts.op.rotary import Rotary
from variform.parts.op.tokenwise import ActivationOp, CopyOp, EmbeddingOp, LinearOp, MergeOp
from variform.stack.lines import Block, Step
from variform.stack.program import Program, ProgramModel
from variform.stack.sublayer import Sublayer
from variform.testing.filling import minimal
from variform.testing.hosts import FEED, Host, in_layers
from variform.testing.samples import Sample, samples_for


def _attention_lines(**ops: Spec) -> list[Spec]:
    """Attention written out, with some of its steps exchanged."""
    chosen = {
        "split": SplitHeads.spec(heads=4),
        "rotary": Rotary.spec(features=4, max_len=200),
        "scores": Scores.spec(),
        "offset": Offset.spec(),
        "sum": WeightedSum.spec(),
        "linear": LinearOp.spec(),
        "merge": MergeHeads.spec(),
        **ops,
    }
    return [
        Step.spec(op=chosen["linear"], reads=("x",), into=("v",)),
        Step.spec(op=chosen["split"], reads=("x",), into=("q",)),
        Step.spec(op=chosen["rotary"], reads=("q",), into=("q",)),
        Step.spec(op=chosen["scores"], reads=("q", "q"), into=("s",)),
        Step.spec(op=chosen["offset"], reads=("s", "s"), into=("s",)),
        Step.spec(op=chosen["sum"], reads=("v", "s"), into=("y",)),
        Step.spec(op=SplitHeads.spec(heads=4), reads=("y",), into=("y",)),
        Step.spec(op=chosen["merge"], reads=("y",), into=("x",)),
    ]


def _in_program(lines: Callable[[Spec], list[Any]]) -> Host:
    return in_layers(lambda spec: Sublayer.spec(body=Program.spec(lines=lines(spec))))


def _tokenwise(spec: Spec) -> list[Any]:
    return [Step.spec(op=spec, into=("y",)), Step.spec(op=LinearOp.spec(out=16), reads=("y",))]


def _as_step(part: type[Any], name: str) -> None:
    @samples_for(part)
    def _sample() -> list[Sample]:
        return [Sample(minimal(part), host=_in_program(lambda spec: _attention_lines(**{name: spec})))]


for _part, _name in ((SplitHeads, "split"), (MergeHeads, "merge"), (Scores, "scores"), (WeightedSum, "sum")):
    _as_step(_part, _name)


@samples_for(Offset)
def _offset() -> list[Sample]:
    return [Sample(Offset.spec(scaled=True), host=_in_program(lambda spec: _attention_lines(offset=spec)))]


@samples_for(Rotary)
def _rotary_op() -> list[Sample]:
    spec = Rotary.spec(features=2, max_len=200)
    return [Sample(spec, host=_in_program(lambda spec: _attention_lines(rotary=spec)))]


@samples_for(LinearOp)
def _linear_op() -> list[Sample]:
    return [Sample(LinearOp.spec(out=8, norm=RMSNorm.spec(), out_norm=LayerNorm.spec()), host=_in_program(_tokenwise))]


@samples_for(ActivationOp)
def _activation_op() -> list[Sample]:
    return [Sample(ActivationOp.spec(functions=("silu", "none"), dim=16), host=_in_program(_tokenwise))]


@samples_for(CopyOp)
def _copy() -> list[Sample]:
    def lines(spec: Spec) -> list[Any]:
        return [Step.spec(op=spec, into=("y",)), Step.spec(op=MergeOp.spec(how="add"), reads=("x", "y"))]

    return [Sample(minimal(CopyOp), host=_in_program(lines))]


@samples_for(MergeOp)
def _merge() -> list[Sample]:
    def lines(spec: Spec) -> list[Any]:
        return [Step.spec(op=LinearOp.spec(), into=("y",)), Step.spec(op=spec, reads=("x", "y"))]

    return [Sample(MergeOp.spec(how=how), how, _in_program(lines)) for how in ("add", "multiply", "subtract")]


@samples_for(EmbeddingOp)
def _embedding_op() -> list[Sample]:
    return [Sample(EmbeddingOp.spec(classes=11, out=16), host=lambda spec, setting: _program_model(spec))]


def _program_model(embedding: Spec) -> Spec:
    lines = [Step.spec(op=embedding), Block.spec(lines=[Step.spec(op=LinearOp.spec())])]
    return ProgramModel.spec(lines=lines, inputs={"x": ("B", "L")})


@samples_for(ProgramModel)
def _program() -> list[Sample]:
    return [Sample(_program_model(EmbeddingOp.spec(classes=11, out=16)))]


@samples_for(Program)
def _program_layer() -> list[Sample]:
    mixed = [Step.spec(op=MultiHead.spec(), into=("y",)), Step.spec(op=FEED, reads=("y",))]
    return [
        Sample(Program.spec(lines=mixed), "parts as steps"),
        Sample(Program.spec(lines=_attention_lines()), "attention written out"),
    ]


@samples_for(Step)
def _step() -> list[Sample]:
    return [Sample(Step.spec(op=LinearOp.spec()), host=_in_program(lambda spec: [spec]))]


@samples_for(Block)
def _block() -> list[Sample]:
    spec = Block.spec(lines=[Step.spec(op=LinearOp.spec()), Step.spec(op=ActivationOp.spec())])
    return [Sample(spec, host=_in_program(lambda spec: [spec, spec]))]
