"""Instances of the steps that lowered models need: stochastic depth, and positions counted from documents."""

from __future__ import annotations

from typing import Any

from variform.core.spec import Spec
from variform.parts.op.drop_path import DropPathOp
from variform.parts.op.merging import MergeOp
from variform.parts.op.tokenwise import EmbeddingOp, LinearOp
from variform.stack.lines import Step
from variform.stack.positions import CountPositions
from variform.stack.program import Program, ProgramModel
from variform.stack.sublayer import Sublayer
from variform.testing.hosts import FACTS, in_layers
from variform.testing.samples import Sample, samples_for

DIM = FACTS["dim"]


@samples_for(DropPathOp)
def _drop_path() -> list[Sample]:
    def body(spec: Spec) -> Spec:
        lines = [Step.spec(op=spec, into=("y",)), Step.spec(op=LinearOp.spec(out=DIM), reads=("y",))]
        return Sublayer.spec(body=Program.spec(lines=lines))

    return [Sample(DropPathOp.spec(p=0.0), host=in_layers(body))]


@samples_for(CountPositions)
def _count_positions() -> list[Sample]:
    def host(spec: Spec, setting: Any) -> Spec:
        lines = [
            Step.spec(op=EmbeddingOp.spec(classes=FACTS["vocab_size"], out=DIM), into=("y",)),
            Step.spec(op=spec, into=("positions",)),
            Step.spec(op=EmbeddingOp.spec(classes=FACTS["max_seq_len"], out=DIM), reads=("positions",), into=("z",)),
            Step.spec(op=MergeOp.spec(), reads=("y", "z")),
            Step.spec(op=LinearOp.spec(out=DIM)),
        ]
        return ProgramModel.spec(lines=lines, inputs={"x": ("B", "L")})

    return [Sample(CountPositions.spec(given="segments"), host=host)]
