"""A program of module dicts as a layer of any other model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from variform.core.inherit import INHERIT
from variform.core.registry import preset
from variform.core.resolve import examine
from variform.core.spec import Spec
from variform.dialects.configaformers.errors import ConfigaformersError
from variform.dialects.configaformers.reading import Reader
from variform.dialects.configaformers.scope import Scope, read_sizes
from variform.dialects.configaformers.shapes import read_shapes
from variform.errors import Problem
from variform.stack.program import Program


@preset
def program_layer(
    config: Sequence[Any],
    dim: int | None = None,
    streams: Mapping[str, Sequence[int | str]] | None = None,
    sizes: Mapping[str, Any] | None = None,
    output: str = "x",
) -> Spec:
    """A layer that maps `x` [B, L, dim] to [B, L, dim], from module dicts; in files `{preset: program_layer, ...}`.

    It stands wherever a layer, or the body of a residual step, can stand.

    Args:
        config: module dicts, or blocks of them: {'config': [...], 'repeat': N}.
        dim: features; those of the model around it by default.
        streams: shapes of streams that the modules read beside `x` (B and L are the sizes of `x`).
        sizes: numbers by name, for expressions in the modules.
        output: which stream is the result.

    Raises:
        ConfigaformersError: all problems at once; sizes are checked where the features are known.
    """
    reader = Reader()
    names, reader.problems = read_sizes(sizes)
    scope = Scope(names)
    of_blocks = bool(config) and all(isinstance(item, Mapping) and "config" in item for item in config)
    lines = reader.blocks(config, scope, "config") if of_blocks else reader.lines(config, scope)
    shapes: dict[str, tuple[int | str, ...]] = {}
    if streams is not None:
        shapes, wrong = read_shapes(streams, scope, "streams")
        reader.problems += wrong
    if not lines:
        reader.problems.append(Problem("config", "a program has at least one module"))
    spec = Program.spec(lines=lines, dim=INHERIT if dim is None else dim, streams=shapes or None, output=output)
    found = list(reader.problems)
    if dim is not None and lines:
        told = map(reader.places.translate, examine(spec, sure=False)[1])
        found += [problem for problem in told if problem is not None]
    if found:
        raise ConfigaformersError(found)
    return spec
