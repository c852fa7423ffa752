"""Training configs: a model, its data and how to train it, from YAML with dotted overrides.

    model: {preset: gpt, vocab_size: from data, dim: 128, ...}
    data: {text: shakespeare, context: 128, ...}
    train: {steps: 1000, ...}

All problems of all sections are reported at once, without reading the text or building the model.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from variform.core.change import override
from variform.core.fields import field_map
from variform.core.plain import from_dict, to_dict
from variform.core.registry import parts, presets
from variform.core.resolve import examine, resolve
from variform.core.spec import Spec
from variform.core.text import dump_yaml, parse_yaml, read_file
from variform.errors import ConfigError, Problem, did_you_mean
from variform.train.rules import contradictions, model_problems
from variform.train.sections import DataSection, Section, TrainSection

FROM_DATA = "from data"
SECTIONS = ("model", "data", "train")
S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Config:
    """A checked training config.

    Args:
        model: the plain form of the model; `vocab_size: from data` may stand anywhere in it.
        data: the text and how it is cut.
        train: the optimisation.
        name: what runs are called when `train.name` is not set.
        changes: overrides of the model that are no arguments of its preset, by path.
    """

    model: Mapping[str, Any]
    data: DataSection
    train: TrainSection
    name: str = "run"
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_data(self) -> bool:
        """Whether the model takes its vocabulary from the text."""
        return FROM_DATA in _values((self.model, self.changes))

    def spec(self, vocab_size: int) -> Spec:
        """The model's full spec for a text of `vocab_size` different characters.

        Raises:
            ConfigError: all problems of the model, or a vocabulary of another size.
        """
        try:
            spec = resolve(self._unresolved(vocab_size))
        except ConfigError as error:
            raise ConfigError(_below("model", error.problems)) from None
        problems = model_problems(spec, self.data, vocab_size) + self._unshardable(spec)
        if problems:
            raise ConfigError(_below("model", problems))
        return spec

    def problems(self) -> list[Problem]:
        """What is wrong with the model and the sections, as far as it can be known without the text."""
        stand_in = 256
        try:
            spec, found = examine(self._unresolved(stand_in))
        except ConfigError as error:
            spec, found = None, list(error.problems)
        if spec is not None and not found:
            found = model_problems(spec, self.data, stand_in if self.needs_data else None) + self._unshardable(spec)
        return _below("model", found) + contradictions(self.data, self.train)

    def _unshardable(self, spec: Spec) -> list[Problem]:
        """Reversible stacks, which need all their parameters at once."""
        if self.train.strategy != "fsdp2":
            return []
        message, hint = "reversible layers cannot be sharded", "train.strategy: ddp, or the executor checkpoint"
        return [
            Problem(f"{path}.executor", message, hint=hint)
            for path, part in spec.walk()
            if part.get("executor") == "reversible"
        ]

    def plain(self, spec: Spec, text: str) -> dict[str, Any]:
        """The resolved config as plain data: the full spec and every setting written out.

        Args:
            spec: the model as it was built.
            text: where the text really came from.
        """
        data = self.data.model_copy(update={"text": text})
        return {
            "model": to_dict(spec),
            "data": data.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json"),
        }

    def _unresolved(self, vocab_size: int) -> Spec:
        spec = override(from_dict(_filled(self.model, vocab_size)), _filled(self.changes, vocab_size))
        return spec if self.train.executor is None else override(spec, {"stacks.*.executor": self.train.executor})


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read and check a training config.

    Args:
        path: a YAML or JSON file with the sections `model`, `data` and `train`.
        overrides: `section.field=value`, read as YAML.

    Raises:
        ConfigError: all problems at once.
    """
    content = read_file(path)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{str(path)!r} is not a training config", hint="it has the sections model, data and train")
    return make_config(content, overrides, name=Path(path).stem)


def make_config(content: Mapping[str, Any], overrides: Iterable[str] = (), *, name: str = "run") -> Config:
    """Check a training config given as plain data; see `read_config`."""
    sections: dict[str, Any] = {key: _copy(value) for key, value in content.items()}
    problems = [
        Problem(str(key), "there is no such section", hint=did_you_mean(str(key), SECTIONS))
        for key in sections
        if key not in SECTIONS
    ]
    changes = _override(sections, overrides, problems)
    if not isinstance(sections.get("model"), (Mapping, str)):
        problems.append(
            Problem("model", "this section is missing", hint="write {preset: NAME, ...} or {part: NAME, ...}")
        )
    data = _section(DataSection, sections.get("data"), "data", problems)
    train = _section(TrainSection, sections.get("train"), "train", problems)
    model = sections.get("model")
    model = {"part": model} if isinstance(model, str) else model
    if isinstance(model, Mapping):
        checked = Config(model, data or DataSection(), train or TrainSection(), name, changes)
        if data is None or train is None:  # judge the model alone: the defaults that stand in are not the user's
            checked = replace(checked, data=DataSection(context=1), train=TrainSection())
        problems += checked.problems()
    if problems:
        raise ConfigError(problems)
    return checked


