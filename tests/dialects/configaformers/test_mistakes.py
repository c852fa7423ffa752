"""Mistakes of beginners, and what the message says to them; numbers of other libraries."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import variform as vf
from variform.dialects.configaformers import ConfigaFormer, get_alibi
from variform.dialects.configaformers.prebuilt_blocks import transformer_block

X = {"x": ["B", "L_in", 32]}
CUT = {"type": "cut_stream", "start": 0, "end": "L_in - 2", "cut_dim": 1}


def build(modules: Any, shapes: Any = X, **options: Any) -> ConfigaFormer:
    return ConfigaFormer(blocks=[{"config": modules, "repeat": 1}], input_shapes=shapes, verbose=False, **options)


def refusal(modules: Any, shapes: Any = X, **options: Any) -> str:
    with pytest.raises(vf.ConfigError) as caught:
        build(modules, shapes, **options)
    return str(caught.value)


def test_what_a_line_reads_already_is_not_suggested() -> None:
    text = refusal([{"type": "attention_offset"}], {**X, "attn_offset": ["B", 4, "L_in", "L_in"]})
    assert "reads 'attn_dots', which nothing before it writes; live here: x (BSZ, L_in, 32)" in text
    queries = {"type": "linear", "output_name": "queries"}
    dots = {"type": "mha_dots", "input_name_queries": "queries", "input_name_keys": "querys"}
    assert "did you mean 'queries'?" in refusal([queries, dots])  # but a slip may be


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ({"Type": "linear"}, "the key 'Type' is written 'type'"),
        ({"type": "norm", "when": "i = 1"}, "' = ' is written '=='"),
        ({"type": "norm", "when": "i > 0 && i < 3"}, "'&&' is written 'and'"),
        ({"type": "linear", "output_dim": "2*L_in"}, "'L_in' in '2*L_in' is a size of the inputs, which only a call"),
        ({"type": "feedforward", "output_name": ["x", "y"]}, "gives 1 stream, and 2 are named"),
        ({"type": "linear", "output_name": "#L_in"}, "names of streams do not begin with '#'"),
    ],
)
def test_what_is_written_in_another_way(module: dict[str, Any], words: str) -> None:
    assert words in refusal([module])


def test_sizes_are_computed_in_order() -> None:
    assert "put 'b' first" in refusal([{"type": "norm"}], sizes={"a": "2*b", "b": 4})
    assert "computed from itself" in refusal([{"type": "norm"}], sizes={"a": "a + 1"})
    text = refusal([{"type": "norm"}], sizes={"a": "1//0", "b": "2*a", "c": "b"})
    assert "divides by zero" in text
    assert "sizes.b" not in text  # what only follows from it


def test_weights_shared_between_streams_of_other_sizes() -> None:
    step = {"type": "linear", "output_dim": 16, "share": "one"}
    text = refusal([step, step])
    assert "dim = 32 there, 16 here; steps that share weights must read the same sizes" in text


@pytest.mark.parametrize("name", ["z", "L_in"])
def test_what_the_program_keeps_for_itself_is_not_shown(name: str) -> None:
    assert "#L_in" not in refusal([CUT, {"type": "norm", "input_name": name}])
    twice = refusal([CUT, {**CUT, "end": "L_in"}])
    assert "#L_in" not in twice
    assert "these streams" not in twice
    assert "do not begin with '#'" in refusal([CUT], {**X, "#L_in": ["L_in"]})


def test_numbers_of_other_libraries() -> None:
    modules = [
        {"type": "linear", "output_dim": np.int64(16)},
        {"type": "dropout", "prob": np.float32(0.5)},
        {"type": "shift", "instructions": [{"features": (np.int32(0), 16), "relative_pos": np.int8(-1)}]},
        {"type": "feedforward", "mult": np.int64(2)},
        {"type": "linear", "output_dim": "d"},
    ]
    shapes = {"x": ["B", "L_in", np.int64(32)]}
    blocks = [{"config": modules, "repeat": np.int64(2)}]
    model = ConfigaFormer(blocks, shapes, sizes={"d": np.int16(32)}, verbose=False)
    assert len(model.table.rows) == 10
    json.dumps(vf.to_dict(model.spec))
    assert "must be int" in refusal([{"type": "linear", "output_dim": np.float64(16)}])
    assert "must be int" in refusal([{"type": "linear", "output_dim": True}])


def test_a_call_without_a_dict() -> None:
    with pytest.raises(vf.ShapeError, match=r"a dict of tensors by name, \{'x': ...\}, not a Tensor"):
        build([{"type": "norm"}])(torch.zeros(2, 3, 32))  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", ["fused", "literal"])
@pytest.mark.parametrize("sizes", [(0, 3), (2, 0)])
def test_nothing_comes_in(attention: Any, sizes: tuple[int, int]) -> None:
    shapes = {"x": ["B", "L", 32], "attn_offset": [1, 4, "L", "L"]}
    model = build(transformer_block(4, 32), shapes, attention=attention)
    assert model({"x": torch.zeros(*sizes, 32), "attn_offset": get_alibi(4, 8)})["x"].shape == (*sizes, 32)


@pytest.mark.parametrize("attention", ["fused", "literal"])
def test_an_offset_of_full_precision_beside_half_the_bits(attention: Any) -> None:
    shapes = {"x": ["B", "L", 32], "attn_offset": [1, 4, "L", "L"]}
    model = build(transformer_block(4, 32), shapes, attention=attention).bfloat16()
    y = model({"x": torch.randn(2, 7, 32).bfloat16(), "attn_offset": get_alibi(4, 8)})["x"]
    assert y.dtype is torch.bfloat16


def test_an_offset_for_all_rows_decodes() -> None:
    blocks = [
        {"config": [{"type": "embedding", "num_classes": 11, "output_dim": 32}], "repeat": 1},
        {"config": transformer_block(4, 32), "repeat": 1},
    ]
    shapes = {"emb_ids": ["B", "L"], "attn_offset": [1, 4, "L", "L"]}
    model = ConfigaFormer(blocks, shapes, verbose=False).double().eval()
    ids, offset = torch.randint(0, 11, (3, 9)), get_alibi(4, 9).double()
    whole = model({"emb_ids": ids, "attn_offset": offset})["x"]
    state = model.init_state(batch=3, max_len=9, attn_offset=offset)
    first, state = model({"emb_ids": ids[:, :4]}, state=state)
    rest, _ = model({"emb_ids": ids[:, 4:]}, state=state)
    torch.testing.assert_close(torch.cat((first["x"], rest["x"]), 1), whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize("length", [3, 1])
def test_lengths_that_an_expression_cannot_be(length: int) -> None:
    model = build([{"type": "down_sample", "stride": 2}], {"x": ["B", "2*L", 32]})
    assert model({"x": torch.zeros(2, 6, 32)})["x"].shape == (2, 3, 32)
    with pytest.raises(vf.ShapeError, match=f"its size 1 is {length}, which no L makes 2\\*L"):
        model({"x": torch.zeros(2, length, 32)})


def test_expressions_tell_sizes_to_one_another() -> None:
    shapes = {"x": ["B", "L//2", 32], "y": ["B", "3*L - 1", 32]}
    model = build([{"type": "norm"}, {"type": "norm", "input_name": "y", "output_name": "y"}], shapes)
    assert model({"x": torch.zeros(2, 2, 32), "y": torch.zeros(2, 11, 32)})["x"].shape == (2, 2, 32)
    with pytest.raises(vf.ShapeError, match="its size 1 must be 2"):
        model({"x": torch.zeros(2, 3, 32), "y": torch.zeros(2, 11, 32)})


def test_a_stream_that_nothing_gives_may_be_an_input() -> None:
    assert "or declare 'one' among the inputs" in refusal([{"type": "merge_streams", "input_name_1": "one"}])


def test_a_block_label_that_is_none() -> None:
    blocks = [{"config": [{"type": "norm"}], "repeat": 1, "label": np.array([1, 2])}]
    with pytest.raises(vf.ConfigError, match="label: must be a name"):
        ConfigaFormer(blocks, X, verbose=False)


@pytest.mark.parametrize("name", ["positions", "segments"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_streams_of_integers_take_no_others(name: str, dtype: torch.dtype) -> None:
    step = {"type": "attention", "heads": 4, "rotation": "rotary", "input_names": ["x", name]}
    model = build([step], {**X, name: ["B", "L_in"]})
    with pytest.raises(vf.ShapeError, match=f"the input '{name}' takes integer ids, not {dtype}"):
        model({"x": torch.zeros(2, 3, 32), name: torch.zeros(2, 3, dtype=dtype)})
    model({"x": torch.zeros(2, 3, 32), name: torch.zeros(2, 3, dtype=torch.int32)})


def test_all_mistakes_in_the_order_of_the_lines() -> None:
    modules = [
        {"type": "linear", "output_dim": 30},
        {"type": "make_heads", "num_heads": 4},
        {"type": "nrom", "output_name": "y"},
        {"type": "norm", "input_name": "lost"},
    ]
    text = refusal(modules)
    places = [text.index(f"line {line}") for line in (2, 3, 4)]
    assert places == sorted(places)
    assert "live here: ;" not in text
