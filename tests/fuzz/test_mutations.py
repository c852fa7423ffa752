"""A wrong config builds and runs, or is refused with a `ConfigError` whose paths exist; nothing else ever comes out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import variform as vf
from tests.fuzz.architectures import draw
from tests.fuzz.mutations import Mutant, mutant
from variform.core.fields import field_map
from variform.core.registry import lookup
from variform.errors import Problem

LARGEST = 2_000_000
"""Parameters of the largest model that is really built here."""


def _mutants(first: int, count: int) -> Iterator[Mutant]:
    for seed in range(first, first + count):
        yield mutant(draw(seed % 211).data, seed)


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_a_changed_config_runs_or_is_refused_with_paths(first: int) -> None:
    outcomes = [_outcome(changed) for changed in _mutants(first, 50)]
    assert {"refused", "ran"} <= set(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 2000, 250))
def test_many_changed_configs(first: int) -> None:
    for changed in _mutants(first, 250):
        _outcome(changed)


def _outcome(changed: Mutant) -> str:
    before = repr(changed.data)
    try:
        return _run(changed.data)
    except vf.ConfigError as refusal:
        _check_refusal(refusal, changed)
        return "refused"
    except Exception as error:
        error.add_note(changed.label)
        raise
    finally:
        assert repr(changed.data) == before, f"{changed.label}: the data was changed"


def _check_refusal(refusal: vf.ConfigError, changed: Mutant) -> None:
    """Each problem says something, stands once, and its path leads somewhere."""
    for problem in refusal.problems:
        assert problem.message, changed.label
        assert _exists(problem, changed.data), f"{changed.label}: no such path {problem.path!r}: {problem}"
    assert len({str(problem) for problem in refusal.problems}) == len(refusal.problems), f"{changed.label}: {refusal}"


def _run(data: Any) -> str:
    spec = vf.resolve(vf.from_dict(data))
    assert vf.check(spec).ok
    if not vf.check(spec, max_params=LARGEST).ok:
        return "too large to build here"
    model = vf.build(spec).eval()
    longest = getattr(model, "max_seq_len", None)
    arguments, streams = model.example_inputs(2, min(5, longest or 5))
    with torch.no_grad():
        model(*arguments, **streams)
    return "ran"


def _exists(problem: Problem, data: Any) -> bool:
    """Whether a path leads to a place of the config, or to a field that a part there has, lacks or misspells."""
    steps = problem.path.split(".") if problem.path else []
    return "preset" in data or _leads(data, steps)


def _leads(node: Any, steps: list[str]) -> bool:
    if not steps:
        return True
    step, *rest = steps
    if isinstance(node, dict) and "of" in node and step != "of" and step not in node:
        return _leads(node["of"], steps)
    if isinstance(node, (list, tuple)):
        items = list(_expanded(node))
        return step.isdigit() and int(step) < len(items) and _leads(items[int(step)], rest)
    if isinstance(node, dict):
        found = [value for key, value in node.items() if str(key) == step]
        if found and (rest or not isinstance(found[0], dict)):
            return _leads(found[0], rest)
        return bool(found) or not rest or step == "of" or _default(node, step, rest)
    return step in ("part", "of") or isinstance(node, str)  # what is no part, or a part written as its name alone


def _default(node: dict[str, Any], step: str, rest: list[str]) -> bool:
    """Whether a path goes on inside a part that stands there by default, or is the field of a shared part."""
    if "shared" in node:
        return True
    field = field_map(lookup(node["part"])).get(step) if isinstance(node.get("part"), str) else None
    return field is not None and field.is_slot


def _expanded(items: Any) -> Iterator[Any]:
    for item in items:
        count = item.get("repeat") if isinstance(item, dict) else None
        if isinstance(count, int) and not isinstance(count, bool) and count >= 0 and "of" in item:
            yield from [item["of"]] * count
        else:
            yield item


def test_all_mistakes_of_a_config_are_reported_at_once() -> None:
    data = {
        "part": "transformer",
        "dimm": 30,
        "heads": "x",
        "embedding": None,
        "stacks": [
            {"part": "stak", "layers": []},
            {
                "part": "stack",
                "layers": [
                    {
                        "part": "sublayer",
                        "body": {"part": "multi_head", "dim": 30, "heads": 4, "attention": "softmx"},
                        "norm": {"part": "layer_norm", "eps": -1},
                    },
                    {"part": "sublayer", "body": {"part": "multi_head", "dim": 30, "heads": 4}},
                ],
            },
        ],
    }
    with pytest.raises(vf.ConfigError) as caught:
        vf.from_dict(data)
    body = "stacks.1.layers.0.sublayers".removesuffix(".sublayers")
    assert {problem.path for problem in caught.value.problems} == {
        "dimm",
        "heads",
        "stacks.0.part",
        f"{body}.body.attention.part",
        f"{body}.norm.eps",
        "stacks.1.layers.1.body.heads",
    }


def test_a_misspelt_field_is_reported_once() -> None:
    with pytest.raises(vf.ConfigError, match=re.escape("did you mean 'window'?")) as caught:
        vf.from_dict({"part": "attention/local", "windw": 3})
    assert len(caught.value.problems) == 1


def test_overrides_are_reported_at_once() -> None:
    spec = vf.models.gpt(vocab_size=11, dim=16, depth=2, heads=2, max_seq_len=8)
    with pytest.raises(vf.ConfigError) as caught:
        vf.override(spec, ["dimm=3", "stacks.9.norm=rms_norm", "heads=4", "no sign"])
    assert [problem.path for problem in caught.value.problems] == ["dimm", "stacks.9.norm", ""]


def test_shared_parts_are_checked_as_what_they_are() -> None:
    data = {
        "part": "cross_attention",
        "dim": 8,
        "heads": 2,
        "attention": {"shared": "one", "of": {"part": "local", "window": 3}},
    }
    with pytest.raises(vf.ConfigError, match="cannot attend to another sequence"):
        vf.resolve(vf.from_dict(data))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("path", ["mult", "dropout", "init_std"])
def test_numbers_are_finite(path: str, value: float) -> None:
    with pytest.raises(vf.ConfigError, match=path):
        vf.resolve(vf.from_dict({"part": "mlp", "dim": 8, path: value}))
