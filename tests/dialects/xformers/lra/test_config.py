"""The file of settings: presets, single changes, xFormers' own figures, and every mistake with its path."""

import json
from pathlib import Path
from typing import Any

import pytest

import variform as vf
from tests.dialects.xformers.lra.settings import EXAMPLE, content, write
from variform.dialects.xformers.benchmarks.LRA.config import TASKS, read_changes, read_settings

# task: batch, accumulation, warmup, steps, validation, features, heads, layers, multiplier, length, pooling, reversible
UPSTREAM = {
    "text": (32, 1, 8000, 20000, 500, 256, 4, 4, 4, 4096, "cls", False),
    "listops": (32, 2, 1000, 10000, 50, 64, 2, 2, 2, 2048, "mean", False),
    "retrieval": (32, 2, 800, 30000, 300, 64, 2, 2, 2, 4096, "mean", True),
    "pathfinder32-curv_baseline": (256, 1, 312, 62400, 312, 64, 2, 2, 2, 1024, "mean", True),
    "image": (256, 1, 175, 35000, 175, 64, 2, 2, 2, 1024, "mean", True),
}


@pytest.mark.parametrize("task", UPSTREAM)
def test_the_example_has_the_settings_of_xformers(task: str) -> None:
    found = read_settings(EXAMPLE, task, "full")
    training, common, block = found.training, found.common, found.xformer[0]
    figures = (
        *(training.batch_size, training.gradient_accumulation, training.warmup, training.num_train_steps),
        *(training.eval_frequency, common.dim_model, common.num_heads, block["num_layers"]),
        *(block["feedforward_config"]["hidden_layer_multiplier"], common.seq_len, found.pooling_mode),
        block["reversible"],
    )
    assert figures == UPSTREAM[task]
    assert (training.learning_rate, training.lr_decay, training.weight_decay, common.dropout) == (
        1e-4,
        "linear",
        0,
        0.1,
    )


@pytest.mark.parametrize("task", TASKS)
def test_attentions_get_their_own_settings_in_every_task(task: str) -> None:
    found = read_settings(EXAMPLE, task, "full").attention_settings
    assert found["nystrom"] == {"conv_kernel_size": 35, "num_landmarks": 128}
    assert found["favor"] == {"dim_features": 256, "iter_before_redraw": 1000}


def test_presets_change_what_they_name(tmp_path: Path) -> None:
    data = content()
    data["presets"] = {"quick": {"listops": {"training": {"batch_size": 2}}}}
    file = write(tmp_path, data)
    assert read_settings(file, "listops").training.batch_size == 8
    quick = read_settings(file, "listops", "quick")
    assert (quick.training.batch_size, quick.training.warmup) == (2, 1)
    data["preset"] = "quick"
    file = write(tmp_path, data)
    assert read_settings(file, "listops").training.batch_size == 2
    assert read_settings(file, "listops", "full").training.batch_size == 8
    assert read_settings(file, "image").training.batch_size == 8


def test_single_values_change_by_their_path(tmp_path: Path) -> None:
    changes = read_changes('{"training:learning_rate": 0.5, "model:pooling_mode": "cls"}')
    found = read_settings(write(tmp_path), "image", None, changes)
    assert (found.training.learning_rate, found.pooling_mode) == (0.5, "cls")


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"training:learning_rat": 1}, "image.training.learning_rat"),
        ({"model:pooling_model": "cls"}, "image.model.pooling_model"),
        ({"model:pooling_mode": "max"}, "image.model.pooling_mode"),
        ({"trainin:warmup": 1}, "--sweep_parameters"),
        ({"training:warmup:more": 1}, "--sweep_parameters"),
        ({"dataset:min_length": 3}, "image.dataset.min_length"),
        ({"training:batch_size": 0}, "image.training.batch_size"),
        ({"training:warmup": 4}, "image.training.warmup"),
        ({"training:eval_frequency": 5}, "image.training.eval_frequency"),
        ({"model:common": {}}, "image.model.common.dim_model"),
        ({"model:extra_settings": {"attention": {"nystrm": {}}}}, "image.model.extra_settings.attention.nystrm"),
        ({"model:extra_settings": {"attentio": {}}}, "image.model.extra_settings.attentio"),
        ({"model": 3}, "image.model"),
    ],
)
def test_a_mistake_has_its_path(tmp_path: Path, changes: dict[str, Any], path: str) -> None:
    with pytest.raises(vf.ConfigError) as error:
        read_settings(write(tmp_path), "image", None, changes)
    assert path in [problem.path for problem in error.value.problems]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(vf.ConfigError) as error:
        read_settings(write(tmp_path, training__warmup=-1, model__common__dim_model="wide"), "text")
    assert {p.path for p in error.value.problems} == {"text.training.warmup", "text.model.common.dim_model"}


def test_misplaced_settings_of_attentions_are_refused(tmp_path: Path) -> None:
    data = content()
    data["text"]["extra_settings"] = data["text"]["model"].pop("extra_settings")
    with pytest.raises(vf.ConfigError, match="it stands in the section model"):
        read_settings(write(tmp_path, data), "text")


@pytest.mark.parametrize("text", ["{", "3", "training:warmup=1"])
def test_changes_are_a_json_object(text: str) -> None:
    with pytest.raises(vf.ConfigError, match="JSON object"):
        read_changes(text)


def test_what_the_file_lacks_is_told(tmp_path: Path) -> None:
    data = content()
    del data["image"]
    for extra, wanted, preset, message in (
        ({}, "image", None, "no settings of this task"),
        ({"lstops": {}}, "listops", None, "did you mean 'listops'"),
        ({}, "listops", "small", "no such preset"),
        ({"presets": {"small": {"image": {}}}}, "listops", "small", "a task that the file lacks"),
    ):
        with pytest.raises(vf.ConfigError, match=message):
            read_settings(write(tmp_path, {**data, **extra}), wanted, preset)
    (tmp_path / "config.json").write_text(json.dumps([1]), encoding="utf-8")
    with pytest.raises(vf.ConfigError, match="has no tasks"):
        read_settings(tmp_path / "config.json", "listops")
