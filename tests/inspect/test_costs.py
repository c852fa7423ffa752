"""Formulas against what really running a model keeps and computes, at sizes that no formula was made from."""

import ast
import functools
import json
from typing import Any

import pytest
import torch

import variform as vf
from tests.dialects.configaformers.programs import demo
from tests.inspect.cases import MODELS, SIZES, TOKENS, saved_bytes, state_bytes
from variform.core.spec import Spec
from variform.dialects.configaformers.model_builder import program_spec
from variform.inspect import Costs
from variform.parts.op.tokenwise import LinearOp
from variform.stack.lines import Block, Step
from variform.stack.program import ProgramModel

DEMO = program_spec(**demo(dim=48, heads=4, depth=2, vocab=65, rotate_dim=4))
LITERAL = vf.resolve(DEMO.replace(attention="literal"))
GPT = vf.models.gpt(**TOKENS, max_seq_len=64)


@functools.cache
def costs_of(spec: Spec) -> Costs:
    """The formulas; several tests look at the same ones."""
    return vf.costs(spec)


def named(costs: Any, batch: int, length: int) -> dict[str, int]:
    sizes = {**dict.fromkeys(costs.sizes.batches, batch), **dict.fromkeys(costs.sizes.lengths, length)}
    return {**sizes, "max_len": length}


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"local", "gpt_tied", "shared", "llama_limited"}))
def test_formulas_equal_measurements(name: str) -> None:
    spec = MODELS[name]()
    costs = vf.costs(spec)
    for batch, length in SIZES:
        described, sizes = vf.describe(spec, batch, length), named(costs, batch, length)
        for row, place in zip(described.rows, costs.places, strict=True):
            assert (row.path, row.params) == (place.path, place.cost.params)
            for figure in ("flops", "flops_dense", "flops_backward", "activation_bytes", "state_bytes"):
                amount = getattr(place.cost, figure)
                value = None if amount is None else amount.expression.value(sizes)
                assert value == getattr(row, figure), (row.path, figure)


@pytest.mark.parametrize("spec", [DEMO, LITERAL], ids=["fused", "literal"])
@pytest.mark.parametrize(("batch", "length"), SIZES)
def test_kept_bytes_of_a_program_equal_those_of_a_real_run(spec: Spec, batch: int, length: int) -> None:
    model = vf.build(spec)
    costs = costs_of(spec)
    sizes = named(costs, batch, length)
    real = saved_bytes(model, *model.example_inputs(batch, length)[0])
    assert costs.total.activation_bytes.expression.value(sizes) == real
    assert sum(line.cost.activation_bytes.expression.value(sizes) for line in costs.lines) == real


def test_the_formulas_of_a_demo_are_those_of_the_textbook() -> None:
    costs = costs_of(DEMO)
    by_name = {line.row.name: line.cost for line in costs.groups[1].typical}
    dim, heads = 48, 4
    assert not by_name["mha_dots"].flops  # they are not computed apart, but with the weighted sum
    assert str(by_name["mha_sum"].flops) == f"{4 * dim}*BSZ*L_in**2"
    literal = costs_of(LITERAL)
    by_name = {line.row.name: line.cost for line in literal.groups[1].typical}
    assert str(by_name["mha_dots"].flops) == str(by_name["mha_sum"].flops) == f"{2 * dim}*BSZ*L_in**2"
    assert str(by_name["mha_sum"].activation_bytes) == f"{4 * heads}*BSZ*L_in**2 + {4 * dim}*BSZ*L_in"
    assert literal.total.flops == costs.total.flops
    first = costs.groups[1].copies[0][2]
    assert (first.row.name, first.cost.params) == ("linear", dim * dim + dim)
    assert str(first.cost.flops) == f"{2 * dim * dim}*BSZ*L_in"
    assert str(first.cost.flops_backward) == f"{4 * dim * dim}*BSZ*L_in"
    layer = costs.groups[1]
    assert str(layer.one.flops) == f"{4 * dim}*BSZ*L_in**2 + {24 * dim * dim}*BSZ*L_in"
    assert len(layer.copies) == 2
    assert layer.all.flops.expression == layer.one.flops.expression * 2
    assert layer.all.params == 2 * layer.one.params


