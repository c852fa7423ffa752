"""Specs: frozen, equal when they describe the same part, harmless to what was passed in."""

import copy
import pickle
from typing import Any

import pytest
import torch

import variform as vf
from variform.core.inherit import INHERIT, inherit
from variform.core.spec import FrozenDict, Shared, Spec
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.norm.norms import LayerNorm, RMSNorm
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

EQUAL = {
    "a default written out": (MLP.spec(), MLP.spec(mult=4.0, activation="gelu")),
    "an inherited default written out": (MLP.spec(), MLP.spec(dim=INHERIT)),
    "a fallback written out": (SoftmaxAttention.spec(), SoftmaxAttention.spec(causal=inherit(False))),
    "a slot default written out": (Sublayer.spec(body=MLP.spec()), Sublayer.spec(body=MLP.spec(), norm="layer_norm")),
    "a list and a tuple": (LayerStack.spec(layers=[]), LayerStack.spec(layers=())),
    "plain data and a spec": (MLP.spec(norm={"part": "rms_norm", "eps": 0.1}), MLP.spec(norm=RMSNorm.spec(eps=0.1))),
    "a name and a spec": (MLP.spec(norm="rms_norm"), MLP.spec(norm=RMSNorm.spec())),
    "an int and a float": (MLP.spec(mult=4), MLP.spec(mult=4.0)),
    "another order of keywords": (MLP.spec(dim=8, bias=True), MLP.spec(bias=True, dim=8)),
    "tensors of equal values": (
        SoftmaxAttention.spec(scale=torch.tensor([1.0])),
        SoftmaxAttention.spec(scale=torch.tensor([1.0])),
    ),
}

DIFFERENT = {
    "values": (MLP.spec(dim=8), MLP.spec(dim=9)),
    "classes": (MLP.spec(dim=8), GLU.spec(dim=8)),
    "True and 1": (MLP.spec(mult=True), MLP.spec(mult=1)),
    "INHERIT and a value": (SoftmaxAttention.spec(), SoftmaxAttention.spec(causal=False)),
    "INHERIT and a fallback": (SoftmaxAttention.spec(causal=INHERIT), SoftmaxAttention.spec()),
    "None and a part": (Sublayer.spec(body=MLP.spec(), norm=None), Sublayer.spec(body=MLP.spec())),
    "deep values": (Sublayer.spec(body=MLP.spec()), Sublayer.spec(body=MLP.spec(dropout=0.1))),
    "shared and not": (LayerStack.spec(layers=[Shared("a", MLP.spec())]), LayerStack.spec(layers=[MLP.spec()])),
    "tensors of other types": (
        SoftmaxAttention.spec(scale=torch.tensor([1.0])),
        SoftmaxAttention.spec(scale=torch.tensor([1.0], dtype=torch.float64)),
    ),
}


@pytest.mark.parametrize("pair", EQUAL.values(), ids=EQUAL)
def test_specs_of_the_same_part_are_equal(pair: tuple[Spec, Spec]) -> None:
    assert pair[0] == pair[1]
    assert hash(pair[0]) == hash(pair[1])
    assert len({*pair}) == 1


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_specs_of_other_parts_differ(pair: tuple[Spec, Spec]) -> None:
    assert pair[0] != pair[1]


def test_a_spec_cannot_be_changed() -> None:
    spec = MLP.spec(dim=8)
    changes: list[Any] = [
        lambda: setattr(spec, "part", GLU),
        lambda: spec.args.__setitem__("dim", 9),  # type: ignore[attr-defined]
        lambda: spec.args.pop("dim"),  # type: ignore[attr-defined]
        lambda: spec.args.update(dim=9),  # type: ignore[attr-defined]
        lambda: setattr(Shared("a"), "name", "b"),
    ]
    for change in changes:
        with pytest.raises((AttributeError, TypeError), match="frozen"):
            change()
    assert spec["dim"] == 8


def test_what_was_passed_in_is_neither_changed_nor_watched() -> None:
    inner: dict[str, Any] = {"part": "mlp", "dim": 8}
    layers: list[Any] = [{"part": "sublayer", "body": inner, "norm": None}]
    before = copy.deepcopy(layers)
    spec = LayerStack.spec(layers=layers)
    built = vf.build(spec)
    assert layers == before
    inner["dim"] = 99
    layers.clear()
    assert spec == LayerStack.spec(layers=before)
    assert built.spec["layers"][0]["body"]["dim"] == 8


def test_replace_makes_a_changed_copy() -> None:
    spec = MLP.spec(dim=8)
    assert spec.replace(dim=9) == MLP.spec(dim=9)
    assert spec == MLP.spec(dim=8)


def test_reading_a_field_gives_its_default() -> None:
    spec = Sublayer.spec(body=MLP.spec())
    assert spec["norm"] == LayerNorm.spec()
    assert spec["dropout"] == 0.0
    assert spec.get("nothing", 3) == 3
    with pytest.raises(KeyError):
        spec["nothing"]


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_specs_survive_copies(copier: Any) -> None:
    shared = Shared("a", TransformerLayer.spec(sublayers=[Sublayer.spec(body=MLP.spec())]))
    for value in (LayerStack.spec(layers=[shared, Shared("a")]), shared, Shared("a"), FrozenDict(a=(1, 2))):
        assert copier(value) == value
        assert type(copier(value)) is type(value)


def test_walk_visits_every_place_with_its_path() -> None:
    sub = Sublayer.spec(body=MLP.spec())
    spec = LayerStack.spec(layers=[Shared("a", sub), Shared("a", sub)], norm="rms_norm")
    paths = dict(spec.walk())
    assert list(paths) == [
        "",
        "layers.0",
        "layers.0.body",
        "layers.0.norm",
        "layers.1",
        "layers.1.body",
        "layers.1.norm",
        "norm",
    ]
    assert paths["layers.1.body"] == MLP.spec()


def test_values_of_any_kind_can_be_arguments() -> None:
    spec = SoftmaxAttention.spec(scale=len)
    assert spec == SoftmaxAttention.spec(scale=len)
    unhashable = bytearray(b"a")
    assert hash(SoftmaxAttention.spec(scale=unhashable)) == hash(SoftmaxAttention.spec(scale=unhashable))
