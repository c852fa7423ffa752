"""Plain data, YAML and JSON: exact round trips, YAML 1.2, and nothing but data in files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import variform as vf
from variform.core.codec import as_spec, read_file
from variform.core.inherit import INHERIT, inherit
from variform.core.registry import unregister
from variform.core.spec import Shared, Spec
from variform.core.text import dump_yaml, parse_json, parse_yaml
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.feedforward.mlp import MLP
from variform.parts.kinds import Norm
from variform.parts.norm.norms import LayerNorm
from variform.parts.stream_ops.carry import Publish
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

SUB = Sublayer.spec(body=MLP.spec(mult=1e-5))
SPECS = {
    "leaf": LayerNorm.spec(dim=8, eps=1e-12),
    "explicit INHERIT": LayerNorm.spec(dim=INHERIT),
    "INHERIT in place of a fallback": SoftmaxAttention.spec(causal=INHERIT),
    "another fallback": SoftmaxAttention.spec(causal=inherit(True)),
    "infinite": LayerNorm.spec(dim=8, eps=float("inf")),
    "strings that look like values": Publish.spec(stream="no"),
    "a string that looks like a number": Publish.spec(stream="1e-5"),
    "a string that looks like nothing": Publish.spec(stream="null"),
    "an empty string": Publish.spec(stream=""),
    "a string with signs": Publish.spec(stream="a: #b\n{é} 'c' \"d\""),
    "repeats": LayerStack.spec(layers=[SUB, SUB, SUB, TransformerLayer.spec(sublayers=[]), SUB, SUB]),
    "an empty list": LayerStack.spec(layers=[]),
    "shared": LayerStack.spec(layers=[Shared("a", SUB), SUB, Shared("a"), Shared("a", SUB)]),
    "a tensor": SoftmaxAttention.spec(scale=torch.tensor([[1.0, -2.5]], dtype=torch.float64)),
    "a boolean tensor": SoftmaxAttention.spec(scale=torch.tensor([True, False])),
    "gpt": vf.models.gpt(vocab_size=11, dim=16, depth=3, heads=4, max_seq_len=8, tie=True),
    "seq2seq": vf.models.seq2seq(vocab_size=11, dim=16, depth=2, heads=4, max_seq_len=8, tie=True),
    "vit": vf.models.vit(image_size=8, patch_size=4, dim=16, depth=2, heads=4, drop_path=0.3),
}


@pytest.mark.parametrize("full", [False, True], ids=["short", "full"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_specs_survive_dict_yaml_and_json(spec: Spec, full: bool) -> None:
    data = vf.to_dict(spec, full=full)
    assert vf.from_dict(data) == spec
    assert vf.from_dict(json.loads(json.dumps(data))) == spec
    assert vf.from_yaml(vf.to_yaml(spec, full=full)) == spec
    assert vf.from_json(vf.to_json(spec, full=full)) == spec


@pytest.mark.parametrize("name", ["gpt", "seq2seq", "vit"])
def test_resolved_specs_survive_and_rebuild_the_same_model(name: str) -> None:
    resolved = vf.resolve(SPECS[name])
    read = vf.from_yaml(vf.to_yaml(resolved))
    assert read == resolved
    torch.manual_seed(1)
    one = vf.build(resolved)
    torch.manual_seed(1)
    two = vf.build(read)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("ending", [".yaml", ".yml", ".json"])
def test_files(tmp_path: Path, ending: str) -> None:
    path = vf.save(SPECS["gpt"], tmp_path / f"model{ending}")
    assert vf.load(path) == SPECS["gpt"]
    assert vf.load(str(path), ["dim=32"]) == SPECS["gpt"].replace(dim=32)
    assert as_spec(path) == as_spec(str(path)) == SPECS["gpt"]


def test_a_file_may_hold_the_model_beside_other_sections(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {part: mlp, dim: 8}\ntrain: {steps: 3}\n")
    assert vf.load(path) == MLP.spec(dim=8)


def test_short_data_leaves_defaults_out_and_full_writes_them() -> None:
    assert vf.to_dict(MLP.spec(dim=8, mult=4.0)) == {"part": "feedforward/mlp", "dim": 8}
    assert vf.to_dict(MLP.spec(dim=8), full=True)["mult"] == 4.0
    assert vf.to_dict(Sublayer.spec(body="mlp", norm=None))["norm"] is None


def test_repeats_are_written_short() -> None:
    data = vf.to_dict(SPECS["repeats"])
    assert [entry.get("repeat", 1) for entry in data["layers"]] == [3, 1, 2]
    assert len(vf.from_dict({"part": "stack", "layers": [{"repeat": 0, "of": "layer"}]})["layers"]) == 0


def test_presets_are_named_in_files() -> None:
    fields = {"vocab_size": 11, "dim": 16, "depth": 2, "heads": 4, "max_seq_len": 8}
    assert vf.from_dict({"preset": "gpt", **fields}) == vf.models.gpt(**fields)


def test_as_spec_takes_a_model_and_refuses_anything_else() -> None:
    model = vf.build(MLP.spec(dim=8))
    assert as_spec(model) is model.spec
    assert as_spec({"part": "mlp"}) == MLP.spec()
    assert as_spec(Shared("a", MLP.spec())) == MLP.spec()
    for wrong, words in ((3, "expected a spec"), (MLP, r"write MLP.spec\(...\)"), (Shared("a"), "carries no spec")):
        with pytest.raises(vf.ConfigError, match=words):
            as_spec(wrong)


# ---- text ----

YAML12: dict[str, Any] = {
    "1e-5": 1e-5,
    "1E5": 1e5,
    "+.5": 0.5,
    "-3": -3,
    "007": 7,
    "0o17": 15,
    "0x1F": 31,
    "1_000": 1000,
    ".inf": float("inf"),
    "-.inf": -float("inf"),
    "true": True,
    "False": False,
    "no": "no",
    "on": "on",
    "y": "y",
    "null": None,
    "~": None,
    "": None,
    "12:30:45": "12:30:45",
    "2020-01-01": "2020-01-01",
    "'1'": "1",
    "[1, a]": [1, "a"],
}


@pytest.mark.parametrize(("text", "value"), YAML12.items(), ids=YAML12)
def test_yaml_values_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = parse_yaml(f"x: {text}")["x"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("value", [*YAML12, *YAML12.values(), float("nan"), 1e300, 1e-7, -0.0, 3.0, 10**30], ids=repr)
def test_yaml_reads_back_what_it_writes(value: Any) -> None:
    read = parse_yaml(dump_yaml({"x": value}))["x"]
    assert type(read) is type(value)
    assert repr(read) == repr(value)


def test_yaml_merge_keys_work() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}


DAMAGED = {
    "duplicate key": ("a: 1\na: 2", "the key 'a' stands twice (line 2"),
    "duplicate key, nested": ("a:\n  b: 1\n  b: 2", "the key 'b' stands twice (line 3"),
    "unclosed": ("a: [1, 2", "is not valid YAML"),
    "indentation": ("a: 1\n  b: 2", "line 2"),
    "tab": ("a:\n\tb: 1", "line 2"),
    "a list as key": ("? [a]\n: 1", "a key must be a plain value"),
    "python object": ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    "python name": ("a: !!python/name:os.system", "could not determine a constructor"),
    "control character": ("a: \x00", "is not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2", "is not valid YAML"),
}


@pytest.mark.parametrize(("text", "words"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_yaml_is_one_clear_error(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(vf.ConfigError) as error:
        parse_yaml(text)
    assert words in str(error.value)
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(vf.ConfigError, match=r"bad\.yaml"):
        vf.load(path)


@pytest.mark.parametrize("text", ["{", '{"a": 1,}', "", '{"a": 1, "a": 2}', "{'a': 1}"])
def test_damaged_json_is_one_clear_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    for read in (lambda: parse_json(text), lambda: vf.from_json(text), lambda: vf.load(path)):
        with pytest.raises(vf.ConfigError, match=r"not valid JSON|stands twice"):
            read()


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text("part: mlp")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(vf.ConfigError, match=r"there is no file .*did you mean 'model.yaml'"):
        vf.load(tmp_path / "modle.yaml")
    with pytest.raises(vf.ConfigError, match="not UTF-8"):
        vf.load(tmp_path / "binary.yaml")
    with pytest.raises(vf.ConfigError, match="cannot read"):
        read_file(tmp_path)
    with pytest.raises(vf.ConfigError, match="there is no file"):
        vf.load(tmp_path / "nowhere" / "model.yaml")


def test_unwritable_files(tmp_path: Path) -> None:
    with pytest.raises(vf.ConfigError, match=r"end the name in \.yaml or \.json"):
        vf.save(MLP.spec(), tmp_path / "model.txt")
    with pytest.raises(vf.ConfigError, match="cannot write"):
        vf.save(MLP.spec(), tmp_path / "nowhere" / "model.yaml")
    path = vf.save(MLP.spec(dim=8), tmp_path / "model.yaml")
    with pytest.raises(vf.ConfigError, match="not serialisable"):
        vf.save(SoftmaxAttention.spec(scale=len), path)
    assert vf.load(path) == MLP.spec(dim=8), "a failed save leaves the old file"


# ---- what cannot be written ----


@pytest.mark.parametrize(
    "value",
    [len, nn.Linear(2, 2), torch.zeros(65), object(), {1, 2}, 1j, b"a", torch.float32],
    ids=lambda v: type(v).__name__,
)
def test_values_that_are_no_data_are_refused_with_their_path(value: Any) -> None:
    spec = LayerStack.spec(layers=[Sublayer.spec(body=MLP.spec(norm=LayerNorm.spec(eps=value)))])
    with pytest.raises(vf.ConfigError, match="not serialisable") as error:
        vf.to_yaml(spec)
    assert error.value.path == "layers.0.body.norm.eps"


def test_a_part_without_a_name_cannot_be_written() -> None:
    @vf.register("lost_for_test")
    class Lost(Norm):
        def forward(self, x: Any, condition: Any = None) -> Any:
            return x

    assert vf.from_dict(vf.to_dict(Lost.spec())) == Lost.spec()
    unregister("norm", "lost_for_test")
    with pytest.raises(vf.ConfigError, match="Lost is not registered") as error:
        vf.to_dict(MLP.spec(norm=Lost.spec()))
    assert error.value.path == "norm"


# ---- plain data that is wrong ----

WRONG: dict[str, tuple[Any, str, str]] = {
    "unknown part": ({"part": "mpl"}, "part", "did you mean 'mlp'?"),
    "no name": ({"dim": 3}, "", "'part' is missing among 'dim'"),
    "misspelt part": ({"prat": "mlp"}, "", "did you mean 'part' by 'prat'?"),
    "nothing": ({}, "", "'part' is missing among nothing"),
    "a name that is no text": ({"part": 3}, "part", "the name of a part is text"),
    "a number": (3, "", "expected a part"),
    "a list": ([{"part": "mlp"}], "", "expected a part"),
    "none": (None, "", "expected a part"),
    "unknown field": ({"part": "mlp", "hiden": 1}, "hiden", "did you mean 'hidden'?"),
    "a key that is no text": ({"part": "mlp", 3: 1}, "3", "has no field '3'"),
    "a class path": ({"_target_": "os.system", "command": "true"}, "", "registered parts only"),
    "a class path below": ({"part": "mlp", "norm": {"_target_": "os.system"}}, "norm", "registered parts only"),
    "a dotted name": ({"part": "os.system"}, "part", "there is no"),
    "kind that does not fit": (
        {"part": "mlp", "norm": {"part": "feedforward/mlp"}},
        "norm.part",
        "the slot takes norm",
    ),
    "unknown kind": ({"part": "nrom/layer_norm"}, "part", "there is no"),
    "deep": (
        {"part": "stack", "layers": ["layer", {"part": "sublayer", "body": {"part": "mlp", "drpout": 1}}]},
        "layers.1.body.drpout",
        "did you mean 'dropout' or",
    ),
    "not a list": ({"part": "stack", "layers": {"part": "layer"}}, "layers", "expected a list of parts"),
    "a word for a list": ({"part": "stack", "layers": "layer"}, "layers", "expected a list of parts"),
    "repeat without of": ({"part": "stack", "layers": [{"repeat": 2}]}, "layers.0", "a repeat is written"),
    "repeat of minus one": ({"part": "stack", "layers": [{"repeat": -1, "of": "layer"}]}, "layers.0", "a repeat is"),
    "repeat of true": ({"part": "stack", "layers": [{"repeat": True, "of": "layer"}]}, "layers.0", "a repeat is"),
    "mistake in a repeat": (
        {"part": "stack", "layers": ["layer", {"repeat": 2, "of": "x"}]},
        "layers.1.part",
        "no layer",
    ),
    "shared with more keys": (
        {"part": "stack", "layers": [{"shared": "a", "dim": 1}]},
        "layers.0.dim",
        "only the keys",
    ),
    "shared in shared": (
        {"part": "stack", "layers": [{"shared": "a", "of": {"shared": "b"}}]},
        "layers.0.of",
        "cannot be another",
    ),
    "shared without a name": ({"part": "stack", "layers": [{"shared": 3}]}, "layers.0.shared", "is text"),
    "shared at the root": ({"shared": "a", "of": "mlp"}, "", "not a shared one"),
    "unknown preset": ({"preset": "gtp"}, "preset", "did you mean 'gpt'?"),
    "preset without its fields": ({"preset": "bert", "dim": 8}, "vocab_size", "needs this field"),
    "preset with a wrong type": (
        {"preset": "gpt", "vocab_size": 3, "dim": "8", "depth": 1, "heads": 1, "max_seq_len": 4},
        "dim",
        "valid integer",
    ),
    "unknown tensor type": ({"part": "softmax", "scale": {"tensor": [1], "dtype": "f"}}, "scale.dtype", "tensor type"),
    "ragged tensor": (
        {"part": "softmax", "scale": {"tensor": [[1], []], "dtype": "int8"}},
        "scale.tensor",
        "no tensor",
    ),
}


@pytest.mark.parametrize(("data", "path", "words"), WRONG.values(), ids=WRONG)
def test_wrong_data_is_refused_at_its_place(data: Any, path: str, words: str) -> None:
    with pytest.raises(vf.ConfigError) as error:
        vf.from_dict(data)
    assert error.value.path == path
    assert words in str(error.value)


def test_all_mistakes_of_a_file_are_reported_at_once() -> None:
    data = {"part": "stack", "layers": [{"part": "sublayer", "body": "mpl"}, {"part": "layr"}, 3], "exe": 1}
    with pytest.raises(vf.ConfigError) as error:
        vf.from_dict(data)
    assert {p.path for p in error.value.problems} == {"layers.0.body.part", "layers.1.part", "layers.2", "exe"}


def test_reading_changes_nothing_that_was_passed_in() -> None:
    data = {"part": "stack", "layers": [{"repeat": 2, "of": {"part": "sublayer", "body": "mlp"}}]}
    before = json.dumps(data)
    vf.build(data, dim=8)
    assert json.dumps(data) == before
