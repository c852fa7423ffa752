"""Any registered part as a step of a program."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import variform as vf
from variform.core.fields import field_map
from variform.dialects.configaformers import ConfigaFormer, ConfigaformersError, program_spec
from variform.dialects.configaformers.registered import known_types
from variform.errors import Problem
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.lines import Step


def build(*config: Any, shapes: Any = None, **more: Any) -> ConfigaFormer:
    blocks = [{"config": list(config), "repeat": 1}]
    return ConfigaFormer(blocks=blocks, input_shapes=shapes or {"x": ["B", "L", 24]}, verbose=False, **more)


def op(model: ConfigaFormer, line: int = 0) -> Any:
    return model.lines[0].lines[line].op


def refused(*config: Any, shapes: Any = None, **more: Any) -> dict[str, str]:
    with pytest.raises(ConfigaformersError) as caught:
        build(*config, shapes=shapes, **more)
    return {problem.path.removeprefix("blocks.0.config."): str(problem) for problem in caught.value.problems}


# ---- parts by name ----


def test_a_part_is_a_step_with_its_fields() -> None:
    model = build({"type": "glu", "hidden": "2*d", "activation": "silu", "dropout": "p/10"}, sizes={"d": 24, "p": 1})
    assert model.spec["lines"][0]["lines"][0]["op"] == vf.resolve(GLU.spec(hidden=48, dropout=0.1), dim=24)
    x = torch.randn(2, 3, 24)
    model.eval()
    assert torch.equal(model({"x": x})["x"], op(model)(x, {}))


@pytest.mark.parametrize("name", ["rms_norm", "norm/rms_norm"])
def test_names_may_be_qualified(name: str) -> None:
    model = build({"type": name, "output_name": "y"})
    assert type(op(model)).name == "rms_norm"
    assert str(model.table.rows[0]) == f"{name} -> Input(s): x (BSZ, L, 24) - Output(s): y (BSZ, L, 24)"


def test_module_types_come_before_parts_of_their_name() -> None:
    assert "op/linear" in str(build({"type": "op/linear", "out": 8}).table)
    assert set(refused({"type": "linear", "out": 8})) == {"0.out"}


def test_nested_parts_are_written_as_in_files() -> None:
    config = {
        "type": "mixer/multi_head",
        "heads": "h",
        "attention": {"part": "softmax", "causal": True},
        "rotation": {"part": "rotary", "theta": "100*h"},
        "q_norm": "rms_norm",
    }
    theta = "theta" if "theta" in field_map(vf.parts()["rotation", "rotary"]) else "base"
    config["rotation"] = {"part": "rotary", theta: "100.0*h"}
    spec = op(build(config, sizes={"h": 3})).spec
    assert spec["heads"] == 3
    assert spec["attention"]["causal"] is True
    assert spec["rotation"][theta] == 300.0
    assert spec["q_norm"]["dim"] == 8


def test_further_inputs_are_streams_or_inputs() -> None:
    shapes = {"x": ["B", "L", 24], "context": ["B", "Lc", 24]}
    model = build({"type": "cross_attention", "heads": 3, "input_names": ["x", "context"]}, shapes=shapes)
    x, context = torch.randn(2, 3, 24), torch.randn(2, 5, 24)
    assert torch.equal(model({"x": x, "context": context})["x"], op(model)(x, {"context": context}))
    model = build({"type": "op/merge", "how": "multiply", "input_names": ["x", "x"]})
    assert torch.equal(model({"x": x})["x"], x * x)


def test_a_part_with_several_outputs_names_them() -> None:
    shapes = {"v": ["B", "L", 24], "s": ["B", 3, "L", "L"]}
    config = {"type": "weighted_sum", "weights": True, "input_names": ["v", "s"], "output_name": ["y", "w"]}
    model = build(config, shapes=shapes)
    out = model({"v": torch.randn(1, 5, 24), "s": torch.randn(1, 3, 5, 5)})
    assert out["y"].shape == (1, 5, 24)
    assert out["w"].shape == (1, 3, 5, 5)


@pytest.mark.parametrize(
    ("config", "path", "words"),
    [
        ({"type": "gllu"}, "0.type", "did you mean 'glu'"),
        ({"type": "Linera"}, "0.type", "did you mean 'linear'"),
        ({"type": "atention"}, "0.type", "did you mean 'attention'"),
        ({"type": "norm/rms"}, "0.type", "did you mean 'norm/rms_norm'"),
        ({"type": "nrm/rms_norm"}, "0.type", "norm/rms_norm"),
        ({"type": "gpt"}, "0.type", "there is no such module type"),
        ({"type": "glu", "hiden": 3}, "0.hiden", "did you mean 'hidden'"),
        ({"type": "glu", "hidden": 3.5}, "0.hidden", "integer"),
        ({"type": "glu", "hidden": -3}, "0.hidden", "greater than 0"),
        ({"type": "glu", "activation": "gello"}, "0.activation", "did you mean 'gelu'"),
        ({"type": "mixer/multi_head"}, "0.heads", "takes this field from its surroundings"),
        ({"type": "mixer/multi_head", "heads": 7}, "0.heads", "24"),
        ({"type": "mixer/multi_head", "heads": 3, "q_norm": "rms"}, "0.q_norm.part", "rms_norm"),
        ({"type": "glu", "input_name": "x", "input_names": ["x"]}, "0.input_names", "both given"),
        ({"type": "glu", "input_name": 3}, "0.input_name", "name of a stream"),
        ({"type": "glu", "output_name": []}, "0.output_name", "name of a stream"),
        ({"type": "step"}, "0.type", "part of kind line is no step"),
        ({"type": "block"}, "0.type", "part of kind line is no step"),
        ({"type": "glu", "input_name": "z"}, "0", "reads 'z'"),
        ({"type": "op/merge"}, "0", "takes 2 streams, and reads 1"),
    ],
)
def test_mistakes_are_named(config: Any, path: str, words: str) -> None:
    found = refused(config)
    assert list(found) == [path]
    assert words in found[path]
    assert "Block #1, line 1" in found[path]


def test_ambiguous_names_list_what_they_could_be() -> None:
    text = refused({"type": "rotary"})["0.type"]
    assert "'op/rotary'" in text
    assert "'rotation/rotary'" in text


def test_every_part_that_can_be_a_step_is_known() -> None:
    allowed = field_map(Step)["op"].kind_names()
    assert {name for kind, name in vf.parts() if kind in allowed} <= set(known_types())
    assert len(known_types()) == len(set(known_types()))


# ---- what stands for a part ----


def test_attention_is_multi_head_attention() -> None:
    model = build({"type": "attention", "heads": 3, "causal": True, "dropout": 0.1, "kv_heads": 1})
    assert isinstance(op(model), MultiHead)
    spec = op(model).spec
    assert (spec["heads"], spec["kv_heads"]) == (3, 1)
    assert (spec["attention"]["causal"], spec["attention"]["dropout"]) == (True, 0.1)
    x = torch.randn(2, 5, 24)
    model.eval()
    before = model({"x": x})["x"]
    x[:, 3:] += 1
    assert torch.equal(model({"x": x})["x"][:, :3], before[:, :3])


def test_attention_takes_another_attention() -> None:
    name = next(name for kind, name in vf.parts("attention") if name not in ("softmax",))
    spec = op(build({"type": "attention", "heads": 3, "attention": name})).spec
    assert spec["attention"].name == name
    spec = op(build({"type": "attention", "heads": 3, "attention": {"part": "softmax", "scale": 2.0}})).spec
    assert spec["attention"]["scale"] == 2.0


@pytest.mark.parametrize(
    ("more", "path", "words"),
    [
        ({"casual": True}, "0.casual", "did you mean 'causal'"),
        ({"num_heads": 3}, "0.num_heads", "did you mean 'heads'"),
        ({"attention": "sofmax"}, "0.attention", "did you mean 'softmax'"),
        ({"attention": {"part": "softmax", "causal": True}, "causal": True}, "0.causal", "given twice"),
        ({"attention": 3}, "0.attention", "3"),
        ({"causal": "i > 0"}, "", ""),
    ],
)
def test_mistakes_of_attention_are_named(more: Any, path: str, words: str) -> None:
    config = {"type": "attention", "heads": 3, **more}
    if not path:
        assert op(build(config)).spec["attention"]["causal"] is False
        return
    found = refused(config)
    assert list(found) == [path]
    assert words in found[path]


def test_feedforward_is_the_plain_one() -> None:
    model = build({"type": "feedforward", "mult": 2})
    assert isinstance(op(model), MLP)
    assert model.spec["lines"][0]["lines"][0]["op"] == vf.resolve(MLP.spec(mult=2.0), dim=24)


def test_rearrange_names_its_axes() -> None:
    split = {"type": "rearrange", "pattern": "b l (h d) -> b h l d", "h": "k"}
    merge = {"type": "rearrange", "pattern": "b h l d -> b l (h d)"}
    model = build(split, merge, sizes={"k": 3})
    assert "x (BSZ, 3, L, 8)" in str(model.table.rows[0])
    x = torch.randn(2, 5, 24)
    assert torch.equal(model({"x": x})["x"], x)
    assert "7 does not divide" in refused({**split, "h": 7})["0"]
    assert "no axis 'hh'" in refused({**split, "h": 3, "hh": 2})["0.hh"]
    assert "needs this key" in refused({"type": "rearrange"})["0.pattern"]
    assert "two sides" in refused({"type": "rearrange", "pattern": "b l d"})["0.pattern"]


def test_a_transformer_of_parts_is_the_one_of_modules() -> None:
    """The same network written with ready parts and with single modules."""
    ready = build(
        {"type": "make_stream", "output_name": "r"},
        {"type": "norm"},
        {"type": "attention", "heads": 3, "causal": True, "bias": True, "out_bias": True},
        {"type": "merge_streams", "input_name_1": "r"},
    ).double()
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    norm, mixer = op(ready, 1), op(ready, 2)
    y = norm(x)
    q, k, v = (part(y).unflatten(-1, (3, 8)).transpose(1, 2) for part in (mixer.q, mixer.k, mixer.v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(ready({"x": x})["x"], x + mixer.out(out), rtol=1e-10, atol=1e-10)


def test_programs_with_parts_are_saved_and_read_back() -> None:
    blocks = [{"config": [{"type": "attention", "heads": 3, "share": "a"}, {"type": "glu"}], "repeat": 2}]
    spec = program_spec(blocks, {"x": ["B", "L", 24]})
    assert vf.from_yaml(vf.to_yaml(spec)) == spec


@pytest.mark.parametrize("shape", [["B", "L", 24], ["B", "L"], ["B", 3, "L", 8], ["B"]])
def test_no_type_fails_in_another_way(shape: list[Any]) -> None:
    allowed = field_map(Step)["op"].kind_names()
    found: list[Problem] = []
    for name in [*known_types(), *(f"{kind}/{name}" for kind, name in vf.parts() if kind in allowed)]:
        for reads in (["x"], ["x", "x"], ["x", "x", "x"]):
            blocks = [{"config": [{"type": name, "input_names": reads}], "repeat": 1}]
            try:
                program_spec(blocks, {"x": shape})
            except ConfigaformersError as error:
                found += error.problems
    assert len(found) > 100
    assert not [str(problem) for problem in found if not problem.path.startswith("blocks.0.config.0")]
