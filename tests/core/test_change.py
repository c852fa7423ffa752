"""Dotted overrides and the structural difference of specs."""

from typing import Any

import pytest

import variform as vf
from variform.core.spec import Shared, Spec
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.norm.norms import LayerNorm, RMSNorm
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

SPEC = vf.models.gpt(vocab_size=11, dim=16, depth=3, heads=4, max_seq_len=8)


def at(spec: Spec, path: str) -> Any:
    node: Any = spec
    for step in path.split("."):
        node = node[int(step)] if isinstance(node, tuple) else node[step]
    return node


CHANGES: dict[str, tuple[str, str, Any]] = {
    "a field": ("dim=32", "dim", 32),
    "both spellings: brackets": ("stacks[0].layers[1].heads=8", "stacks.0.layers.1.heads", 8),
    "both spellings: dots": ("stacks.0.layers.1.heads=8", "stacks.0.layers.1.heads", 8),
    "from the end": ("stacks[-1].layers[-1].heads=8", "stacks.0.layers.2.heads", 8),
    "a small number": ("init_std=1e-5", "init_std", 1e-5),
    "a word that is no boolean": ("stacks.0.executor=no", "stacks.0.executor", "no"),
    "nothing": ("stacks.0.layers.0.sublayers.0.norm=null", "stacks.0.layers.0.sublayers.0.norm", None),
    "an INHERIT": ("dim=INHERIT", "dim", vf.INHERIT),
    "a part by name": (
        "stacks.0.layers.0.sublayers.0.norm=rms_norm",
        "stacks.0.layers.0.sublayers.0.norm",
        RMSNorm.spec(),
    ),
    "a part with fields": (
        "stacks.0.layers.0.sublayers.1.body={part: glu, hidden: 8}",
        "stacks.0.layers.0.sublayers.1.body",
        GLU.spec(hidden=8),
    ),
    "an item of a list": (
        "stacks.0.layers.1={part: sublayer, body: mlp}",
        "stacks.0.layers.1",
        Sublayer.spec(body=MLP.spec()),
    ),
    "a whole list": ("stacks.0.layers=[{repeat: 2, of: layer}]", "stacks.0.layers", None),
    "an equals sign in the value": ("stacks.0.executor=a=b", "stacks.0.executor", "a=b"),
    "spaces": (" dim = 32 ", "dim", 32),
}


@pytest.mark.parametrize(("setting", "path", "value"), CHANGES.values(), ids=CHANGES)
def test_an_override_changes_one_place(setting: str, path: str, value: Any) -> None:
    before = vf.to_yaml(SPEC)
    if "repeat" in setting:
        with pytest.raises(vf.ConfigError, match=r"stacks\.0\.layers"):
            vf.build(vf.override(SPEC, [setting]))
        return
    changed = vf.override(SPEC, [setting])
    assert at(changed, path) == value
    assert {d.path.startswith(path) for d in vf.diff(SPEC, changed)} == {True}
    assert vf.to_yaml(SPEC) == before


def test_a_star_means_every_item() -> None:
    changed = vf.override(SPEC, ["stacks.*.layers.*.sublayers[0].body.heads=8"])
    assert [d.path for d in vf.diff(SPEC, changed)] == [f"stacks.0.layers.{i}.sublayers.0.body.heads" for i in range(3)]


def test_settings_apply_in_order_and_may_be_a_mapping() -> None:
    assert vf.override(SPEC, ["dim=32", "dim=64"])["dim"] == 64
    assert vf.override(SPEC, {"dim": 32, "stacks.0.layers.0.heads": 2})["stacks"][0]["layers"][0]["heads"] == 2
    assert vf.override(SPEC, []) == SPEC


@pytest.mark.parametrize("path", ["embedding.dropout", "head.embedding.dropout"])
def test_an_override_inside_a_shared_part_holds_at_every_use(path: str) -> None:
    tied = vf.models.gpt(vocab_size=11, dim=16, depth=1, heads=4, max_seq_len=8, tie=True)
    changed = vf.override(tied, [f"{path}=0.5"])
    assert changed["embedding"] == changed["head"]["embedding"]
    built = vf.build(changed)
    assert built.embedding.dropout == 0.5
    assert built.head.embedding is built.embedding


