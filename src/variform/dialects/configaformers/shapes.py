"""The declared shapes of a program's input streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from variform.core.dims import parse_shape
from variform.dialects.configaformers.scope import Scope, plain
from variform.errors import ConfigError, Problem, join_path
from variform.stack.values import SIZE, tells_size

Sizes = tuple[int | str, ...]

BATCH = "BSZ"
"""What the first size of all streams is called."""


def read_shapes(shapes: Any, scope: Scope, path: str) -> tuple[dict[str, Sizes], list[Problem]]:
    """Shapes by name: numbers, names of sizes, and expressions; the sizes that the program names are filled in."""
    if not isinstance(shapes, Mapping) or not shapes:
        return {}, [Problem(path, "must be a dict of shapes by name", shapes)]
    found: dict[str, Sizes] = {}
    problems: list[Problem] = []
    for name, sizes in shapes.items():
        here = join_path(path, str(name))
        if not isinstance(name, str) or not name:
            problems.append(Problem(here, "the name of a stream is text", name))
        elif tells_size(name):
            problems.append(Problem(here, f"names of streams do not begin with {SIZE!r}", name))
        elif not isinstance(sizes, (list, tuple)) or not sizes:
            problems.append(Problem(here, "must be a list of sizes", sizes))
        else:
            try:
                filled = tuple(scope.size(plain(size)) for size in sizes)
                parse_shape(filled)
            except ConfigError as error:
                problems += [problem.below(here) for problem in error.problems]
                continue
            found[name] = filled
    return found, problems


def names_of(shapes: Any) -> frozenset[str]:
    """The names of sizes that stand alone in shapes, which may be wrong otherwise."""
    lists = shapes.values() if isinstance(shapes, Mapping) else ()
    sizes = (size for one in lists if isinstance(one, (list, tuple)) for size in one)
    return frozenset(size for size in sizes if isinstance(size, str) and size.isidentifier())


def batch_names(shapes: Mapping[str, Sizes]) -> frozenset[str]:
    """The names of batch sizes: names that come first in a shape of several sizes, and nowhere else."""
    first = {str(shape[0]) for shape in shapes.values() if len(shape) > 1}
    later = {str(size) for shape in shapes.values() for size in (shape[1:] if len(shape) > 1 else shape)}
    return frozenset(name for name in first - later if name.isidentifier())


def with_batch(shapes: Mapping[str, Sizes]) -> dict[str, Sizes]:
    """The shapes with one name for the batch."""
    batch = batch_names(shapes)
    return {name: tuple(BATCH if size in batch else size for size in shape) for name, shape in shapes.items()}
