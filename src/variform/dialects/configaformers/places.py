"""Where the lines of a program stand in its config, and its problems told in those terms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from variform.dialects.configaformers.modules import TYPES
from variform.errors import Problem, join_path

_FIELDS = {("program", "inputs"): "streams", ("rearrange", "lengths"): ""}
"""What a step's keys are called where they are not fields of its part."""

_SHARED = "steps that share weights must read the same sizes; or use two names"


@dataclass
class Place:
    """Where one line, or one block, of a program comes from.

    Args:
        path: in the config.
        words: in words: `Block #2, repeat 3, line 4`.
        own: the end of these words that the program itself knows: all of them, or `line 4` in a nested program.
        kind: the type of the module, as it is written; empty for a block.
        broken: something is wrong with it that is reported already.
    """

    path: str
    words: str
    own: str = ""
    kind: str = ""
    broken: bool = False


@dataclass
class Places:
    """The places of a program's lines by their path in the program: `lines.1.lines.3`, `lines.0.op.lines.2`.

    Args:
        known: the places.
        arguments: what the program's own fields are called in the config.
    """

    known: dict[str, Place] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)

    def find(self, path: str) -> tuple[Place | None, list[str]]:
        """The innermost place that a path of the program lies in, and the steps below it."""
        steps = path.split(".")
        for end in range(len(steps), 0, -1):
            place = self.known.get(".".join(steps[:end]))
            if place is not None:
                return place, steps[end:]
        return None, steps

    def translate(self, problem: Problem) -> Problem | None:
        """A problem of the program as one of the config; None where it was reported before."""
        place, below = self.find(problem.path)
        message = re.sub(r"\blines\.[\w.]*\w", self._named, problem.message)
        hint = _SHARED if problem.hint.endswith("in the shared spec") else problem.hint
        problem = replace(problem, hint=hint.replace("split_heads", "make_heads"))
        if place is None:
            head, _, rest = problem.path.partition(".")
            return replace(problem, path=join_path(self.arguments.get(head, head), rest), message=message)
        if place.broken:
            return None
        if not place.kind:
            return replace(problem, path=place.path, message=message)
        path = join_path(place.path, _key(place.kind, below))
        if not message.startswith(place.words):
            rest = message.removeprefix(place.own) if place.own and message.startswith(place.own) else ""
            message = place.words + (rest or f" ({place.kind}): {message}")
        return replace(problem, path=path, message=message)

    def _named(self, match: re.Match[str]) -> str:
        place, _ = self.find(match.group())
        return match.group() if place is None else place.words


def _key(kind: str, below: list[str]) -> str:
    """The key of a module that stands behind a field of its step."""
    if len(below) < 2 or below[0] != "op":
        return ""
    known: Mapping[str, str] | None = TYPES[kind.lower()].fields if kind.lower() in TYPES else None
    if known is not None:
        return known.get(below[1], "")
    first = _FIELDS.get((kind.lower(), below[1]), below[1])
    return ".".join(filter(None, (first, *below[2:])))
