"""Any registered part as a step of a program: `{'type': NAME, ...fields}`, and types that stand for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from variform.core.fields import field_map
from variform.core.part import Part
from variform.core.plain import from_plain
from variform.core.registry import lookup, parts
from variform.core.spec import Shared, Spec
from variform.dialects.configaformers.modules import TYPES
from variform.dialects.configaformers.scope import Scope
from variform.errors import ConfigError, Problem, did_you_mean
from variform.stack.lines import Step

Fields = dict[str, Any]
NAMING = ("input_name", "input_names", "output_name")
"""Keys of every such step beside the fields of its part."""


def part_step(config: Mapping[str, Any], scope: Scope, label: str = "") -> tuple[Spec, list[Problem]]:
    """The step that applies a registered part, and what is wrong with its dict (paths are its keys).

    Args:
        config: `type`, the names it reads and writes, and the fields of the part.
        scope: what expressions in the fields may name.
        label: what tables call it; the type by default.
    """
    name = config["type"]
    reads, into, problems = _names(config)
    label = label or name
    fields = {str(key): value for key, value in config.items() if key != "type" and key not in NAMING}
    short = name.lower()
    try:
        data = STANDS_FOR[short](fields) if short in STANDS_FOR else {"part": _qualified(name), **fields}
    except ConfigError as error:
        return Step.spec(reads=reads, into=into, label=label), [*problems, *error.problems]
    filled = scope.slot(data, _kinds(), "", problems)
    if problems:
        return Step.spec(reads=reads, into=into, label=label), problems
    try:
        op = from_plain(filled, _kinds())
    except ConfigError as error:
        return Step.spec(reads=reads, into=into, label=label), list(error.problems)
    assert isinstance(op, (Spec, Shared))
    return Step.spec(op=op, reads=reads, into=into, label=label), []


def known_types() -> list[str]:
    """What may stand as a type: module types, what stands for a part, and the names of parts."""
    allowed = _kinds()
    names = {short for kind, short in parts() if kind in allowed}
    return [*TYPES, *STANDS_FOR, *sorted(names - {*TYPES, *STANDS_FOR})]


def _names(config: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], list[Problem]]:
    """The names read and written."""
    problems: list[Problem] = []
    if "input_name" in config and "input_names" in config:
        message = "input_name and input_names are both given"
        problems.append(Problem("input_names", message, hint="give one of them; input_names lists several"))
    key = "input_names" if "input_names" in config else "input_name"
    reads = _listed(config.get(key, "x"), key, problems)
    return reads, _listed(config.get("output_name", "x"), "output_name", problems), problems


def _listed(value: Any, key: str, problems: list[Problem]) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) and name for name in names):
        problems.append(Problem(key, "must be the name of a stream, or a list of names", value))
        return ("x",)
    return tuple(names)


def _kinds() -> tuple[str, ...]:
    """The kinds that can be a step."""
    return field_map(Step)["op"].kind_names()


def _qualified(name: str) -> str:
    """The full name of the part that a type names, `kind/name`.

    Raises:
        ConfigError: there is none, or several; the path is `type`.
    """
    kind, _, short = name.rpartition("/")
    found = [f"{of}/{known}" for of, known in parts() if known == short and of in _kinds() and kind in ("", of)]
    if len(found) > 1:
        hint = "write " + " or ".join(map(repr, found))
        raise ConfigError(f"several parts are called {name!r}", path="type", hint=hint)
    if not found:
        others = sorted(other for other, registered in parts() if registered == short and other not in _kinds())
        if others and (not kind or kind in others):
            message = f"a part of kind {' or '.join(others)} is no step: it takes no streams of its own"
            raise ConfigError(message, path="type", value=name, hint=f"a step is {_one_of(_kinds())}")
        hint = did_you_mean(name, known_types() if not kind else [f"{k}/{n}" for k, n in parts() if k in _kinds()])
        raise ConfigError("there is no such module type", path="type", value=name, hint=hint)
    return found[0]


def _one_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _attention(fields: Fields) -> Fields:
    """Multi-head self-attention; fields of the head-level attention, such as `causal`, are handed on to it."""
    outer = field_map(lookup("mixer/multi_head"))
    given = fields.get("attention", "softmax")
    inner = dict(given) if isinstance(given, Mapping) else {"part": given}
    known = field_map(_attention_part(inner))
    own = {key: value for key, value in fields.items() if key in outer and key != "attention"}
    handed = {key: value for key, value in fields.items() if key not in outer}
    problems = [
        Problem(key, "attention has no such key", hint=did_you_mean(key, [*outer, *known, *NAMING]))
        for key in handed
        if key not in known
    ]
    problems += [Problem(key, "given twice: here and in 'attention'", handed[key]) for key in handed if key in inner]
    if problems:
        raise ConfigError(problems)
    return {"part": "mixer/multi_head", **own, "attention": {**inner, **handed}}


def _attention_part(data: Mapping[str, Any]) -> type[Part]:
    try:
        return lookup(str(data.get("part")), ("attention",))
    except ConfigError as error:
        raise ConfigError(error.problems[0].message, path="attention", hint=error.hint) from None


def _feedforward(fields: Fields) -> Fields:
    """Up, activation, down."""
    return {"part": "feedforward/mlp", **fields}


def _rearrange(fields: Fields) -> Fields:
    """Axes by name; keys beside the pattern are the lengths of axes."""
    if "pattern" not in fields:
        raise ConfigError("rearrange needs this key: 'b l (h d) -> b h l d'", path="pattern")
    lengths = {key: value for key, value in fields.items() if key not in ("pattern", "lengths")}
    named = fields.get("lengths", {})
    if not isinstance(named, Mapping):
        raise ConfigError("must be a dict of lengths by axis", path="lengths", value=named)
    return {"part": "op/rearrange", "pattern": fields["pattern"], "lengths": {**named, **lengths}}


def _unembed(fields: Fields) -> Fields:
    """Logits by a shared embedding, which is given by its name."""
    embedding = fields.get("embedding")
    if isinstance(embedding, str):
        return {"part": "op/unembed", **fields, "embedding": {"shared": embedding}}
    if embedding is None:
        hint = "give the embedding step a name, 'share': 'tokens', and write 'embedding': 'tokens' here"
        raise ConfigError("unembed needs the name of a shared embedding", path="embedding", hint=hint)
    return {"part": "op/unembed", **fields}


STANDS_FOR: dict[str, Callable[[Fields], Fields]] = {
    "attention": _attention,
    "feedforward": _feedforward,
    "rearrange": _rearrange,
    "unembed": _unembed,
}
"""Types that stand for a part: its plain form from the keys that were given."""
