"""Both generations of the dialect: what each is given, and what each prints."""

from typing import Any

import pytest
import torch

from variform.dialects.configaformers import ConfigaFormer, ConfigaformersError, program_spec

BLOCKS = [{"config": [{"type": "linear"}, {"type": "activation"}, {"type": "linear"}], "repeat": 1}]
SHAPES = {"x": ["B", "L", 4]}


def test_both_build_the_same_program() -> None:
    first = program_spec(model_config={"blocks": BLOCKS}, input_streams=SHAPES)
    assert program_spec(BLOCKS, SHAPES) == first
    assert program_spec(blocks=BLOCKS, input_shapes=SHAPES) == first
    assert program_spec(BLOCKS, input_shapes=SHAPES) == first
    assert program_spec(model_config={"blocks": BLOCKS}, input_shapes=SHAPES) == first  # as in between the two


def test_the_first_prints_bsz_and_the_later_what_was_declared(capsys: pytest.CaptureFixture[str]) -> None:
    first = ConfigaFormer(model_config={"blocks": BLOCKS}, input_streams=SHAPES)
    assert capsys.readouterr().out == f"{first.table}\n"
    assert "(B, " not in str(first.table)
    later = ConfigaFormer(blocks=BLOCKS, input_shapes=SHAPES)
    assert capsys.readouterr().out == f"{later.table}\n"
    assert str(later.table).splitlines()[1:] == [
        "linear -> Input(s): x (B, L, 4) - Output(s): x (B, L, 4)",
        "activation -> Input(s): x (BSZ, L, 4) - Output(s): x (BSZ, L, 4)",
        "linear -> Input(s): x (BSZ, L, 4) - Output(s): x (BSZ, L, 4)",
    ]


def test_an_offset_keeps_its_name_where_it_is_merged() -> None:
    config = [
        {"type": "embedding", "num_classes": 7, "output_dim": 4},
        {"type": "make_heads", "num_heads": 2},
        {"type": "mha_dots"},
        {"type": "merge_streams", "input_name_1": "attn_dots", "input_name_2": "attn_offset", "output_name": "dots"},
    ]
    shapes = {"emb_ids": ["B", "L_in"], "attn_offset": ["B", 2, "L_in", "L_in"]}
    model = ConfigaFormer([{"config": config, "repeat": 1}], shapes, verbose=False)
    assert str(model.table).splitlines()[1:] == [
        "embedding -> Input(s): emb_ids (BSZ, L_in) - Output(s): x (BSZ, L_in, 4)",
        "make_heads -> Input(s): x (BSZ, L_in, 4) - Output(s): x (BSZ, 2, L_in, 2)",
        "mha_dots -> Input(s): x (BSZ, 2, L_in, 2), x (BSZ, 2, L_in, 2) - Output(s): attn_dots (BSZ, 2, L_in, L_in)",
        "merge_streams -> Input(s): attn_dots (BSZ, 2, L_in, L_in), attn_offset (B, 2, L_in, L_in)"
        " - Output(s): dots (BSZ, 2, L_in, L_in)",
    ]


def test_only_batch_sizes_are_taken_for_the_batch() -> None:
    shapes = {"x": ["B", "L", 4], "table": ["L", 4], "one": [1], "speeds": ["L"]}
    spec = program_spec(BLOCKS, shapes)
    assert spec["inputs"] == {"x": ("BSZ", "L", 4), "table": ("L", 4), "one": (1,), "speeds": ("L",)}


@pytest.mark.parametrize(
    ("arguments", "paths"),
    [
        ({}, {"", "input_streams"}),
        ({"blocks": BLOCKS}, {"input_streams"}),
        ({"input_shapes": SHAPES}, {""}),
        ({"blocks": BLOCKS, "model_config": {"blocks": BLOCKS}, "input_shapes": SHAPES}, {"blocks"}),
        ({"blocks": BLOCKS, "input_shapes": SHAPES, "input_streams": SHAPES}, {"input_shapes"}),
        ({"model_config": {"blocks": BLOCKS, "sizes": {}}, "sizes": {}, "input_shapes": SHAPES}, {"sizes"}),
        ({"model_config": {"blocks": BLOCKS, "size": {}}, "input_shapes": SHAPES}, {"size"}),
        ({"model_config": 3, "input_shapes": SHAPES}, {""}),
        ({"blocks": 3, "input_shapes": SHAPES}, {"blocks"}),
        ({"blocks": BLOCKS, "input_shapes": SHAPES, "output_streams": 3}, {"output_streams"}),
        ({"blocks": BLOCKS, "input_shapes": SHAPES, "output_streams": ["y"]}, {"output_streams"}),
        ({"blocks": BLOCKS, "input_shapes": SHAPES, "output_streams": []}, {"output_streams"}),
        ({"blocks": BLOCKS, "input_shapes": {"x": []}}, {"input_shapes.x"}),
    ],
)
def test_what_is_missing_or_given_twice_is_told(arguments: dict[str, Any], paths: set[str]) -> None:
    with pytest.raises(ConfigaformersError) as caught:
        ConfigaFormer(**arguments)
    assert {problem.path for problem in caught.value.problems} == paths
    assert all(problem.hint or problem.has_value for problem in caught.value.problems), str(caught.value)


def test_the_table_of_a_built_model_stays() -> None:
    model = ConfigaFormer(BLOCKS, SHAPES, verbose=False)
    assert model({"x": torch.randn(1, 2, 4)})["x"].shape == (1, 2, 4)
    assert [row.path for row in model.table.rows] == [f"lines.0.lines.{line}" for line in range(3)]
