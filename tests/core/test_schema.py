"""The JSON Schema of the registry: valid, true to the reader, and made from the constructors alone."""

import functools
from typing import Any

import jsonschema
import pytest

import variform as vf
from variform.core.fields import fields_of
from variform.core.schema import part_info, part_schema, registry_schema, summary
from variform.parts.feedforward.mlp import MLP

PRESETS = {
    "gpt": vf.models.gpt(vocab_size=11, dim=16, depth=3, heads=4, max_seq_len=8, tie=True),
    "bert": vf.models.bert(vocab_size=11, dim=16, depth=2, heads=4, max_seq_len=8, classes=3),
    "vit": vf.models.vit(image_size=8, patch_size=4, dim=16, depth=2, heads=4),
    "seq2seq": vf.models.seq2seq(vocab_size=11, dim=16, depth=2, heads=4, max_seq_len=8),
}


@functools.cache
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(registry_schema())


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(registry_schema())


@pytest.mark.parametrize("full", [False, True], ids=["short", "full"])
@pytest.mark.parametrize("resolved", [False, True], ids=["given", "resolved"])
@pytest.mark.parametrize("name", PRESETS)
def test_written_specs_are_valid(name: str, resolved: bool, full: bool) -> None:
    spec = vf.resolve(PRESETS[name]) if resolved else PRESETS[name]
    validator().validate(vf.to_dict(spec, full=full))


VALID: list[Any] = [
    {"preset": "gpt", "vocab_size": 11, "dim": 16, "depth": 3, "heads": 4, "max_seq_len": 8},
    {"part": "stack", "layers": ["layer", {"repeat": 2, "of": {"part": "layer", "sublayers": []}}]},
    {"part": "stack", "layers": [{"shared": "a", "of": "layer"}, {"shared": "a"}], "dim": "INHERIT"},
    {"part": "sublayer", "body": {"part": "feedforward/mlp", "norm": None}},
]

INVALID: list[Any] = [
    {"part": "transfomer"},
    {"part": "stack"},
    {"part": "stack", "layers": [], "dmi": 3},
    {"part": "stack", "layers": [], "dim": 0},
    {"part": "stack", "layers": [], "dim": "8"},
    {"part": "stack", "layers": [{"part": "mlp"}]},
    {"part": "stack", "layers": ["mlp"]},
    {"part": "stack", "layers": [], "executor": "reverse"},
    {"part": "sublayer", "body": "mlp", "norm": "mlp"},
    {"preset": "gpt", "dim": 16},
    {"preset": "gtp"},
    {"dim": 3},
    3,
]


@pytest.mark.parametrize("data", VALID, ids=range(len(VALID)))
def test_valid_configs_pass(data: Any) -> None:
    validator().validate(data)
    vf.from_dict(data)


@pytest.mark.parametrize("data", INVALID, ids=range(len(INVALID)))
def test_invalid_configs_fail_as_they_do_when_built(data: Any) -> None:
    assert not validator().is_valid(data)
    with pytest.raises(vf.ConfigError):
        vf.build(data, dim=8)


@pytest.mark.parametrize("part", vf.parts().values(), ids=["/".join(key) for key in vf.parts()])
def test_every_part_describes_itself(part: type[vf.Part]) -> None:
    schema, info = part_schema(part), part_info(part)
    assert set(schema["properties"]) == {"part", *(f.name for f in fields_of(part))}
    assert summary(part), "the docstring opens with what it is"
    assert [f["name"] for f in info["fields"]] == [f.name for f in fields_of(part)]
    undocumented = [f["name"] for f in info["fields"] if not f["doc"]]
    assert not undocumented, "every field has a line in the docstring's Args"


def test_limits_defaults_and_docs_come_from_the_constructor() -> None:
    fields = part_schema(MLP)["properties"]
    assert {"exclusiveMinimum": 0, "type": "integer"} in fields["dim"]["anyOf"]
    assert fields["mult"]["default"] == 4.0
    assert fields["bias"]["description"] == "learn b1 and b2."
    assert "gelu" in str(fields["activation"])
    assert part_schema(MLP)["required"] == ["part"]
    assert part_info(MLP)["fields"][0]["type"] == "int (> 0)"


def test_what_no_file_can_hold_may_not_be_written() -> None:
    field = part_schema(vf.parts()["attention", "nystrom"])["properties"]["skip"]
    check = jsonschema.Draft202012Validator(field)
    assert check.is_valid(None)
    for value in ("identity", {}, 3):
        assert not check.is_valid(value)
