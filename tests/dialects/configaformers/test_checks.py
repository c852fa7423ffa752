"""Wrong programs are refused before anything is allocated, with all that is needed to mend them; right ones are not."""

import copy
import statistics
import time
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.dialects.configaformers.bad_programs import (
    ADD,
    BAD,
    EMBED,
    HALF,
    IDS,
    KEEP,
    TWO,
    Module,
    X,
    cut,
    dots,
    heads,
    linear,
    shift,
)
from tests.dialects.configaformers.programs import attention, demo, feedforward
from tests.dialects.configaformers.running import check_printed_shapes, no_tensors
from variform.dialects.configaformers import ConfigaformersError
from variform.dialects.configaformers.model_builder import ConfigaFormer, program_spec
from variform.errors import Problem


def config(modules: list[Module], repeat: int = 1) -> dict[str, Any]:
    return {"blocks": [{"config": modules, "repeat": repeat}]}


def refused(modules: list[Module], shapes: dict[str, list[Any]], repeat: int = 1) -> tuple[Problem, ...]:
    with no_tensors(), pytest.raises(ConfigaformersError) as caught:
        ConfigaFormer(config(modules, repeat), shapes, verbose=False)
    return caught.value.problems


# ---- one mistake ----


@pytest.mark.parametrize(("modules", "shapes", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_mistake_is_told_once_before_anything_is_made(
    modules: list[Module], shapes: dict[str, list[Any]], words: list[str]
) -> None:
    before = copy.deepcopy((modules, shapes))
    problems = refused(modules, shapes, repeat=3)
    text = "\n".join(map(str, problems))
    missing = [word for word in words if word not in text]
    assert not missing, text
    assert all("Block #1" in problem.message for problem in problems)
    assert len({problem.path for problem in problems}) == len(problems), text
    assert len({problem.path.split(".")[3] for problem in problems}) == 1, text
    assert (modules, shapes) == before


@pytest.mark.parametrize("later", [True, False])
def test_both_generations_are_checked_alike(later: bool) -> None:
    for _, modules, shapes, _ in BAD[::5]:
        blocks = config(modules)["blocks"]
        seed = {"model_config": {"blocks": blocks}, "input_streams": shapes}
        program = {"blocks": blocks, "input_shapes": shapes} if later else seed
        with no_tensors(), pytest.raises(ConfigaformersError) as caught:
            ConfigaFormer(**program, verbose=False)
        assert caught.value.problems == refused(modules, shapes)


def test_a_native_program_is_checked_alike() -> None:
    spec = program_spec(config([KEEP, linear("x"), ADD]), X)
    lines = list(spec["lines"][0]["lines"])
    lines[1] = vf.Spec(lines[1].part, {**lines[1].args, "op": lines[1]["op"].replace(out=16)})
    with no_tensors(), pytest.raises(vf.ConfigError, match=r"line 3 \(merge_streams\).* 32 is not 16") as caught:
        vf.build(spec.replace(lines=[vf.Spec(spec["lines"][0].part, {"lines": lines, "label": "here"})]))
    assert [problem.path for problem in caught.value.problems] == ["lines.0.lines.2"]


# ---- several mistakes ----


def test_all_mistakes_are_told_and_none_that_follows_from_another() -> None:
    modules = [
        linear("q"),
        linear("k", output_dims=16),  # 1: a misspelt key; what it writes is lost
        heads("q", 5),  # 2: does not divide
        heads("k"),
        dots(),  # follows from both
        {"type": "norm", "input_name": "y"},  # 5: no such stream
        {"type": "dropout", "prob": "half"},  # 6: no number
        linear("z", "x"),  # follows from it: x is lost
        linear("free", "early"),  # 8: no such stream
        shift(0, 99),
    ]
    problems = refused(modules, X, repeat=12)
    assert [problem.path for problem in problems] == [
        "blocks.0.config.1.output_dims",
        "blocks.0.config.2",
        "blocks.0.config.5",
        "blocks.0.config.6.prob",
        "blocks.0.config.8",
    ]


def test_what_does_not_depend_on_a_mistake_is_still_checked() -> None:
    first = [linear("a", output_dim=30), heads("a", 4), linear("b", output_dim=20)]
    second = [
        {"type": "merge_streams", "input_name_1": "b", "output_name": "c"},  # its own mistake
        {"type": "make_heads", "input_name": "a", "num_heads": 7, "output_name": "a"},  # a is lost
        HALF,
        KEEP,
        linear("y", "b"),
        {"type": "merge_streams", "input_name_1": "y", "output_name": "c"},  # its own mistake again
    ]
    blocks = [{"config": first, "repeat": 1}, {"config": second, "repeat": 1}]
    with pytest.raises(ConfigaformersError) as caught:
        ConfigaFormer({"blocks": blocks}, X, verbose=False)
    assert [p.path for p in caught.value.problems] == ["blocks.0.config.1", "blocks.1.config.0", "blocks.1.config.5"]


def test_blocks_after_a_broken_one_that_repeats_are_checked() -> None:
    blocks = [
        {"config": [KEEP, linear("h"), {"type": "norm", "input_name": "hh", "output_name": "n"}, ADD], "repeat": 4},
        {"config": [linear("h", output_dim=16), ADD, heads("residual", 3)], "repeat": 2},
    ]
    with pytest.raises(ConfigaformersError) as caught:
        ConfigaFormer({"blocks": blocks}, X, verbose=False)
    assert [p.path for p in caught.value.problems] == ["blocks.0.config.2", "blocks.1.config.2"]


def test_mistakes_of_the_dicts_and_of_the_sizes_stand_in_one_report() -> None:
    blocks = [
        {"config": [EMBED, {"type": "norm", "norm_typ": "rms_norm"}], "repeat": 1},
        {"config": attention(4) + feedforward(32), "repeats": 2, "repeat": 2},
        {
            "config": [{"type": "lineer", "output_name": "logits"}, {"type": "linear", "input_name": "logit"}],
            "repeat": 1,
        },
    ]
    shapes = {**IDS, "attn_offset": ["B", 8, "L_in", "L_in"]}
    with no_tensors(), pytest.raises(ConfigaformersError) as caught:
        ConfigaFormer({"blocks": blocks, "size": {}}, shapes, output_streams=["logits", "attn"], verbose=False)
    paths = {problem.path for problem in caught.value.problems}
    assert paths >= {"size", "blocks.0.config.1.norm_typ", "blocks.1.repeats", "blocks.2.config.0.type"}


# ---- what is right ----

GOOD: list[tuple[str, list[Module], dict[str, list[Any]]]] = [
    ("one activation in a list", [{"type": "activation", "activation_function": ["relu"]}], X),
    ("four pieces", [{"type": "activation", "activation_function": ["none", "gelu", "tanh", "relu"]}], X),
    ("activation of heads", [heads("x"), {"type": "activation"}], X),
    ("dropout of heads", [heads("x"), {"type": "dropout", "prob": 0}, {"type": "merge_heads"}], X),
    ("norm of heads", [heads("x"), {"type": "norm", "norm_type": "rms_norm"}, {"type": "merge_heads"}], X),
    ("linear of heads", [heads("x"), {"type": "linear", "output_dim": 5}, {"type": "merge_heads"}], X),
    ("scaled heads", [heads("x"), {"type": "scale_dim", "dim_to_scale": 1}], X),
    ("scaled features", [{"type": "scale_dim"}], X),
    ("a cut from the end", [cut(0, 3, -1)], X),
    ("a cut at named sizes", [cut(1, "L_in"), cut(0, "L_in - 2")], X),
    (
        "two halves joined",
        [
            cut_half := {**cut(0, "L_in//2"), "output_name": "a"},
            {**cut("L_in//2", "L_in"), "output_name": "b"},
            {"type": "cat_streams", "input_list": ["a", "b"], "cat_dim": 1, "output_name": "c"},
            {"type": "merge_streams", "input_name_2": "c"},
        ],
        X,
    ),
    (
        "two samplings alike",
        [
            KEEP,
            {"type": "down_sample", "stride": 2},
            {"type": "down_sample", "stride": 2, "input_name": "residual", "output_name": "residual"},
            ADD,
        ],
        X,
    ),
    (
        "sampling in two steps",
        [
            KEEP,
            {"type": "down_sample", "stride": 2},
            {"type": "down_sample", "stride": 3},
            {"type": "down_sample", "stride": 6, "input_name": "residual", "output_name": "residual"},
            ADD,
        ],
        X,
    ),
    (
        "down and up again",
        [
            KEEP,
            {"type": "down_sample", "stride": 2},
            linear("x", output_dim=64),
            {"type": "up_sample", "num_chunks": 2},
            cut(0, "L_in"),
            ADD,
        ],
        X,
    ),
    ("lengths joined", [{"type": "cat_streams", "input_list": ["x", "y"], "cat_dim": 1}], TWO),
    ("shifted", [shift(0, 16)], X),
    (
        "cross attention",
        [
            linear("q"),
            linear("k", "y"),
            heads("q"),
            heads("k"),
            dots(),
            {"type": "mha_sum", "input_name_values": "y", "output_name_attn_scores": "weights"},
        ],
        TWO,
    ),
    (
        "functions of scores",
        [
            linear("q"),
            heads("q"),
            dots("q", "q"),
            {"type": "mha_sum", "attn_function": "relu", "input_name_values": "q"},
            {"type": "merge_heads"},
        ],
        X,
    ),
    (
        "weights as a plain stream",
        [
            linear("q"),
            heads("q"),
            dots("q", "q"),
            {"type": "make_stream", "input_name": "attn_dots", "output_name": "kept"},
            {"type": "merge_streams", "input_name_1": "kept", "input_name_2": "m", "output_name": "attn_dots"},
            {"type": "mha_sum"},
        ],
        {**X, "m": [1, 1, "L_in", "L_in"]},
    ),
    (
        "one mask added twice",
        [
            linear("q"),
            heads("q"),
            dots("q", "q"),
            {"type": "attention_offset"},
            {
                "type": "merge_streams",
                "input_name_1": "attn_offset",
                "input_name_2": "attn_dots",
                "output_name": "attn_dots",
            },
            {"type": "mha_sum"},
        ],
        {**X, "attn_offset": ["B", 4, "L_in", "L_in"]},
    ),
    ("part of the ids", [{**cut(0, 3), "input_name": "emb_ids", "output_name": "emb_ids"}, EMBED], IDS),
    (
        "ids of two inputs joined",
        [{"type": "cat_streams", "input_list": ["emb_ids", "more"], "cat_dim": 1, "output_name": "emb_ids"}, EMBED],
        {**IDS, "more": ["B", "L_ctx"]},
    ),
    ("a constant", [{"type": "merge_streams", "input_name_1": "one", "merge_type": "subtract"}], {**X, "one": [1]}),
    ("gated to nothing but one copy", [{"type": "activation", "activation_function": ["gelu", "none"]}], X),
    (
        "groups",
        [{"type": "pack_batch", "group_size": 5}, {"type": "unpack_batch", "num_groups": 2}],
        {"x": ["B", 10, 32]},
    ),
    (
        "two rotations with tables of their own",
        [
            heads("x"),
            {"type": "rope", "rotate_dim": 4, "max_length": 16},
            {"type": "rope", "rotate_dim": 4, "max_length": 32},
        ],
        X,
    ),
    (
        "a residual that is shifted and weighted",
        [KEEP, shift(0, 32), {"type": "scale_dim", "input_name": "residual", "output_name": "residual"}, ADD],
        X,
    ),
    ("a stream of its own", [{"type": "make_stream", "output_name": "y"}, {"type": "norm", "input_name": "y"}], X),
]


@pytest.mark.parametrize(("modules", "shapes"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])
def test_what_is_right_runs_with_the_printed_shapes(modules: list[Module], shapes: dict[str, list[Any]]) -> None:
    with no_tensors():
        program_spec(config(modules), shapes)
    model = ConfigaFormer(config(modules), shapes, verbose=False, attention="literal")
    for batch, length in ((1, 7), (3, 11)):
        sizes = {"BSZ": batch, "L_in": length, "L_ctx": length - 2}
        check_printed_shapes(model, sizes)


def test_a_block_that_shrinks_its_input_is_printed_copy_by_copy() -> None:
    modules = [{"type": "activation", "activation_function": ["gelu", "none"]}]
    model = ConfigaFormer(config(modules, repeat=4), X, verbose=False)
    assert [row.writes[0][1][-1] for row in model.table.rows] == [16, 8, 4, 2]
    assert "x (BSZ, L_in, 4) - Output(s): x (BSZ, L_in, 2)" in str(model.table)
    check_printed_shapes(model, {"BSZ": 2, "L_in": 3})


def test_no_copies_of_a_block_are_no_mistake() -> None:
    blocks = [{"config": [linear("y")], "repeat": 0}, {"config": [linear("x")], "repeat": 1}]
    model = ConfigaFormer({"blocks": blocks}, X, verbose=False)
    assert [row.where for row in model.table.rows] == ["Block #2, line 1 (linear)"]


def test_an_offset_has_the_name_that_it_is_given() -> None:
    modules = [linear("q"), heads("q"), dots("q", "q"), {"type": "attention_offset", "output_name": "dots2"}]
    modules.append({"type": "mha_sum", "input_name_dots": "dots2"})
    model = ConfigaFormer(config(modules), {**X, "attn_offset": ["B", 4, "L_in", "L_in"]}, verbose=False)
    assert "dots2" in str(model.table)
    assert set(model(model.admission.example(2, 5))) == {"x"}


# ---- facts of a call ----


def called(inputs: dict[str, Tensor], shapes: dict[str, list[Any]] | None = None) -> dict[str, Tensor]:
    modules = [{"type": "merge_streams", "input_name_1": "y"}]
    shapes = shapes or {"x": ["B", "L", 4], "y": ["B", "L", 4]}
    return ConfigaFormer(config(modules), shapes, verbose=False)(inputs)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": (2, 3, 4)}, ["'y' is missing", "given: 'x'"]),
        ({"x": (2, 3, 4), "y": (2, 3, 4), "z": (1,)}, ["'z' is no input", "known: x, y"]),
        ({"x": (2, 3, 4), "y": (2, 5, 4)}, ["'y' is declared (BSZ, L, 4)", "[2, 5, 4]", "'x' says L = 3"]),
        ({"x": (2, 3, 4), "y": (1, 3, 4)}, ["'y'", "[1, 3, 4]", "'x' says BSZ = 2"]),
        ({"x": (2, 3), "y": (2, 3, 4)}, ["'x' is declared (BSZ, L, 4)", "[2, 3]"]),
    ],
)
def test_inputs_of_a_call_that_do_not_fit_are_named(inputs: dict[str, tuple[int, ...]], words: list[str]) -> None:
    with pytest.raises(vf.ShapeError) as caught:
        called({name: torch.zeros(shape) for name, shape in inputs.items()})
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("order", [["x", "y"], ["y", "x"]])
def test_sizes_that_are_expressions_are_checked_in_any_order(order: list[str]) -> None:
    modules = [{**cut(0, "L", source="y"), "output_name": "y"}, {"type": "merge_streams", "input_name_1": "y"}]
    shapes = {"x": ["B", "L", 4], "y": ["B", "L + 1", 4]}
    model = ConfigaFormer(config(modules), {name: shapes[name] for name in order}, verbose=False)
    model({"x": torch.zeros(2, 3, 4), "y": torch.zeros(2, 4, 4)})
    with pytest.raises(vf.ShapeError, match="must be 4"):
        model({"x": torch.zeros(2, 3, 4), "y": torch.zeros(2, 5, 4)})