def test_groups_and_lines_add_up_to_the_whole() -> None:
    costs = costs_of(DEMO)
    whole = costs.total
    assert sum(group.all.params for group in costs.groups) == whole.params
    for figure in ("flops", "flops_backward", "activation_bytes"):
        parts = [getattr(group.all, figure).expression for group in costs.groups]
        assert sum(parts[1:], start=parts[0]) == getattr(whole, figure).expression
    assert costs.outside is not None
    assert not any((costs.outside.params, costs.outside.flops, costs.outside.activation_bytes))


def test_numbers_at_sizes_by_name() -> None:
    costs = vf.costs(DEMO, {"B": 2, "L_in": 33})
    assert costs.at == {"BSZ": 2, "L_in": 33, "max_len": 33}
    described = vf.describe(DEMO, 2, 33)
    assert costs.total.flops.number == described.flops
    assert described.costs.total == costs.total
    assert [line.cost for line in described.lines] == [line.cost for line in costs.lines]
    for line in costs.lines:
        assert line.cost.flops.number == line.cost.flops.expression.value(costs.at)
    short = vf.costs(GPT, {"B": 2, "L": 33, "max_len": 9}).total.state_bytes
    assert short is not None
    assert short.number == state_bytes(vf.build(GPT).init_state(2, 9))


@pytest.mark.parametrize(
    ("at", "text"),
    [
        ({"B": 2}, "give a number for L_in"),
        ({"B": 2, "L_on": 3}, "no size 'L_on'; did you mean 'L_in'"),
        ({"B": 0, "L_in": 3}, "must be a positive integer"),
        ({"B": 2.0, "L_in": 3}, "must be a positive integer"),
    ],
)
def test_sizes_that_are_none(at: dict[str, Any], text: str) -> None:
    with pytest.raises(vf.ConfigError, match=text):
        vf.costs(DEMO, at)


def test_sizes_that_the_model_does_not_take() -> None:
    with pytest.raises(vf.ShapeError, match="max_seq_len is 64"):
        vf.costs(GPT, {"B": 1, "L": 65})
    with pytest.raises(vf.ConfigError, match="no size 'L'"):
        vf.costs(MODELS["vit"](), {"B": 1, "L": 5})
    assert max(point["L"] for point in costs_of(GPT).measured_at) == 64


def test_weights_that_lines_share_count_once_in_sums() -> None:
    shared = vf.Shared("w", LinearOp.spec())
    block = Block.spec(lines=[Step.spec(op=shared), Step.spec(op=LinearOp.spec())], label="Block")
    spec = ProgramModel.spec(lines=[block, block], inputs={"x": ("B", "L", 8)})
    costs = vf.costs(spec)
    one = 8 * 8 + 8
    assert [line.cost.params for line in costs.lines] == [one] * 4
    assert costs.groups[0].one.params == 2 * one
    assert (
        costs.groups[0].all.params
        == costs.total.params
        == 3 * one
        == sum(p.numel() for p in vf.build(spec).parameters())
    )


def several_lengths() -> Spec:
    lines = [
        Step.spec(op=LinearOp.spec(out=6), reads=("x",), into=("y",)),
        Step.spec(op=LinearOp.spec(out=6), reads=("z",), into=("z",)),
    ]
    return ProgramModel.spec(lines=lines, inputs={"x": ("B", "L", 8), "z": ("B", "M//2", 8)}, outputs=("y", "z"))


def test_several_lengths_and_divided_ones() -> None:
    costs = vf.costs(several_lengths())
    assert costs.sizes.names == ("B", "L", "M")
    assert [str(line.cost.flops) for line in costs.lines] == ["96*B*L", "96*B*(M//2)"]
    assert str(costs.total.flops) == "96*B*L + 96*B*(M//2)"


