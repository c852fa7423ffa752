"""Pieces of the code of programs: names, tables of keys, notes of shapes, runs of equal blocks."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterator, Sequence
from typing import Any

from variform.core.dims import Shape
from variform.core.spec import Shared, Spec, described
from variform.parts.op.tokenwise import EmbeddingOp, LinearOp
from variform.stack.lines import Block, Stage


def runs(modules: Sequence[Any], stages: Sequence[Stage], specs: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Lines one after another, equal blocks taken together: from where to where."""
    start = 0
    while start < len(modules):
        end = start + 1
        first = stages[start]
        while (
            end < len(modules)
            and isinstance(modules[end], Block)
            and specs[end] == specs[start]
            and not isinstance(specs[end], Shared)
            and (stages[end].takes, stages[end].gives) == (first.takes, first.gives)
        ):
            end += 1
        yield start, end
        start = end


def shared_in(spec: Spec) -> Iterator[str]:
    """The names of the shared parts below a part."""
    for _, _, child in spec.children():
        if isinstance(child, Shared):
            yield child.name
        inner = described(child)
        if isinstance(inner, Spec):
            yield from shared_in(inner)


def holds_shared_line(block: Spec) -> bool:
    """Whether a block, or one within it, has a line that is shared."""
    return any(
        isinstance(line, Shared) or (isinstance(line, Spec) and line.part is Block and holds_shared_line(line))
        for line in block["lines"]
    )


def torch_module(op: Spec) -> str | None:
    """The module of torch's own that does as much as an op, where one does."""
    if op.part is LinearOp and all(op[name] is None for name in ("norm", "out_norm", "bias_init", "init_std")):
        return f"nn.Linear({op['dim']}, {op['out'] or op['dim']}{'' if op['bias'] else ', bias=False'})"
    if op.part is EmbeddingOp and op["std"] == 1.0:
        return f"nn.Embedding({op['classes']}, {op['out']})"
    return None


def x_first(names: Sequence[str]) -> list[str]:
    """Names in order, `x` before all others."""
    return sorted(names, key=lambda name: (name != "x", name))


def key_table(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The table KEYS; numbered places that follow one another stand in a comprehension."""
    if not pairs:
        return []
    entries: list[str] = []
    numbered: dict[str, list[tuple[str, str]]] = {}
    for name, place in pairs:
        if "." in name:
            numbered.setdefault(name.split(".")[0], []).append((name, place))
        else:
            entries.append(f'"{name}": "{place}"')
    for name, several in numbered.items():
        head, first = several[0][1].rsplit(".", 1)
        wanted = [f"{head}.{int(first) + i}" for i in range(len(several))]
        if [place for _, place in several] == wanted:
            there = f"{{i + {first}}}" if int(first) else "{i}"
            entries.append(f'**{{f"{name}.{{i}}": f"{head}.{there}" for i in range({len(several)})}}')
        else:
            entries += [f'"{here}": "{place}"' for here, place in several]
    return ["KEYS: ClassVar[dict[str, str]] = {" + ", ".join(entries) + "}"]


def assignment(target: str, value: str) -> ast.Assign:
    """`target = value`, as a statement."""
    node = ast.parse(f"{target} = {value}").body[0]
    assert isinstance(node, ast.Assign)
    return node


def variable(name: str) -> str:
    """A name as a variable of its own."""
    found = re.sub(r"\W+", "_", name).strip("_")
    found = f"_{found}" if found[:1].isdigit() else found
    return f"{found}_" if keyword.iskeyword(found) or found in TAKEN else found


def shape_note(shape: Shape | None) -> str:
    """A shape as a note behind a line."""
    return "?" if shape is None else f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


TAKEN = ("self", "inputs", "streams", "torch", "nn", "F", "math", "block", "range", "super", "checkpoint")
