"""The file of the tasks' settings: for each task its data, its training, its model; every mistake is told at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from variform.core.text import read_file
from variform.dialects.xformers.building import checked, hints_of
from variform.dialects.xformers.components.attention import ATTENTION_REGISTRY
from variform.dialects.xformers.errors import Wrong
from variform.dialects.xformers.factory.reader import plain_copy
from variform.errors import ConfigError, did_you_mean

Size = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
S = TypeVar("S")

LEVELS = ("curv_baseline", "curv_contour_length_9", "curv_contour_length_14")
TASKS = ("retrieval", "listops", "image", *(f"pathfinder32-{level}" for level in LEVELS), "text")
PRESETS = ("preset", "presets")
FULL = "full"


@dataclass(frozen=True)
class Dataset:
    """Where examples come from, and how many of them there are.

    Args:
        train: examples to learn from; None for all there are.
        dev: examples to choose the checkpoint by, none of which are learned from.
        test: examples to be judged on.
        source: a file or folder below `--data`, or what `variform.train.images` knows; each task has its own default.
        seed: of what is drawn: trees of ListOps, the split of pathfinder, of texts and images.
    """

    train: Size | None = None
    dev: Size | None = None
    test: Size | None = None
    source: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class ListOpsDataset(Dataset):
    """The data of ListOps, generated unless there is a `source`.

    Args:
        min_length: trees have more tokens than this, brackets included.
        max_length: and fewer than this.
        max_depth: levels of a tree.
        max_args: arguments of an operator.
    """

    min_length: Count = 500
    max_length: Size = 2000
    max_depth: Size = 10
    max_args: Annotated[int, Field(ge=2)] = 10


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Args:
        batch_size: examples in a step, over all processes and accumulated parts.
        learning_rate: the highest one.
        warmup: steps up to it.
        num_train_steps: steps of the optimizer.
        eval_frequency: steps between validations.
        num_eval_steps: batches of `batch_size` in a validation; None for all.
        lr_decay: how the learning rate rises and falls.
        weight_decay: of AdamW.
        gradient_accumulation: parts in which a batch is computed.
        mixed_precision: float16 on a GPU, bfloat16 on a CPU.
        seed: of weights, order and dropout.
    """

    batch_size: Size
    learning_rate: Annotated[float, Field(gt=0)]
    warmup: Count
    num_train_steps: Size
    eval_frequency: Size
    num_eval_steps: Size | None = None
    lr_decay: Literal["linear", "cos"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    gradient_accumulation: Size = 1
    mixed_precision: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Common:
    """Sizes that all parts of a model go by.

    Args:
        dim_model: features.
        num_heads: heads.
        num_classes: answers.
        seq_len: the most tokens of a row, the class token included; longer texts are cut.
        vocab_size: token ids; the last one is the class token's where `pooling_mode` is `cls`.
        dropout: of attention, feedforward and token vectors.
    """

    dim_model: Size
    num_heads: Size
    num_classes: Annotated[int, Field(ge=2)]
    seq_len: Size
    vocab_size: Size
    dropout: Rate = 0.0


@dataclass(frozen=True)
class Settings:
    """All of one task.

    Args:
        task: its name.
        dataset: its examples.
        training: how it is learned.
        common: sizes.
        pooling_mode: `mean` of the real tokens, or the class token (`cls`).
        xformer: descriptions of blocks, as `xFormerConfig` takes them, without what `common` says.
        attention_settings: further keys of attentions, by name.
    """

    task: str
    dataset: Dataset
    training: Training
    common: Common
    pooling_mode: Literal["mean", "cls"]
    xformer: list[dict[str, Any]]
    attention_settings: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def read_settings(
    path: str | Path, task: str, preset: str | None = None, changes: Mapping[str, Any] | None = None
) -> Settings:
    """The settings of a task.

    Args:
        path: a JSON or YAML file: tasks by name, the three of pathfinder together as `pathfinder32`; `presets` by name,
            each of which changes tasks; `preset`, the one that counts unless another is asked for.
        task: one of `TASKS`.
        preset: `full` for the tasks as they stand.
        changes: values by path, `{"training:learning_rate": 0.001}`.

    Raises:
        ConfigError: all mistakes, with their paths.
    """
    content = read_file(path)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{str(path)!r} has no tasks", hint=f"it has the sections {', '.join(TASKS)}")
    section = task.partition("-")[0] if task.startswith("pathfinder32") and task not in content else task
    known = (*TASKS, "pathfinder32", *PRESETS)
    problems = [
        Wrong(str(key), "no task has this name", None, did_you_mean(str(key), known))
        for key in content
        if key not in known
    ]
    chosen = _preset(content, preset)
    if section not in content:
        problems.append(Wrong(section, "the file has no settings of this task", hint=did_you_mean(section, content)))
    if problems:
        raise ConfigError(problems)
    own = _merged(plain_copy(content[section]), chosen.get(section, {}))
    for name, value in (changes or {}).items():
        _change(own, name, value)
    settings = _settings(task, own, section, problems)
    if settings is not None and not problems:
        problems += _contradictions(settings, section)
    if settings is None or problems:
        raise ConfigError(problems)
    return settings


def _settings(task: str, own: Any, path: str, problems: list[Wrong]) -> Settings | None:
    parts = _mapping(own, path, ("dataset", "training", "model"), problems)
    kind = ListOpsDataset if task == "listops" else Dataset
    dataset = _section(kind, parts.get("dataset", {}), f"{path}.dataset", problems)
    training = _section(Training, parts.get("training", {}), f"{path}.training", problems)
    where = f"{path}.model"
    model = _mapping(parts.get("model", {}), where, ("pooling_mode", "common", "xformer", "extra_settings"), problems)
    common = _section(Common, model.get("common", {}), f"{where}.common", problems)
    mode = _value("pooling_mode", Literal["mean", "cls"], model.get("pooling_mode", "mean"), where, problems)
    blocks = _value("xformer", list[dict[str, Any]], model.get("xformer"), where, problems)
    extra = _mapping(model.get("extra_settings", {}), f"{where}.extra_settings", ("attention",), problems)
    path = f"{where}.extra_settings.attention"
    attentions = _mapping(extra.get("attention", {}), path, ATTENTION_REGISTRY, problems)
    for name in attentions:
        _value(name, dict[str, Any], attentions[name], path, problems)
    if dataset is None or training is None or common is None or problems:
        return None
    return Settings(task, dataset, training, common, mode, blocks, attentions)


def _contradictions(settings: Settings, path: str) -> list[Wrong]:
    training, problems = settings.training, []
    if training.warmup >= training.num_train_steps:
        limit = f"num_train_steps is {training.num_train_steps}"
        problems.append(Wrong(f"{path}.training.warmup", limit, training.warmup, "warm up for fewer steps"))
    if training.eval_frequency > training.num_train_steps:
        limit = f"num_train_steps is {training.num_train_steps}: no checkpoint would be saved"
        problems.append(Wrong(f"{path}.training.eval_frequency", limit, training.eval_frequency))
    return problems


def _preset(content: Mapping[str, Any], asked: str | None) -> Mapping[str, Any]:
    presets = content.get("presets", {})
    name = asked or content.get("preset", FULL)
    if name == FULL:
        return {}
    if not isinstance(presets, Mapping) or not isinstance(presets.get(name), Mapping):
        names = [FULL, *(presets if isinstance(presets, Mapping) else ())]
        raise ConfigError("the file has no such preset", path="preset", value=name, hint=did_you_mean(str(name), names))
    found: Mapping[str, Any] = presets[name]
    unknown = [key for key in found if key not in content]
    if unknown:
        hint = did_you_mean(str(unknown[0]), content)
        raise ConfigError(
            "the preset changes a task that the file lacks", path=f"presets.{name}.{unknown[0]}", hint=hint
        )
    return found


def _merged(value: Any, change: Any) -> Any:
    if not (isinstance(value, Mapping) and isinstance(change, Mapping)):
        return plain_copy(change)
    return {**value, **{key: _merged(value.get(key), item) for key, item in change.items()}}


def _change(own: Any, name: str, value: Any) -> None:
    """Put a value at `section:field`; sections must be there, fields are judged with all others."""
    *steps, last = name.split(":")
    place = own
    for step in steps:
        if not isinstance(place, Mapping) or step not in place:
            hint = did_you_mean(step, place) if isinstance(place, Mapping) else ""
            raise ConfigError(f"there is no section {step!r}", path="--sweep_parameters", value=name, hint=hint)
        place = place[step]
    if not isinstance(place, dict):
        raise ConfigError("there is nothing below it", path="--sweep_parameters", value=name)
    place[last] = value


def _mapping(content: Any, path: str, known: Iterable[str], problems: list[Wrong]) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        problems.append(Wrong(path, "expected a mapping", content))
        return {}
    names = list(known)
    for key in content:
        if key not in names:
            hint = did_you_mean(str(key), names)
            hint = "it stands in the section model" if key == "extra_settings" else hint
            problems.append(Wrong(f"{path}.{key}", f"there is no key {key!r} here", hint=hint))
    return dict(content)


def _section(section: type[S], content: Any, path: str, problems: list[Wrong]) -> S | None:
    known = {f.name: f for f in fields(section)}  # type: ignore[arg-type]  # our own dataclasses
    given, before = _mapping(content, path, known, problems), len(problems)
    values: dict[str, Any] = {}
    for name, f in known.items():
        if name in given:
            values[name] = _value(name, hints_of(section)[name], given[name], path, problems)
        elif f.default is MISSING:
            problems.append(Wrong(f"{path}.{name}", "this key is needed"))
    return section(**values) if len(problems) == before and set(given) <= set(known) else None


def _value(name: str, annotation: Any, value: Any, path: str, problems: list[Wrong]) -> Any:
    found, wrong = checked(name, annotation, value)
    if wrong is not None:
        problems.append(wrong.below(path))
    return found


def read_changes(text: str) -> dict[str, Any]:
    """`--sweep_parameters` as a mapping.

    Raises:
        ConfigError: no JSON object.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        found = error
    if not isinstance(found, dict):
        hint = """'{"training:learning_rate": 0.001}'"""
        raise ConfigError("expected a JSON object of values by path", path="--sweep_parameters", value=text, hint=hint)
    return found