def test_one_dict_of_shapes_and_one_of_inputs_serve_again() -> None:
    shapes: dict[str, list[Any]] = {"x": ["B", "L", 4], "y": ["B", "L", 4]}
    inputs = {"x": torch.ones(2, 3, 4), "y": torch.ones(2, 3, 4)}
    for _ in range(2):
        assert torch.equal(called(inputs, shapes)["x"], torch.full((2, 3, 4), 2.0))
        assert set(inputs) == {"x", "y"}
    for name in inputs:
        inputs[name] = torch.ones(5, 7, 4)
    assert called(inputs, shapes)["x"].shape == (5, 7, 4)
    other = ConfigaFormer(config([linear("z")]), {"x": shapes["x"]}, verbose=False)
    with pytest.raises(ConfigaformersError, match="reads 'z'"):  # of the other model, not of this one
        ConfigaFormer(config([linear("x", "z")]), shapes, verbose=False)
    assert set(other.table.rows[0].writes[0][0]) == {"z"}


# ---- streams that nothing reads ----


def told(modules: list[Module], shapes: dict[str, list[Any]], repeat: int = 1, **more: Any) -> list[str]:
    model = ConfigaFormer(config(modules, repeat), shapes, verbose=False, **more)
    assert vf.check(model.spec).notes == model.diagnostics
    return [problem.message for problem in model.diagnostics]


