"""The module types of the later generation and of the history: formulas, defaults, spellings, refusals."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.dialects.configaformers.attention_offset_module import get_alibi
from variform.dialects.configaformers.errors import ConfigaformersError
from variform.dialects.configaformers.files import program_of
from variform.dialects.configaformers.model_builder import ConfigaFormer, program_spec
from variform.dialects.configaformers.modules import REQUIRED, TYPES
from variform.dialects.configaformers.write import to_config
from variform.errors import ShapeError

B, L, D, H = 2, 7, 12, 3
Module = dict[str, Any]
LATER = (
    "embedding linear activation norm scale_dim dropout make_stream merge_streams cut_stream cat_streams make_heads "
    "merge_heads mha_dots mha_sum rope shift down_sample up_sample pack_batch batch_2_features unpack_features"
)
HISTORY = "attention_offset attention_bias gate cut_sequence unpack_batch"


def build(modules: list[Module], shapes: dict[str, list[Any]], **more: Any) -> ConfigaFormer:
    return ConfigaFormer({"blocks": [{"config": modules, "repeat": 1}]}, shapes, verbose=False, **more).double()


def tensors(shapes: dict[str, list[Any]], **sizes: int) -> dict[str, Tensor]:
    known = {"B": B, "L": L, **sizes}
    whole = {name: [known.get(size, size) for size in shape] for name, shape in shapes.items()}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in whole.items()}


def run(module: Module, shapes: dict[str, list[Any]]) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """Outputs, inputs and weights of one module; weights are drawn."""
    model = build([module], shapes)
    weights = list(model.parameters())
    for weight in weights:
        torch.nn.init.normal_(weight)
    inputs = {name: value.requires_grad_() for name, value in tensors(shapes).items()}
    return model(inputs), inputs, weights


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


X = {"x": ["B", "L", D]}
HEADS = {"x": ["B", H, "L", D]}


def test_all_types_are_there() -> None:
    assert set(TYPES) == {*LATER.split(), *HISTORY.split()}
    assert len(LATER.split()) == 21


@pytest.mark.parametrize(
    ("module", "shapes", "view"),
    [
        ({"type": "scale_dim"}, X, (D,)),
        ({"type": "scale_dim", "dim_to_scale": 1}, HEADS, (H, 1, 1)),
        ({"type": "scale_dim", "dim_to_scale": 3}, HEADS, (D,)),
        ({"type": "gate"}, X, (D,)),
        ({"type": "gate", "gate_type": "Heads"}, HEADS, (H, 1, 1)),
    ],
)
def test_scaling(module: Module, shapes: dict[str, list[Any]], view: tuple[int, ...]) -> None:
    assert all(bool((p == 1).all()) for p in build([module], shapes).parameters())
    out, inputs, (gain,) = run(module, shapes)
    close(out["x"], inputs["x"] * gain.view(view))


def test_dropout_is_off_in_eval() -> None:
    model = build([{"type": "dropout", "prob": 0.5}], HEADS)
    inputs = tensors(HEADS)
    assert torch.equal(model.eval()(inputs)["x"], inputs["x"])
    y = model.train()(inputs)["x"]
    assert set(((y / inputs["x"]) * 1e6).round().flatten().tolist()) == {0, 2e6}
    inputs = tensors(X)
    assert torch.equal(build([{"type": "dropout", "prob": 0}], X).train()(inputs)["x"], inputs["x"])


def test_shift() -> None:
    pieces = [{"features": (0, 4), "relative_pos": -1}, {"features": [2, 12], "relative_pos": 0}]
    out, inputs, _ = run({"type": "shift", "instructions": pieces}, X)
    x = inputs["x"]
    before = torch.cat((torch.zeros(B, 1, 4), x[:, :-1, :4]), 1)
    close(out["x"], torch.cat((before, x[..., 2:]), -1))


def test_down_and_up_sampling() -> None:
    out, inputs, _ = run({"type": "down_sample", "stride": 3}, X)
    close(out["x"], inputs["x"][:, [0, 3, 6]])
    out, inputs, _ = run({"type": "down_sample", "stride": 3, "start_idx": 2}, X)
    close(out["x"], inputs["x"][:, [2, 5]])
    out, inputs, _ = run({"type": "down_sample", "stride": 2}, HEADS)
    close(out["x"], inputs["x"][:, :, [0, 2, 4, 6]])
    out, inputs, _ = run({"type": "up_sample", "num_chunks": 4}, X)
    close(out["x"], torch.stack(inputs["x"].split(3, -1), 2).view(B, 4 * L, 3))


def test_cutting_and_joining() -> None:
    out, inputs, _ = run({"type": "cut_stream", "start": 1, "end": "L - 1", "cut_dim": 1}, X)
    close(out["x"], inputs["x"][:, 1 : L - 1])
    out, inputs, _ = run({"type": "cut_stream", "start": 2, "end": 5, "cut_dim": -1}, X)
    close(out["x"], inputs["x"][..., 2:5])
    out, inputs, _ = run({"type": "cut_sequence"}, X)
    close(out["x"], inputs["x"][:, :1])
    out, inputs, _ = run({"type": "cut_sequence", "start": 2, "end": "L"}, X)
    close(out["x"], inputs["x"][:, 2:])
    with pytest.raises(ShapeError, match="indices 0 to 9 of dimension 1 are wanted"):
        run({"type": "cut_stream", "start": 0, "end": 9, "cut_dim": 1}, X)
    module = {"type": "cat_streams", "input_list": ["x", "y", "x"], "cat_dim": 1}
    out, inputs, _ = run(module, {**X, "y": ["B", 2, D]})
    close(out["x"], torch.cat((inputs["x"], inputs["y"], inputs["x"]), 1))


def test_a_cut_may_name_a_size_of_an_input_that_is_gone() -> None:
    """Each copy of the block writes x anew; the table tells of the streams alone, and the config is as it was."""
    modules = [
        {"type": "down_sample", "stride": 2},
        {"type": "linear", "output_dim": 24},
        {"type": "up_sample", "num_chunks": 2},
        {"type": "cut_stream", "start": 0, "end": "L", "cut_dim": 1},
    ]
    model = ConfigaFormer([{"config": modules, "repeat": 3}], X, verbose=False)
    for length in (6, 7):
        assert model({"x": torch.randn(2, length, D)})["x"].shape == (2, length, D)
    assert "#L" not in str(model.table)
    config = to_config(model.spec)
    assert list(config["input_streams"]) == ["x"]
    assert program_of(config) == model.spec
    inputs = model.example_inputs(2, 7)[0][0]
    assert list(inputs) == ["x"]
    assert vf.describe(model.spec, batch=2, length=7).costs is not None


def test_a_cut_may_name_a_size_of_another_input() -> None:
    shapes = {"x": ["B", "L", D], "o": [1, H, 9, 9]}
    cuts = [
        {"type": "cut_stream", "start": 0, "end": "L", "cut_dim": d, "input_name": "o", "output_name": "o"}
        for d in (2, 3)
    ]
    model = build(cuts, shapes)
    inputs = tensors(shapes)
    assert torch.equal(model(inputs)["o"], inputs["o"][:, :, :L, :L])
    assert [[name for name, _ in row.reads] for row in model.table.rows] == [["o", "#L"]] * 2
    with pytest.raises(ConfigaformersError, match="tells the size 'K'"):
        build([{"type": "cut_stream", "start": 0, "end": "K", "cut_dim": 1}], X)


def test_regrouping() -> None:
    shapes = {"x": [1, 20, D]}
    out, inputs, _ = run({"type": "pack_batch"}, shapes)
    close(out["x"], inputs["x"].view(2, 10, D))
    out, inputs, _ = run({"type": "pack_batch", "group_size": 4}, shapes)
    close(out["x"], inputs["x"].view(5, 4, D))
    packed = {"x": ["B", "L", D]}
    out, inputs, _ = run({"type": "unpack_batch"}, packed)
    close(out["x"], inputs["x"].view(1, B * L, D))
    out, inputs, _ = run({"type": "batch_2_features"}, packed)
    close(out["x"], torch.cat((inputs["x"][:1], inputs["x"][1:]), -1))
    rows = {"x": [6, "L", D]}
    out, inputs, _ = run({"type": "unpack_batch", "num_groups": 3}, rows)
    close(out["x"], inputs["x"].view(2, 3 * L, D))
    out, inputs, _ = run({"type": "batch_2_features", "num_groups": 3}, rows)
    close(out["x"][1], torch.cat(tuple(inputs["x"][3:]), -1))
    out, inputs, _ = run({"type": "unpack_features"}, {"x": ["B", "L", 128]})
    close(out["x"], torch.cat(inputs["x"].split(64, -1), 1))


def test_merge_heads() -> None:
    out, inputs, _ = run({"type": "merge_heads"}, HEADS)
    close(out["x"], torch.cat(inputs["x"].unbind(1), -1))


def test_attention_bias_is_an_earlier_name_of_the_offset() -> None:
    out, inputs, _ = run({"type": "attention_bias"}, {"attn_dots": ["B", H, "L", "L"], "attn_bias": ["B", H, "L", "L"]})
    close(out["attn_dots"], inputs["attn_dots"] + inputs["attn_bias"])


def test_weights_are_used_again() -> None:
    shapes = {"attn_dots": ["B", H, "L", "L"], "v": ["B", H, "L", 4], "w": ["B", H, "L", 4]}
    modules = [
        {"type": "mha_sum", "input_name_values": "v", "output_name": "a", "output_name_attn_scores": "scores"},
        {"type": "mha_sum", "input_name_values": "w", "output_name": "b", "input_name_attn_scores": "scores"},
    ]
    inputs = tensors(shapes)
    out = build(modules, shapes)(inputs)
    weights = inputs["attn_dots"].softmax(-1)
    close(out["a"], weights @ inputs["v"])
    close(out["b"], weights @ inputs["w"])


SPELLINGS = [
    ({"type": "merge_streams", "input_name_2": "y"}, "merge_type", ("mult", "multiply")),
    ({"type": "merge_streams", "input_name_2": "y"}, "merge_type", ("ADD", "add")),
]


@pytest.mark.parametrize(("module", "key", "values"), SPELLINGS)
def test_both_spellings_of_a_value(module: Module, key: str, values: tuple[str, str]) -> None:
    shapes = {**X, "y": ["B", "L", D]}
    specs = [program_spec({"blocks": [{"config": [{**module, key: value}], "repeat": 1}]}, shapes) for value in values]
    assert specs[0] == specs[1]


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ("input_name_dots", "input_name_attn_dots", "d"),
        ("output_name_attention_scores", "output_name_attn_scores", "w"),
    ],
)
def test_both_spellings_of_a_key(a: str, b: str, value: str) -> None:
    shapes = {"d": ["B", H, "L", "L"], "v": ["B", "L", D]}
    module = {"type": "mha_sum", "input_name_values": "v", "input_name_dots": "d"}

    def spec(key: str) -> Any:
        kept = {k: v for k, v in module.items() if k not in (a, b)}
        return program_spec({"blocks": [{"config": [{**kept, key: value}], "repeat": 1}]}, shapes)

    assert spec(a) == spec(b)
    with pytest.raises(ConfigaformersError, match="this key twice"):
        build([{**{k: v for k, v in module.items() if k not in (a, b)}, a: value, b: value}], shapes)


SUM = {"type": "mha_sum", "input_name_values": "v", "input_name_attn_scores": "d"}
SHIFT = {"type": "shift"}
CUT = {"type": "cut_stream", "start": 0, "end": 3, "cut_dim": 1}
ONE = {"features": (0, 3), "relative_pos": -1}


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ({**SUM, "attn_function": "relu"}, ["attn_function", "used as they are"]),
        ({**SUM, "input_name_attn_dots": "d"}, ["input_name_dots", "used as they are"]),
        ({**SUM, "output_name_attn_scores": True}, ["output_name_attn_scores", "must be a name, or False"]),
        ({"type": "mha_sum", "output_name_attn_score": "s"}, ["did you mean 'output_name_attn_scores'"]),
        (SHIFT, ["instructions", "needs this key"]),
        ({**SHIFT, "instructions": []}, ["at least one item"]),
        ({**SHIFT, "instructions": [(0, 3, -1)]}, ["item 0 is (0, 3, -1)"]),
        ({**SHIFT, "instructions": [{"features": (0, 3)}]}, ["item 0 lacks 'relative_pos'"]),
        (
            {**SHIFT, "instructions": [ONE, {**ONE, "relative": 1}]},
            ["item 1", "'relative'", "did you mean 'relative_pos'"],
        ),
        ({**SHIFT, "instructions": [{**ONE, "features": (0, 3, 4)}]}, ["two integers", "(0, 3, 4)"]),
        ({**SHIFT, "instructions": [{**ONE, "features": (0, 2.5)}]}, ["two integers"]),
        ({**SHIFT, "instructions": [{**ONE, "relative_pos": True}]}, ["relative_pos of item 0 must be an integer"]),
        ({**SHIFT, "instructions": [{**ONE, "features": (0, 64)}]}, ["features 0 to 64", "there are 12"]),
        ({"type": "down_sample"}, ["stride", "needs this key"]),
        ({"type": "down_sample", "stride": 0}, ["at least 1"]),
        ({"type": "up_sample", "num_chunks": 5}, ["5 chunks do not divide 12"]),
        ({"type": "dropout", "prob": 1.0}, ["prob", "less than 1"]),
        ({"type": "dropout", "prob": math.nan}, ["prob", "at least 0"]),
        ({"type": "dropout", "prob": "0,5"}, ["prob"]),
        ({"type": "scale_dim", "dim_to_scale": 1}, ["no known size", "this is L"]),
        ({"type": "scale_dim", "dim_to_scale": 3}, ["no dimension 3"]),
        ({"type": "gate", "gate_type": "head"}, ["did you mean 'heads'"]),
        ({**CUT, "cut_dim": 3}, ["no dimension 3"]),
        ({**CUT, "cut_dim": 2, "end": 13}, ["has 12 indices", "cut at 13"]),
        ({**CUT, "end": 0}, ["nothing lies between"]),
        ({**CUT, "end": 1.5}, ["end", "must be int or str"]),
        ({"type": "cut_stream"}, ["start", "end", "cut_dim", "needs this key"]),
        ({"type": "cat_streams", "input_list": ["x"], "cat_dim": 1}, ["input_list", "two streams or more"]),
        ({"type": "cat_streams", "input_list": ["x", 3], "cat_dim": 1}, ["input_list", "two streams or more"]),
        ({"type": "cat_streams", "input_list": ["x", "v", "d"], "cat_dim": 1}, ["equal ranks"]),
        ({"type": "pack_batch", "group_size": -1}, ["at least 1"]),
        ({"type": "merge_heads"}, ["[B, H, L, D]"]),
        ({"type": "make_stream", "output_name": ""}, ["output_name", "must not be empty"]),
    ],
)
def test_what_is_wrong_is_named(module: Module, words: list[str]) -> None:
    shapes = {**X, "v": ["B", "L", D], "d": ["B", H, "L", "L"]}
    with pytest.raises(ConfigaformersError) as caught:
        build([module], shapes)
    assert all(word in str(caught.value) for word in ["Block #1, line 1", *words]), str(caught.value)


# ---- every key of every type ----

VALID: dict[str, tuple[Module, dict[str, list[Any]]]] = {
    "embedding": ({"num_classes": 5, "output_dim": 4}, {"emb_ids": ["B", "L"]}),
    "linear": ({}, X),
    "activation": ({}, X),
    "norm": ({}, X),
    "scale_dim": ({}, {"x": ["B", 3, 4, D]}),
    "gate": ({}, HEADS),
    "dropout": ({"prob": 0.5}, X),
    "make_stream": ({"output_name": "y"}, X),
    "merge_streams": ({}, X),
    "cut_stream": ({"start": 1, "end": 3, "cut_dim": 1}, X),
    "cut_sequence": ({"end": 3}, X),
    "cat_streams": ({"input_list": ["x", "x"], "cat_dim": 1}, X),
    "make_heads": ({}, X),
    "merge_heads": ({}, HEADS),
    "mha_dots": ({}, HEADS),
    "mha_sum": ({}, {"x": ["B", "L", D], "attn_dots": ["B", H, "L", "L"]}),
    "attention_offset": ({}, {"attn_dots": ["B", H, "L", "L"], "attn_offset": ["B", H, "L", "L"]}),
    "attention_bias": ({}, {"attn_dots": ["B", H, "L", "L"], "attn_bias": ["B", H, "L", "L"]}),
    "rope": ({"rotate_dim": 4}, HEADS),
    "shift": ({"instructions": [ONE]}, X),
    "down_sample": ({"stride": 2}, X),
    "up_sample": ({"num_chunks": 2}, X),
    "pack_batch": ({}, {"x": ["B", 60, D]}),
    "unpack_batch": ({}, {"x": [4, "L", D]}),
    "batch_2_features": ({}, {"x": [4, "L", D]}),
    "unpack_features": ({}, {"x": ["B", "L", 192]}),
}
OTHER: dict[str, Any] = {
    "num_classes": 6,
    "output_dim": 8,
    "init_bias": 2,
    "input_norm": "rms_norm",
    "output_norm": "scale_norm",
    "activation_function": ["tanh", "none"],
    "norm_type": "rms_norm",
    "dim_to_scale": 1,
    "gate_type": "heads",
    "prob": 0.25,
    "merge_type": "subtract",
    "start": 2,
    "end": 2,
    "cut_dim": 2,
    "cat_dim": 2,
    "input_list": ["x", "x", "x"],
    "num_heads": 3,
    "scaled": True,
    "attn_function": "relu",
    "norm_value_heads": "layer_norm",
    "output_name_attention_scores": "other",
    "rotate_dim": 2,
    "max_length": 50,
    "instructions": [{**ONE, "relative_pos": -2}],
    "stride": 3,
    "start_idx": 1,
    "num_chunks": 3,
    "group_size": 20,
    "num_groups": 2,
}
KEYS = [(kind, key) for kind in TYPES for key in TYPES[kind].keys]


def described(kind: str, **changes: Any) -> Any:
    module, shapes = VALID[kind]
    if any(value == "other" for key, value in changes.items() if key.startswith("input_name")):
        shapes = {**shapes, "other": next(iter(shapes.values()))}
        for key in changes:
            name = TYPES[kind].keys[key].default
            shapes["other"] = shapes.get("attn_dots" if name is None else name, shapes["other"])
    config = {"blocks": [{"config": [{"type": kind, **module, **changes}], "repeat": 1}]}
    return program_spec(config, shapes)["lines"]


@pytest.mark.parametrize(("kind", "key"), KEYS)
def test_every_key_changes_the_step(kind: str, key: str) -> None:
    other = OTHER.get(key, "other")
    assert described(kind, **{key: other}) != described(kind), f"{key} of {kind} is ignored"


@pytest.mark.parametrize(("kind", "key"), KEYS)
def test_a_default_given_is_the_default_left_out(kind: str, key: str) -> None:
    default = TYPES[kind].keys[key].default
    if default is REQUIRED:
        module = {k: v for k, v in VALID[kind][0].items() if k != key}
        config = {"blocks": [{"config": [{"type": kind, **module}], "repeat": 1}]}
        with pytest.raises(ConfigaformersError, match=f"{kind} needs this key"):
            program_spec(config, VALID[kind][1])
    else:
        without = {k: v for k, v in VALID[kind][0].items() if k != key}
        config = {"blocks": [{"config": [{"type": kind, **without}], "repeat": 1}]}
        assert described(kind, **{key: default}) == program_spec(config, VALID[kind][1])["lines"]


@pytest.mark.parametrize("kind", TYPES)
def test_shapes_shown_are_those_that_run(kind: str) -> None:
    module, shapes = VALID[kind]
    model = build([{"type": kind, **module}], shapes).eval()
    inputs = tensors(shapes)
    if kind == "embedding":
        inputs = {"emb_ids": torch.randint(0, 5, (B, L))}
    out = model(inputs)
    (row,) = model.table.rows
    sizes = {"BSZ": B, "L": L}
    for name, shape in row.writes:
        assert list(out[name].shape) == [size if isinstance(size, int) else size.value(sizes) for size in shape]


@pytest.mark.parametrize("kind", TYPES)
def test_half_precision_stays(kind: str) -> None:
    module, shapes = VALID[kind]
    model = build([{"type": kind, **module}], shapes).bfloat16()
    inputs = {name: value.bfloat16() for name, value in tensors(shapes).items()}
    if kind == "embedding":
        inputs = {"emb_ids": torch.randint(0, 5, (B, L))}
    assert {value.dtype for value in model(inputs).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("formula", "module"),
    [
        (lambda x: 2 * x, {"type": "merge_streams"}),
        (lambda x: x * x, {"type": "merge_streams", "merge_type": "mult"}),
        (lambda x: torch.nn.functional.gelu(x), {"type": "activation"}),
        (lambda x: torch.nn.functional.layer_norm(x, (D,)), {"type": "norm"}),
        (lambda x: x, {"type": "rope", "rotate_dim": 2, "max_length": 2048}),
    ],
)
def test_defaults_are_upstreams(formula: Callable[[Tensor], Tensor], module: Module) -> None:
    inputs = tensors(X)
    out = build([module], X)(inputs)["x"]
    if module["type"] == "rope":
        assert TYPES["rope"].keys["max_length"].default == 2048
        assert torch.equal(out[..., 2:], inputs["x"][..., 2:])
    else:
        close(out, formula(inputs["x"]))


def test_an_offset_may_be_merged_with_the_scores() -> None:
    shapes = {"q": ["B", H, "L", 4], "attn_offset": ["B", H, "L", "L"]}
    dots = {"type": "mha_dots", "input_name_queries": "q", "input_name_keys": "q"}
    merge = {"type": "merge_streams", "input_name_1": "attn_dots", "input_name_2": "attn_offset"}
    sums = {"type": "mha_sum", "input_name_values": "q"}
    inputs = {"q": tensors(shapes)["q"], "attn_offset": get_alibi(H, max_length=L).double()}
    merged = build([dots, {**merge, "output_name": "attn_dots"}, sums], shapes)(inputs)["x"]
    close(merged, build([dots, {"type": "attention_offset"}, sums], shapes)(inputs)["x"])
    with pytest.raises(ShapeError, match="size 2 must be 7"):
        build([dots, merge], shapes)({**inputs, "attn_offset": get_alibi(H, max_length=L + 1).double()})


def test_weights_may_be_made_by_an_activation() -> None:
    shapes = {"q": ["B", H, "L", 4]}
    modules = [
        {"type": "mha_dots", "input_name_queries": "q", "input_name_keys": "q", "output_name": "w"},
        {"type": "activation", "activation_function": "relu", "input_name": "w", "output_name": "w"},
        {"type": "mha_sum", "input_name_values": "q", "input_name_attn_scores": "w"},
    ]
    inputs = tensors(shapes)
    q = inputs["q"]
    close(build(modules, shapes)(inputs)["x"], (q @ q.transpose(-1, -2) / 2).relu() @ q)
