from typing import Any

import pytest

import variform as vf
from tests.dialects.configaformers.programs import demo
from tests.inspect.cases import MODELS, TOKENS
from variform.dialects.configaformers.model_builder import program_spec
from variform.inspect.budget import read_amount

GPT = vf.models.gpt(**TOKENS, max_seq_len=64)
DEMO = program_spec(**demo(dim=48, heads=4, depth=2, vocab=65, rotate_dim=4))


@pytest.mark.parametrize(
    ("text", "unit", "number"),
    [
        (250, "", 250),
        (1e9, "", 10**9),
        ("100M", "", 100_000_000),
        ("1.5G", "", 1_500_000_000),
        ("5T", "FLOP", 5 * 10**12),
        ("5 TFLOP", "FLOP", 5 * 10**12),
        ("2GiB", "B", 2 << 30),
        ("2 gib", "B", 2 << 30),
        ("24 GB", "B", 24 * 10**9),
        ("1.5 KiB", "B", 1536),
        ("64", "B", 64),
        ("1e6", "", 10**6),
    ],
)
def test_amounts(text: Any, unit: str, number: int) -> None:
    assert read_amount(text, unit) == number


@pytest.mark.parametrize(
    "text", ["", "much", "5 X", "-3", "0", 0, -1, True, "5GiBB", "1..5M", float("inf"), float("nan")]
)
def test_amounts_that_are_none(text: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        read_amount(text, "B")


def test_all_limits_that_cannot_be_read_are_told_at_once() -> None:
    with pytest.raises(vf.ConfigError) as caught:
        vf.check(GPT, max_params="many", max_flops="some", max_memory="1 GiBit")
    assert [problem.path for problem in caught.value.problems] == ["max_params", "max_flops", "max_memory"]


def test_the_limit_itself_is_allowed() -> None:
    found = vf.describe(DEMO, 2, 17)
    exact = {"max_params": found.params, "max_flops": found.flops, "max_memory": found.memory_training().total}
    assert vf.check(DEMO, at={"B": 2, "L_in": 17}, **exact).ok
    assert vf.check(DEMO, batch=2, length=17, **exact).ok
    for name, limit in exact.items():
        (problem,) = vf.check(DEMO, at={"B": 2, "L_in": 17}, **{name: limit - 1}).problems
        assert name in problem.message


def test_the_heaviest_lines_are_named() -> None:
    report = vf.check(DEMO, at={"B": 2, "L_in": 17}, max_params="50K", max_flops=1, max_memory="10 KiB")
    params, flops, memory = report.problems
    assert params.message == f"the model has {report.params:,} parameters, more than max_params = 50,000"
    # Two copies of the map to four times the features: the most parameters, 9,408 each.
    assert params.hint.startswith("the most are in Block #2, line 17 (linear) at lines.1..2.lines.16 x2 (18,816 in all")
    assert "Block #2, line 17 (linear)" in flops.hint
    assert "Block #2" in memory.hint
    assert report.flops == vf.describe(DEMO, 2, 17).flops
    assert not report.ok


def test_figures_that_look_alike_are_told_in_full() -> None:
    found = vf.describe(DEMO, 2, 17)
    flops, memory = found.flops, found.memory_training().total
    report = vf.check(DEMO, at={"B": 2, "L_in": 17}, max_flops=flops - 1, max_memory=memory - 1)
    assert [problem.message for problem in report.problems] == [
        f"a forward pass takes {flops:,} FLOP, more than max_flops = {flops - 1:,}",
        f"a training step takes {memory:,}, more than max_memory = {memory - 1:,}",
    ]


def test_the_heaviest_parts_are_named() -> None:
    (problem,) = vf.check(GPT, max_params=10).problems
    assert "mlp at stacks.0.layers.0..2.sublayers.1.body x3 (56,016 in all, 18,672 each)" in problem.hint or (
        "mlp at stacks.0.layers.0..2.sublayers.1.body x3 (55,296 in all, 18,432 each)" in problem.hint
    )


def test_memory_is_that_of_the_optimizer() -> None:
    found = vf.describe(GPT, 2, 17)
    plain = found.memory_training("sgd").total
    assert vf.check(GPT, batch=2, length=17, max_memory=plain, optimizer="sgd").ok
    assert not vf.check(GPT, batch=2, length=17, max_memory=plain).ok
    with pytest.raises(vf.ConfigError, match="did you mean 'adam' or 'adamw'"):
        vf.check(GPT, max_params=1, optimizer="adamv")


def test_sizes_given_twice() -> None:
    with pytest.raises(vf.ConfigError, match="not both"):
        vf.check(DEMO, batch=2, at={"B": 2, "L_in": 3})


def test_sizes_that_do_not_fit_are_problems() -> None:
    (problem,) = vf.check(DEMO, at={"B": 2}, max_flops="1T").problems
    assert "give a number for L_in" in problem.message
    (problem,) = vf.check(MODELS["llama"](), max_flops="1T").problems
    assert "give length" in problem.message
