"""The static pass over published streams: one writer before every read, a reader for every write."""

from typing import Any

import pytest

import variform as vf
from variform.core.resolve import examine
from variform.core.spec import Spec
from variform.parts.stream_ops.carry import AddStream, Publish
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

WORK = Sublayer.spec(body="mlp")


def write(name: str) -> Spec:
    return Publish.spec(stream=name)


def read(name: str) -> Spec:
    return AddStream.spec(stream=name)


def stack(*layers: Any) -> Spec:
    return LayerStack.spec(layers=list(layers))


GOOD = {
    "write, then read": stack(write("a"), WORK, read("a")),
    "read twice": stack(write("a"), read("a"), read("a")),
    "two names": stack(write("a"), write("b"), read("b"), read("a")),
    "written deep, read later": stack(TransformerLayer.spec(sublayers=[write("a"), WORK]), read("a")),
    "the same name in two stacks": Transformer.spec(
        embedding=None, dim=8, stacks=[stack(write("a"), read("a")), stack(write("a"), read("a"))]
    ),
}

BAD = {
    "read before write": (
        stack(read("a"), write("a")),
        {"layers.0": "no part before it publishes", "layers.1": "nothing reads"},
    ),
    "read without a writer": (stack(WORK, read("a")), {"layers.1": "reads the stream 'a'"}),
    "misspelt read": (
        stack(write("skip"), read("skp")),
        {"layers.1": "did you mean 'skip'?", "layers.0": "nothing reads"},
    ),
    "write without a reader": (stack(write("a"), WORK), {"layers.0": "publishes the stream 'a', which nothing reads"}),
    "two writers": (stack(write("a"), write("a"), read("a")), {"layers.1": "which layers.0 publishes already"}),
    "a name of the model's": (stack(write("mask"), read("mask")), {"layers.0": "reserved"}),
    "read in the next stack": (
        Transformer.spec(embedding=None, dim=8, stacks=[stack(write("a"), read("a")), stack(read("a"))]),
        {"stacks.1.layers.0": "reads the stream 'a'"},
    ),
    "written in the stack before": (
        Transformer.spec(embedding=None, dim=8, stacks=[stack(write("a")), stack(read("a"))]),
        {"stacks.0.layers.0": "nothing reads", "stacks.1.layers.0": "no part before it publishes"},
    ),
}


@pytest.mark.parametrize("spec", GOOD.values(), ids=GOOD)
def test_sound_streams_pass(spec: Spec) -> None:
    assert not examine(spec, **({} if spec.kind == "model" else {"dim": 8}))[1]


@pytest.mark.parametrize(("spec", "expected"), BAD.values(), ids=BAD)
def test_broken_streams_are_found(spec: Spec, expected: dict[str, str]) -> None:
    _, problems = examine(spec, **({} if spec.kind == "model" else {"dim": 8}))
    found = {problem.path: str(problem) for problem in problems}
    assert found.keys() == expected.keys()
    for path, words in expected.items():
        assert words in found[path]
    with pytest.raises(vf.ConfigError):
        vf.build(spec, **({} if spec.kind == "model" else {"dim": 8}))
