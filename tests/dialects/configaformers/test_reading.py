"""Sizes, conditions, shared weights, nested programs: what a program says beyond a list of modules."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from variform.dialects.configaformers import ConfigaFormer, ConfigaformersError, program_spec
from variform.dialects.configaformers.modules import TYPES

X = {"x": ["B", "L", 32]}


def blocks(*configs: Any, repeat: Any = 1, **more: Any) -> list[dict[str, Any]]:
    return [{"config": list(config), "repeat": repeat, **more} for config in configs]


def build(content: Any, shapes: Any = None, **more: Any) -> ConfigaFormer:
    return ConfigaFormer(content, input_shapes=shapes or X, verbose=False, **more)


def problems(content: Any, shapes: Any = None, **more: Any) -> dict[str, str]:
    with pytest.raises(ConfigaformersError) as caught:
        build(content, shapes, **more)
    return {problem.path: str(problem) for problem in caught.value.problems}


def rows(model: ConfigaFormer) -> list[str]:
    return [row for row in str(model.table).splitlines() if "->" in row]


# ---- sizes ----


def test_a_program_with_sizes_is_the_one_with_numbers() -> None:
    named = blocks(
        [{"type": "embedding", "num_classes": "v", "output_dim": "d"}],
        [
            {"type": "linear", "output_dim": "4*d", "init_bias": "p/2"},
            {"type": "activation"},
            {"type": "linear", "output_dim": "max(d, 3)"},
            {"type": "make_heads", "num_heads": "h", "output_name": "q"},
            {"type": "rope", "rotate_dim": "d//h", "max_length": "2**5", "input_name": "q", "output_name": "q"},
        ],
    )
    plain = blocks(
        [{"type": "embedding", "num_classes": 11, "output_dim": 24}],
        [
            {"type": "linear", "output_dim": 96, "init_bias": 0.25},
            {"type": "activation"},
            {"type": "linear", "output_dim": 24},
            {"type": "make_heads", "num_heads": 3, "output_name": "q"},
            {"type": "rope", "rotate_dim": 8, "max_length": 32, "input_name": "q", "output_name": "q"},
        ],
    )
    shapes = {"emb_ids": ["B", "L"]}
    sizes = {"d": 24, "h": "d//8", "v": 11, "p": 0.5}
    expected = program_spec(plain, shapes)
    assert program_spec(named, shapes, sizes=sizes) == expected
    assert program_spec({"blocks": named, "sizes": sizes}, shapes) == expected


def test_sizes_stand_in_shapes_and_lists_and_repeats() -> None:
    config = [
        {"type": "shift", "instructions": [{"features": ("0", "d//2"), "relative_pos": "-1"}]},
        {"type": "cut_stream", "start": 0, "end": "L - k", "cut_dim": 1},
    ]
    shapes = {"x": ["B", "L", "2*d"], "y": ["B", "d", "L//2"]}
    spec = program_spec(blocks(config, repeat="k - 1"), shapes, sizes={"d": 16, "k": 2})
    given = {name: shape for name, shape in spec["inputs"].items() if not name.startswith("#")}
    assert given == {"x": ("BSZ", "L", 32), "y": ("BSZ", 16, "L//2")}
    assert len(spec["lines"]) == 1
    model = build(blocks(config), {"x": ["B", "L", "2*d"]}, sizes={"d": 16, "k": 2})
    assert model({"x": torch.randn(2, 7, 32)})["x"].shape == (2, 5, 8)


def test_nothing_is_changed_that_was_passed_in() -> None:
    content = blocks(
        [{"type": "linear", "output_dim": "4*d", "when": "i > 0", "share": "a"}, {"type": "glu", "mult": "i + 1"}],
        repeat=2,
    )
    given = {"blocks": content, "sizes": {"d": 8}}
    shapes = {"x": ["B", "L", "4*d"]}
    before = copy.deepcopy((given, shapes))
    a, b = build(given, shapes), build(given, shapes)
    assert (given, shapes) == before
    assert a.spec == b.spec


@pytest.mark.parametrize(
    ("sizes", "path", "words"),
    [
        ({"i": 3}, "sizes.i", "'i' is taken"),
        ({"n": 3}, "sizes.n", "'n' is taken"),
        ({"a b": 3}, "sizes.a b", "form of a name"),
        ({"d": None}, "sizes.d", "must be a number"),
        ({"h": "d//2", "d": 3}, "sizes.h", "names 'd', which comes after it"),
        ([3], "sizes", "must be a dict"),
        ({"d": "dd"}, "sizes.d", "sizes={...} names numbers"),
    ],
)
def test_sizes_that_are_none(sizes: Any, path: str, words: str) -> None:
    assert words in problems(blocks([{"type": "linear"}]), sizes=sizes)[path]


def test_every_mistake_in_an_expression_is_told_at_once_with_its_place() -> None:
    config = [
        {"type": "linear", "output_dim": "4*dd"},
        {"type": "linear", "output_dim": "d/3"},
        {"type": "dropout", "prob": "0/(1 - i)"},
        {"type": "linear", "output_dim": "d", "when": "i % 2"},
        {"type": "glu", "mult": "2*m", "activation": "relo"},
    ]
    found = problems(blocks(config, repeat=3), sizes={"d": 32})
    assert found["blocks.0.config.0.output_dim"].startswith("blocks.0.config.0.output_dim: Block #1, line 1:")
    assert "did you mean 'd'?" in found["blocks.0.config.0.output_dim"]
    assert "an integer is due" in found["blocks.0.config.1.output_dim"]
    assert "Block #1, repeat 2, line 3: '0/(1 - i)' divides by zero" in found["blocks.0.config.2.prob"]
    assert "a condition is true or false" in found["blocks.0.config.3.when"]
    assert "'m' is not known" in found["blocks.0.config.4.mult"]
    assert set(found) == {
        "blocks.0.config.0.output_dim",
        "blocks.0.config.1.output_dim",
        "blocks.0.config.2.prob",
        "blocks.0.config.3.when",
        "blocks.0.config.4.mult",
    }


def test_without_sizes_the_message_says_how_to_give_them() -> None:
    text = problems(blocks([{"type": "linear", "output_dim": "d"}]))["blocks.0.config.0.output_dim"]
    assert "known: i, n; sizes={...} names numbers" in text


# ---- the number of the repeat ----


def test_the_repeat_counts_from_zero() -> None:
    config = [{"type": "linear", "output_dim": "8*(i + 1) + n"}]
    table = str(build(blocks(config, repeat=3)).table)
    assert [row.split("x (B, L, ")[-1] for row in table.splitlines() if "->" in row] == ["11)", "19)", "27)"]
    assert "Block #1 (repeat 3), 1x" in table


def test_settings_that_shapes_do_not_show_are_told() -> None:
    config = [{"type": "dropout", "prob": "0.1*i/n"}, {"type": "linear"}]
    table = str(build(blocks(config, repeat=2)).table)
    assert "p = 0.0" in table
    assert "p = 0.05" in table
    assert table.count("; ") == 2


# ---- conditions ----


def test_a_step_stands_where_its_condition_holds() -> None:
    config = [
        {"type": "linear", "output_dim": 32, "when": "i % 2 == 0"},
        {"type": "norm", "when": "i == n - 1"},
        {"type": "activation"},
    ]
    model = build(blocks(config, repeat=4))
    assert [(row.repeat, row.line, row.name) for row in model.table.rows] == [
        (1, 1, "linear"),
        (1, 3, "activation"),
        (2, 3, "activation"),
        (3, 1, "linear"),
        (3, 3, "activation"),
        (4, 2, "norm"),
        (4, 3, "activation"),
    ]
    names = {name.rsplit(".", 1)[0] for name, _ in model.named_parameters()}
    assert names == {"lines.0.lines.0.op.project", "lines.2.lines.0.op.project", "lines.3.lines.1.op"}
    assert "Block #1 (repeat 1, 3), 2x" in str(model.table)
    assert model({"x": torch.randn(1, 3, 32)})["x"].shape == (1, 3, 32)


def test_a_block_stands_where_its_condition_holds() -> None:
    content = [
        {"config": [{"type": "linear", "output_dim": 32}], "repeat": 5, "when": "i % 2 == 1"},
        {"config": [{"type": "norm"}], "repeat": 2, "when": "d > 8"},
    ]
    model = build(content, sizes={"d": 8})
    assert [(row.block, row.repeat) for row in model.table.rows] == [("Block #1", 2), ("Block #1", 4)]
    again = build(content, sizes={"d": 9})
    assert [row.block for row in again.table.rows] == ["Block #1"] * 2 + ["Block #2"] * 2


def test_a_condition_runs_as_the_lines_that_are_left() -> None:
    config = [{"type": "linear", "when": "i != 1"}, {"type": "activation", "when": "i == 1"}]
    model = build(blocks(config, repeat=3)).double()
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    a, b = model.lines[0].lines[0].op, model.lines[2].lines[0].op
    assert torch.equal(model({"x": x})["x"], b(torch.nn.functional.gelu(a(x))))


def test_mistakes_behind_a_false_condition_count_where_it_is_true() -> None:
    found = problems(blocks([{"type": "linear", "input_name": "y", "when": "i == 2"}], repeat=4))
    assert list(found) == ["blocks.0.config.0"]
    assert "Block #1, repeat 3, line 1 (linear): reads 'y'" in found["blocks.0.config.0"]


# ---- shared weights ----


def test_shared_steps_are_one_module() -> None:
    config = [{"type": "linear", "share": "mix"}, {"type": "activation"}, {"type": "linear"}]
    model = build(blocks(config, [{"type": "linear", "share": "mix"}], repeat=3))
    assert len({id(module) for _, module in model.named_modules() if type(module).__name__ == "LinearOp"}) == 4
    assert sum(p.numel() for p in model.parameters()) == 4 * (32 * 32 + 32)
    shared = model.lines[0].lines[0].op
    assert all(model.lines[i].lines[0].op is shared for i in range(6))
    model({"x": torch.randn(1, 2, 32)})["x"].sum().backward()
    assert isinstance(shared.project.weight.grad, Tensor)


def test_what_is_shared_must_be_described_alike() -> None:
    config = [
        {"type": "linear", "share": "mix"},
        {"type": "linear", "share": "mix", "output_dim": 32, "init_bias": 0},
        {"type": "norm", "share": "mix"},
    ]
    found = problems(blocks(config))
    text = found["blocks.0.config.1.share"]
    assert "Block #1, line 2: 'mix' is described differently at Block #1, line 1: out = None there, 32 here" in text
    assert "op 'linear' there, norm 'layer_norm' here" in found["blocks.0.config.2.share"]


def test_what_is_shared_must_have_the_same_sizes() -> None:
    config = [
        {"type": "norm", "share": "one"},
        {"type": "linear", "output_dim": 16},
        {"type": "norm", "share": "one"},
    ]
    text = problems(blocks(config, [{"type": "linear"}]))["blocks.0.config.2"]
    assert "Block #1, line 3" in text
    assert "other dim here than at Block #1, line 1" in text


def test_a_head_is_tied_to_its_embedding() -> None:
    content = blocks(
        [{"type": "embedding", "num_classes": 11, "output_dim": 8, "share": "tokens"}],
        [{"type": "unembed", "embedding": "tokens", "scale": "d**-0.5"}],
    )
    model = build(content, {"emb_ids": ["B", "L"]}, sizes={"d": 8}).double()
    (weight,) = model.parameters()
    ids = torch.randint(0, 11, (2, 3))
    expected = weight[ids] @ weight.T * 8**-0.5
    torch.testing.assert_close(model({"emb_ids": ids})["x"], expected, rtol=1e-12, atol=1e-12)


def test_an_unknown_shared_name_is_told() -> None:
    shapes = {"emb_ids": ["B", "L"]}
    content = blocks([{"type": "embedding", "num_classes": 11, "output_dim": 8, "share": "tokens"}])
    found = problems([*content, *blocks([{"type": "unembed", "embedding": "token"}])], shapes)
    assert "nothing defines the shared part 'token'; did you mean 'tokens'?" in found["blocks.1.config.0.embedding"]
    found = problems([*content, *blocks([{"type": "unembed"}])], shapes)
    assert "name of a shared embedding" in found["blocks.1.config.0.embedding"]


def test_names_and_labels_are_names() -> None:
    found = problems(blocks([{"type": "linear", "share": 3}, {"type": "linear", "label": ""}]))
    assert set(found) == {"blocks.0.config.0.share", "blocks.0.config.1.label"}
    model = build(blocks([{"type": "linear", "label": "mix"}]))
    assert rows(model) == ["mix -> Input(s): x (B, L, 32) - Output(s): x (B, L, 32)"]


# ---- programs in programs ----

INNER = [
    {"type": "make_stream", "output_name": "r"},
    {"type": "linear", "output_dim": "2*d"},
    {"type": "activation"},
    {"type": "linear", "output_dim": "d"},
    {"type": "merge_streams", "input_name_1": "r"},
]


def test_a_program_is_a_step() -> None:
    nested = build(blocks([{"type": "program", "config": INNER, "label": "ffn"}], repeat=2), sizes={"d": 32}).double()
    flat = build(blocks(INNER, repeat=2), sizes={"d": 32}).double()
    for a, b in zip(nested.parameters(), flat.parameters(), strict=True):
        a.data.copy_(b.data)
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    assert torch.equal(nested({"x": x})["x"], flat({"x": x})["x"])
    assert rows(nested)[0] == "ffn -> Input(s): x (B, L, 32) - Output(s): x (B, L, 32)"


def test_a_nested_program_has_blocks_streams_and_names_of_its_own() -> None:
    inner = [{"config": [{"type": "merge_streams", "input_name_2": "c", "when": "i < n"}], "repeat": 2}]
    step = {
        "type": "program",
        "blocks": inner,
        "streams": {"c": ["B", "L", "d"]},
        "input_names": ["x", "c"],
        "output_name": "y",
    }
    model = build(blocks([{"type": "make_stream", "output_name": "c"}, step]), sizes={"d": 32})
    x = torch.randn(2, 3, 32)
    torch.testing.assert_close(model({"x": x})["y"], 3 * x)


def test_what_a_nested_program_reads_beside_x_must_be_named() -> None:
    inner = [{"type": "merge_streams", "input_name_2": "c"}]
    step = {"type": "program", "config": inner, "streams": {"c": ["B", "L", 32]}}
    for names in (["c"], ["x"]):
        found = problems(blocks([{**step, "input_names": names}]), {**X, "c": ["B", "L", 32]})
        assert "the stream 'c'" in found["blocks.0.config.0"]


def test_mistakes_in_a_nested_program_have_their_place() -> None:
    inner = [{"type": "linear", "output_dmi": 3}, {"type": "norm", "input_name": "z"}, {"type": "linear"}]
    found = problems(blocks([{"type": "norm"}, {"type": "program", "config": inner}]))
    assert "Block #1, line 2 (program), line 1: " in found["blocks.0.config.1.config.0.output_dmi"]
    inner = [{"type": "linear", "output_dim": 16}, {"type": "norm", "input_name": "z"}]
    found = problems(blocks([{"type": "norm"}, {"type": "program", "config": inner}], repeat=2))
    assert "Block #1, line 2 (program), line 2 (norm): reads 'z'" in found["blocks.0.config.1.config.1"]
    step = {"type": "program", "config": [{"type": "linear"}], "streams": {"c": ["B"]}, "input_names": ["x", "c"]}
    found = problems(blocks([step]), {**X, "c": ["B"]})
    assert "'c' is never read" in found["blocks.0.config.0.streams.c"]
    found = problems(blocks([{"type": "program"}, {"type": "program", "config": 3}]))
    assert "a list of modules" in found["blocks.0.config.0.config"]
    assert "list of dicts" in found["blocks.0.config.1.config"]


# ---- what has always been there ----


def test_module_types_take_the_common_keys() -> None:
    assert not {"when", "share", "label"} & {key for kind in TYPES.values() for key in kind.keys}


@pytest.mark.parametrize("repeat", ["k/2", "kk", "k > 1", "0 - k", 10**9, 1.5])
def test_a_repeat_is_a_number_of_copies(repeat: Any) -> None:
    assert list(problems(blocks([{"type": "linear"}], repeat=repeat), sizes={"k": 3})) == ["blocks.0.repeat"]