def test_an_override_reaches_a_shared_part_through_a_use_that_does_not_describe_it() -> None:
    layer = Sublayer.spec(body=MLP.spec())
    spec = LayerStack.spec(layers=[Shared("a", layer), Shared("a")])
    changed = vf.override(spec, ["layers.1.body.mult=2.0"])
    assert changed["layers"][0].spec["body"]["mult"] == 2.0


WRONG: dict[str, tuple[str, str, str]] = {
    "unknown field": ("dmi=3", "dmi", "did you mean 'dim'?"),
    "unknown field below": ("stacks[0].layrs=3", "stacks.0.layrs", "did you mean 'layers'?"),
    "beyond a list": ("stacks[3].layers[0].heads=3", "stacks.3.layers.0.heads", "there is no item '3' in a list of 1"),
    "a word in a list": ("stacks.first.norm=null", "stacks.first.norm", "there is no item 'first'"),
    "below a value": ("dim.x=3", "dim.x", "there is nothing below 'x'"),
    "below an empty slot": (
        "stacks.0.layers.0.sublayers.0.branch_norm.eps=1",
        "stacks.0.layers.0.sublayers.0.branch_norm.eps",
        "has nothing in 'branch_norm'",
    ),
    "no equals sign": ("dim", "", "written path=value"),
    "no path": ("=3", "", "written path=value"),
    "damaged value": ("dim=[1", "", "is not valid YAML"),
    "unknown part": ("stacks.0.norm=rmsnorm", "stacks.0.norm.part", "did you mean 'rms_norm'"),
    "unknown part in a list": ("stacks.0.layers.0=layr", "stacks.0.layers.0.part", "did you mean 'layer'"),
    "a part of another kind": ("stacks.0.layers.0=mlp", "stacks.0.layers.0.part", "registered as feedforward"),
    "a class path": ("stacks.0.norm={_target_: os.system}", "stacks.0.norm", "registered parts only"),
}


@pytest.mark.parametrize(("setting", "path", "words"), WRONG.values(), ids=WRONG)
def test_wrong_overrides_are_refused(setting: str, path: str, words: str) -> None:
    with pytest.raises(vf.ConfigError) as error:
        vf.override(SPEC, [setting])
    assert error.value.path == path
    assert words in str(error.value)


def test_a_wrong_value_is_found_when_the_spec_is_resolved() -> None:
    with pytest.raises(vf.ConfigError) as error:
        vf.resolve(vf.override(SPEC, ["stacks[0].layers[1].sublayers[0].body.heads=5"]))
    assert error.value.path == "stacks.0.layers.1.sublayers.0.body.heads"


def test_equal_specs_do_not_differ() -> None:
    assert vf.diff(SPEC, vf.from_yaml(vf.to_yaml(SPEC, full=True))) == []
    assert vf.diff(MLP.spec(), MLP.spec(mult=4.0)) == []


def test_differences_tell_what_came_what_went_and_what_changed() -> None:
    before = LayerStack.spec(layers=[Sublayer.spec(body="mlp")], norm="layer_norm")
    after = LayerStack.spec(layers=[Sublayer.spec(body="glu"), Sublayer.spec(body="mlp")])
    found = {d.path: d for d in vf.diff(before, after)}
    assert set(found) == {"layers.0.body", "layers.1", "norm"}
    assert str(found["norm"]) == "- norm: LayerNorm.spec()"
    assert str(found["layers.1"]).startswith("+ layers.1: Sublayer.spec(")
    assert str(found["layers.0.body"]) == "~ layers.0.body: MLP.spec() -> GLU.spec()"
    assert found["norm"].before == LayerNorm.spec()
    assert found["norm"].after is None


def test_differences_inside_shared_parts_are_found() -> None:
    one, two = (LayerStack.spec(layers=[Shared("a", Sublayer.spec(body=MLP.spec(mult=mult)))]) for mult in (1.0, 2.0))
    assert [d.path for d in vf.diff(one, two)] == ["layers.0.body.mult"]