def test_where_no_formula_holds_the_number_stands() -> None:
    class Ragged(LinearOp):
        """Keeps a number of bytes that is no polynomial of its sizes."""

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            extra = torch.zeros(1 << inputs[0].shape[1].bit_length(), requires_grad=True).exp()
            return super().forward(*inputs) + extra.sum()

    lines = [Step.spec(op=Ragged.spec()), Step.spec(op=LinearOp.spec())]
    spec = ProgramModel.spec(lines=lines, inputs={"x": ("B", "L", 8)})
    free, here = vf.costs(spec), vf.costs(spec, {"B": 2, "L": 9})
    assert str(free.lines[0].cost.activation_bytes) == "no formula"
    assert str(free.lines[0].cost.flops) == "128*B*L"
    assert str(free.lines[1].cost.activation_bytes) == "32*B*L"
    model = vf.build(spec)
    assert here.total.activation_bytes.number == saved_bytes(model, *model.example_inputs(2, 9)[0])
    assert "no formula" in str(here)


def test_text_shows_formulas_and_folds_copies() -> None:
    text = str(costs_of(DEMO))
    assert text.count("mha_sum") == 1
    assert "in repeat 1" in text  # the offset that all copies keep counts for the first
    assert "Block #2, 2x" in text
    assert "one copy" in text
    assert "all 2" in text
    assert "192*BSZ*L_in**2" in text
    assert "L_in**2" not in str(vf.costs(DEMO, {"B": 2, "L_in": 9})).split("parameters")[0]
    tree = str(costs_of(GPT))
    assert "layers.0..2 layer x3" in tree
    assert "288*B*L**2 + 172416*B*L" in tree
    assert max(map(len, text.splitlines())) <= 200


def test_json_holds_formulas_that_python_reads() -> None:
    costs = vf.describe(DEMO, 2, 33).costs
    data = json.loads(json.dumps(costs.to_json()))
    assert data["at"] == {"BSZ": 2, "L_in": 33, "max_len": 33}
    assert len(data["lines"]) == len(costs.lines) == 1 + 2 * 20 + 7
    for entry in [data["total"], *data["lines"], *(block["all_copies"] for block in data["blocks"])]:
        for figure in ("flops", "activation_bytes"):
            amount = entry[figure]
            assert (
                eval(compile(ast.parse(amount["expression"], mode="eval"), "", "eval"), data["at"]) == amount["value"]
            )
    assert data["blocks"][1]["copies"] == 2


def test_single_parts() -> None:
    costs = vf.costs({"part": "mixer/multi_head", "dim": 48, "heads": 4})
    assert costs.total.params == 4 * 48 * 48
    assert str(costs.total.flops) == f"{4 * 48}*B*L**2 + {8 * 48 * 48}*B*L"
    assert not costs.lines


def test_other_types_and_devices() -> None:
    half = vf.costs(GPT, dtype=torch.bfloat16)
    model = vf.build(GPT, dtype=torch.bfloat16)
    kept = half.total.activation_bytes.expression
    assert kept.value({"B": 2, "L": 33}) == saved_bytes(model, *model.example_inputs(2, 33)[0])
    there = vf.costs(MODELS["gpt_dropout"](), device="cuda").place("stacks.0.layers.0.sublayers.0.body.attention")
    assert there.cost.activation_bytes.expression.value({"B": 2, "L": 32}) == 4 * (4 * 2 * 32 * 48 + 2 * 4 * 32)


def test_checkpointed_blocks_keep_their_inputs_alone() -> None:
    spec = vf.resolve(DEMO.replace(executor="checkpoint"))
    costs, model = vf.costs(spec), vf.build(spec)
    sizes = named(costs, 2, 33)
    real = saved_bytes(model, *model.example_inputs(2, 33)[0])
    assert costs.total.activation_bytes.expression.value(sizes) == real
    assert real < costs_of(DEMO).total.activation_bytes.expression.value(sizes) / 2
