from typing import Any

import pytest
import yaml

from tests.dialects.configaformers.programs import demo
from variform.dialects.configaformers import ConfigaFormer, ConfigaformersError
from variform.dialects.configaformers.files import program_of
from variform.dialects.configaformers.model_builder import program_spec

CONFIG = demo(dim=48, heads=4, depth=2, vocab=65, rotate_dim=4)
AT = {"B": 2, "L_in": 17}


def file(**more: Any) -> dict[str, Any]:
    content = {**CONFIG["model_config"], "input_streams": CONFIG["input_streams"], **more}
    return dict(yaml.safe_load(yaml.safe_dump(content)))


def test_within_budget() -> None:
    budget = {"max_params": "100K", "max_flops": "10M", "max_memory": "4MiB", "at": AT}
    assert program_spec(**CONFIG, budget=budget) == program_spec(**CONFIG)
    assert program_of(file(budget=budget)) == program_spec(**CONFIG)


@pytest.mark.parametrize("limit", [{"max_params": "50K"}, {"max_flops": "1M"}, {"max_memory": "100 KiB"}])
def test_over_budget(limit: dict[str, Any]) -> None:
    with pytest.raises(ConfigaformersError, match=rf"^budget: .*more than {next(iter(limit))} = .*Block #2, line"):
        ConfigaFormer(**CONFIG, verbose=False, budget={**limit, "at": AT})
    with pytest.raises(ConfigaformersError, match=r"^budget: "):
        program_of(file(budget={**limit, "at": AT}))


def test_overrides_reach_the_budget_and_count_in_it() -> None:
    content = file(budget={"max_params": "100K"})
    program_of(content)
    with pytest.raises(ConfigaformersError, match="max_params"):
        program_of(content, ["blocks.1.repeat=9"])
    with pytest.raises(ConfigaformersError, match="max_params"):
        program_of(content, ["budget.max_params=1"])


def test_the_executor_of_a_file_counts() -> None:
    budget = {"max_memory": "1.5 MiB", "at": {"B": 1, "L_in": 65}}
    program_of(file(budget=budget, executor="checkpoint"))
    with pytest.raises(ConfigaformersError, match="max_memory"):
        program_of(file(budget=budget))


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        ({"max_param": 1}, "budget.max_param: a budget has no such key; did you mean 'max_params'"),
        ({"max_params": "much"}, "budget.max_params: must be"),
        ({"max_flops": "1T"}, "budget.at: operations and memory depend on the sizes"),
        ({"max_flops": "1T", "at": 5}, "budget.at: must be a mapping"),
        ({"max_flops": "1T", "at": {"B": 2}}, "budget: give a number for L_in"),
        ({"max_flops": "1T", "at": {"B": 2, "M": 2}}, "budget: this model has no size 'M'"),
        (5, "budget: must be a mapping"),
    ],
)
def test_budgets_that_are_none(budget: Any, text: str) -> None:
    with pytest.raises(ConfigaformersError) as caught:
        program_spec(**CONFIG, budget=budget)
    assert text in str(caught.value)


def test_the_table_of_costs(capsys: pytest.CaptureFixture[str]) -> None:
    model = ConfigaFormer(**CONFIG)
    plain = capsys.readouterr().out
    assert plain == f"{model.table}\n"
    assert "FLOPs" not in plain
    ConfigaFormer(**CONFIG, verbose="costs")
    costs = capsys.readouterr().out
    assert "192*BSZ*L_in**2" in costs
    assert "one copy" in costs