def write_config(plain: Mapping[str, Any], path: Path) -> None:
    """Write a resolved config."""
    path.write_text(dump_yaml(plain), encoding="utf-8")


def is_training(content: Any) -> bool:
    """Whether a file's content is a training config rather than the description of a part."""
    if not isinstance(content, Mapping) or {"part", "preset", "shared"} & set(content):
        return False
    return set(content) != {"model"} or FROM_DATA in _values(content)


def part_spec(content: Any, overrides: Iterable[str] = ()) -> Spec:
    """The spec that a file without training sections describes.

    Args:
        content: the plain form of a part, or a mapping with the key `model` alone.
        overrides: `field=value`; arguments of the root's preset, or paths into the spec.

    Raises:
        ConfigError: all problems at once.
    """
    wrapped = isinstance(content, Mapping) and set(content) == {"model"}
    sections = {"model": _copy(content["model"] if wrapped else content)}
    problems: list[Problem] = []
    changes = _override(sections, [f"model.{text.removeprefix('model.')}" for text in overrides], problems)
    if problems:
        raise ConfigError(problems)
    return override(from_dict(sections["model"]), changes)


def _section(section: type[S], content: Any, path: str, problems: list[Problem]) -> S | None:
    content = {} if content is None else content
    if not isinstance(content, Mapping):
        problems.append(Problem(path, "a section is a mapping of fields to values", content))
        return None
    try:
        return section.model_validate(content)
    except ValidationError as error:
        problems += [_problem(section, dict(entry), path) for entry in error.errors()]
        return None


def _problem(section: type[BaseModel], entry: Mapping[str, Any], path: str) -> Problem:
    steps = [str(step) for step in entry["loc"]]
    owner: type[BaseModel] = section
    names = [path]
    for step in steps:
        if step in owner.model_fields or step.isdigit() or entry["type"] == "extra_forbidden":
            names.append(step)  # other steps name a branch of a union, which no user wrote
        inner = owner.model_fields[step].annotation if step in owner.model_fields else None
        owner = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else owner
    where = ".".join(names)
    if entry["type"] == "extra_forbidden":
        message = f"{'.'.join(names[:-1])} has no field {steps[-1]!r}"
        return Problem(where, message, hint=did_you_mean(steps[-1], owner.model_fields))
    text = str(entry["msg"])
    hint = ""
    if entry["type"] == "literal_error" and isinstance(entry["input"], str) and steps[-1] in owner.model_fields:
        options = [str(option) for option in get_args(owner.model_fields[steps[-1]].annotation)]
        hint = did_you_mean(entry["input"], options)
    return Problem(where, text[0].lower() + text[1:], entry["input"], hint)


def _override(sections: dict[str, Any], overrides: Iterable[str], problems: list[Problem]) -> dict[str, Any]:
    """Put overrides into the sections; those of the model that its preset does not take are returned by path."""
    changes: dict[str, Any] = {}
    for text in overrides:
        name, sign, value = text.partition("=")
        steps = re.sub(r"\[([^\]]*)\]", r".\1", name.strip()).strip(".").split(".")
        if not sign or len(steps) < 2 or steps[0] not in SECTIONS:
            hint = did_you_mean(steps[0], SECTIONS) if sign and steps[0] not in SECTIONS else ""
            message = f"an override is written SECTION.FIELD=VALUE with a section of {', '.join(SECTIONS)}"
            problems.append(Problem("", message, text, hint if hint.startswith("did") else ""))
            continue
        read = parse_yaml(value, f"the override {text!r}")
        if steps[0] == "model" and not _is_argument(sections.get("model"), steps[1:]):
            changes[".".join(steps[1:])] = read
        else:
            _put(sections, steps, read, text, problems)
    return changes


def _is_argument(model: Any, steps: list[str]) -> bool:
    """Whether an override is for the model's preset; what no model has as a field is left to it to report."""
    preset = presets().get(str(model.get("preset"))) if isinstance(model, Mapping) else None
    if preset is None or len(steps) > 1:
        return False
    a_field = any(steps[0] in field_map(part) for part in parts("model").values())
    return steps[0] in inspect.signature(preset).parameters or not a_field


def _put(sections: dict[str, Any], steps: list[str], value: Any, text: str, problems: list[Problem]) -> None:
    place = sections
    for step in steps[:-1]:
        if place.get(step) is None:
            place[step] = {}
        place = place[step]
        if not isinstance(place, dict):
            problems.append(Problem(".".join(steps), f"there is nothing below {step!r}", text))
            return
    place[steps[-1]] = value


def _copy(value: Any) -> Any:
    """Nested mappings copied, so that overrides change nothing the caller holds."""
    return {str(key): _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _filled(value: Any, vocab_size: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(item, vocab_size) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_filled(item, vocab_size) for item in value]
    return vocab_size if value == FROM_DATA else value


def _values(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _values(item)]
    return [value]


def _below(path: str, problems: Iterable[Problem]) -> list[Problem]:
    return [problem.below(path) for problem in problems]
