"""The settings of a part in a few words, for the boxes of a diagram."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from variform.core.fields import fields_of
from variform.core.inherit import Inherit
from variform.core.spec import Shared, Spec, default_of, described

_SHOWN = ("heads", "kv_heads", "vocab_size", "classes", "out", "window")
_HIDDEN = frozenset({"dim", "init_std", "layer", "depth", "writes", "max_seq_len", "dim_context", "attention_scale"})

FAMILIES = {
    "embedding": "embedding",
    "position": "embedding",
    "norm": "norm",
    "mixer": "attention",
    "attention": "attention",
    "rotation": "attention",
    "bias": "attention",
    "key_values": "attention",
    "projection": "attention",
    "feedforward": "feedforward",
    "nonlinearity": "feedforward",
    "gate": "feedforward",
    "residual": "stream",
    "entry": "stream",
    "head": "head",
}
_OPS = {
    "embedding": "embedding",
    "linear": "feedforward",
    "activation": "feedforward",
    "split_heads": "attention",
    "merge_heads": "attention",
    "scores": "attention",
    "offset": "attention",
    "weighted_sum": "attention",
    "rotary": "attention",
    "copy": "stream",
    "merge": "stream",
    "cut": "stream",
    "cat": "stream",
}


def family(spec: Spec) -> str:
    """What colours a part's box."""
    if spec.kind == "op":
        return _OPS.get(spec.name, "other")
    return FAMILIES.get(spec.kind, "other")


def settings(spec: Spec) -> str:
    """What distinguishes a part: fields that are not at their defaults, and the parts in its slots."""
    words: list[str] = []
    slots: list[str] = []
    for f in fields_of(spec.part):
        value = spec.get(f.name)
        if f.name == "lines":
            slots.append(f"{_steps(value)} steps")
        elif f.is_slot:
            slots += [_named(item) for item in (value if isinstance(value, tuple) else (value,)) if item is not None]
        elif f.name in _HIDDEN or value is None or value is False:
            continue
        elif f.name in _SHOWN or value != default_of(f):
            inherited = isinstance(default_of(f), Inherit) and f.name not in (*_SHOWN, "causal")
            words += [] if inherited else [_word(f.name, value)]
    return ", ".join([*slots, *words])


def _named(part: Any) -> str:
    """A part in a slot; one that does the work of the box has its settings told too."""
    inner = part.spec if isinstance(part, Shared) else part
    assert isinstance(inner, Spec)
    told = settings(inner) if inner.kind in ("mixer", "feedforward", "embedding") else ""
    return f"{inner.name} ({told})" if told else inner.name


def _steps(lines: Any) -> int:
    """How many steps the lines of a program have, those in blocks included."""
    found = [described(line) for line in lines]
    return sum(_steps(line["lines"]) if line.get("lines") is not None else 1 for line in found)


def _word(name: str, value: Any) -> str:
    if value is True:
        return name
    if isinstance(value, Mapping):
        return f"{name} {' '.join(map(str, value))}"
    if isinstance(value, tuple):
        return f"{name} {' '.join(map(str, value))}"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
