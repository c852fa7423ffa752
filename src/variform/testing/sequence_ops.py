"""Instances of the steps that scale, shift, sample, cut, join, regroup, rearrange and unembed, each in a program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from variform.core.spec import Spec
from variform.parts.op.cutting import CatOp, CutOp
from variform.parts.op.packing import BatchToFeatures, PackBatch, UnpackBatch, UnpackFeatures
from variform.parts.op.rearrange import Rearrange
from variform.parts.op.sampling import DownSample, UpSample
from variform.parts.op.scale import DropoutOp, ScaleOp
from variform.parts.op.shift import ShiftOp
from variform.parts.op.tokenwise import EmbeddingOp, LinearOp
from variform.parts.op.unembed import Unembed
from variform.stack.lines import Step
from variform.stack.program import Program, ProgramModel
from variform.stack.sublayer import Sublayer
from variform.testing.hosts import FACTS, Host, in_layers
from variform.testing.samples import Sample, samples_for

Lines = Callable[[Spec], list[Any]]
DIM = FACTS["dim"]
LENGTH = FACTS["max_seq_len"]


def step(op: Spec, *reads: str) -> Spec:
    """A step that writes `y`."""
    return Step.spec(op=op, reads=reads or ("y",), into=("y",))


END = Step.spec(op=LinearOp.spec(out=DIM), reads=("y",))


def _in_layers(lines: Lines) -> Host:
    return in_layers(lambda spec: Sublayer.spec(body=Program.spec(lines=[*lines(spec), END])))


def _of_one_length(lines: Lines) -> Host:
    """A model of ids of one length."""
    start = Step.spec(op=EmbeddingOp.spec(classes=FACTS["vocab_size"], out=DIM), into=("y",))

    def host(spec: Spec, setting: Any) -> Spec:
        return ProgramModel.spec(lines=[start, *lines(spec), END], inputs={"x": ("B", LENGTH)})

    return host


@samples_for(ScaleOp)
def _scale() -> list[Sample]:
    return [Sample(ScaleOp.spec(size=DIM), host=_in_layers(lambda spec: [step(spec, "x")]))]


@samples_for(DropoutOp)
def _dropout() -> list[Sample]:
    return [Sample(DropoutOp.spec(p=0.0), host=_in_layers(lambda spec: [step(spec, "x")]))]


@samples_for(ShiftOp)
def _shift() -> list[Sample]:
    def host(spec: Spec) -> list[Any]:
        return [step(spec, "x")]

    back = ShiftOp.spec(pieces=[(0, DIM // 2, -1), (DIM // 2, DIM, 0), (3, 7, -2)])
    ahead = ShiftOp.spec(pieces=[(0, 5, 1), (0, DIM, 0)])
    return [Sample(back, host=_in_layers(host)), Sample(ahead, "ahead", _in_layers(host))]


def _sampled(down: Spec, up: Spec) -> list[Any]:
    """Every second token, each cut in two, down to as many as there were."""
    return [step(down, "x"), step(up), step(CutOp.spec(start=0, stop="L"), "y", "x")]


@samples_for(DownSample)
def _down_sample() -> list[Sample]:
    host = _in_layers(lambda spec: _sampled(spec, UpSample.spec(chunks=2)))
    return [Sample(DownSample.spec(stride=2), host=host)]


@samples_for(UpSample)
def _up_sample() -> list[Sample]:
    host = _in_layers(lambda spec: _sampled(DownSample.spec(stride=4), spec))
    return [Sample(UpSample.spec(chunks=4), host=host)]


@samples_for(CutOp)
def _cut() -> list[Sample]:
    longer = UnpackFeatures.spec(out=DIM // 2)
    tokens = _in_layers(lambda spec: [step(longer, "x"), step(spec, "y", "x")])
    return [
        Sample(CutOp.spec(start=3, stop=-2, axis=-1), "features", _in_layers(lambda spec: [step(spec, "x")])),
        Sample(CutOp.spec(start=0, stop="L"), "tokens", tokens),
    ]


@samples_for(CatOp)
def _cat() -> list[Sample]:
    return [Sample(CatOp.spec(), host=_in_layers(lambda spec: [step(LinearOp.spec(), "x"), step(spec, "y", "x", "y")]))]


@samples_for(UnpackFeatures)
def _unpack_features() -> list[Sample]:
    host = _in_layers(lambda spec: [step(spec, "x"), step(CutOp.spec(start=0, stop="L"), "y", "x")])
    return [Sample(UnpackFeatures.spec(out=DIM // 2), host=host)]


@samples_for(PackBatch)
def _pack_batch() -> list[Sample]:
    host = _of_one_length(lambda spec: [step(spec), step(UnpackBatch.spec(groups=10))])
    return [Sample(PackBatch.spec(group=LENGTH // 10), host=host)]


@samples_for(UnpackBatch)
def _unpack_batch() -> list[Sample]:
    host = _of_one_length(lambda spec: [step(PackBatch.spec(group=LENGTH // 4)), step(spec)])
    return [Sample(UnpackBatch.spec(groups=4), host=host)]


@samples_for(BatchToFeatures)
def _batch_to_features() -> list[Sample]:
    back = UnpackFeatures.spec(out=DIM)
    host = _of_one_length(lambda spec: [step(PackBatch.spec(group=LENGTH // 2)), step(spec), step(back)])
    return [Sample(BatchToFeatures.spec(groups=2), host=host)]


@samples_for(Rearrange)
def _rearrange() -> list[Sample]:
    host = _in_layers(lambda spec: [step(spec, "x")])
    return [Sample(Rearrange.spec(pattern="b l (h d) -> b l (d h)", lengths={"h": 4}), host=host)]


@samples_for(Unembed)
def _unembed() -> list[Sample]:
    tokens = EmbeddingOp.spec(classes=FACTS["vocab_size"], out=DIM)

    def host(spec: Spec, setting: Any) -> Spec:
        lines = [Step.spec(op=tokens, into=("y",)), Step.spec(op=spec, reads=("y",))]
        return ProgramModel.spec(lines=lines, inputs={"x": ("B", "L")})

    return [Sample(Unembed.spec(embedding=tokens), host=host)]