def test_streams_that_nothing_reads_are_listed() -> None:
    assert told([linear("x")], X) == []
    assert told([linear("stray"), linear("x")], X) == ["Block #1, line 1 (linear): writes 'stray', which nothing reads"]
    assert told([linear("x")], TWO) == ["the input 'y' is never read"]
    assert told([linear("a"), linear("a"), linear("x", "a")], X) == [
        "Block #1, line 1 (linear): writes 'a', which Block #1, line 2 (linear) overwrites before anything reads it"
    ]


def test_a_line_that_repeats_is_listed_once() -> None:
    (message,) = told([linear("stray"), linear("x")], X, repeat=5)
    assert message.startswith("Block #1, line 1 (linear): writes 'stray'")


def test_what_is_asked_for_is_read() -> None:
    modules = [linear("stray"), linear("x")]
    assert told(modules, X, output_streams=["x", "stray"]) == []
    assert told(modules, X, output_streams=["x"]) == ["Block #1, line 1 (linear): writes 'stray', which nothing reads"]
    model = ConfigaFormer(config(modules), X, verbose=False)
    assert set(model({"x": torch.zeros(1, 2, 32)})) == {"x", "stray"}
    assert vf.from_yaml(vf.to_yaml(model.spec)) == model.spec


def test_a_report_warns_of_what_nothing_reads() -> None:
    report = vf.check(program_spec(config([linear("stray"), linear("x")]), X))
    assert report.ok
    assert "warning: Block #1, line 1 (linear): writes 'stray', which nothing reads" in str(report)
    assert report.to_json()["notes"][0]["message"].startswith("Block #1, line 1")


# ---- time ----


def test_the_quick_demo_is_checked_in_less_than_50_ms_and_without_a_tensor() -> None:
    with no_tensors():
        spec = program_spec(**demo())
    assert len(spec["lines"]) == 14
    times = []
    for _ in range(5):
        program = demo()
        start = time.process_time()
        program_spec(**program)
        times.append(time.process_time() - start)
    assert statistics.median(times) < 0.05, times
