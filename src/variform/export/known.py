"""What is known of a model where its code is folded."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PRESENT = object()
"""Known not to be None; nothing else is known."""


@dataclass
class Known:
    """What is known where a function is folded.

    Args:
        own: attributes of `self` by name: plain values, or `PRESENT`.
        names: local names: plain values, or `PRESENT`.
        absent: streams that a standalone model does not take.
        publishes: whether parts of the model publish streams.
        repeats: whether a list of modules holds one of them twice.
        images: whether the model reads images; None where both kinds of models are in it.
        tables: module-level dicts of functions by name, as syntax.
    """

    own: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, Any] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    publishes: bool = False
    repeats: bool = False
    images: bool | None = False
    tables: Mapping[str, ast.Dict] = field(default_factory=dict)
