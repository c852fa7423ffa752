"""A standalone file around its classes: heading, imports, the model, the reading of weights, an example."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from variform.core.part import Part
from variform.errors import ConfigError
from variform.export.shake import Shaken
from variform.export.write import statements
from variform.parts.kinds import Model


def file_text(model: Part, shaken: Shaken, making: Sequence[ast.stmt], takes: str, about: str) -> str:
    """The whole file.

    Args:
        model: what it is about.
        shaken: the definitions, in order.
        making: the body of `make_model`.
        takes: what the model takes, in words.
        about: what the model is, in words.
    """
    made = ast.FunctionDef("make_model", _no_arguments(), [_doc("The model, with fresh weights."), *making], [], None)
    made.returns = ast.Attribute(ast.Name("nn", ast.Load()), "Module", ast.Load())
    shaken.imports |= {"import torch", "from torch import nn"}
    example = _example(model)
    last = [place for place in shaken.pieces if place[0] == "variform.export.loading"]
    pieces = [node for place, node in shaken.pieces.items() if place not in last]
    defined = [_top(piece) for piece in [*pieces, made, *(shaken.pieces[place] for place in last)]]
    heading = [f'"""{about}', "", *textwrap.wrap(takes, 118), '"""', "", "from __future__ import annotations", ""]
    lines = [*heading, *_imports(shaken.imports, "\n".join([*defined, *example]))]
    text = "\n".join(lines) + "\n\n\n" + "\n\n\n".join(defined)
    return text + "\n\n\n" + "\n".join(example) + "\n"


def _top(node: ast.stmt) -> str:
    return "\n".join(statements([node]))


def _doc(text: str) -> ast.Expr:
    return ast.Expr(ast.Constant(text))


def _no_arguments() -> ast.arguments:
    return ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])


def _imports(found: Iterable[str], text: str) -> list[str]:
    """Import lines in the order that formatters want; names that are not used are left out."""
    whole: set[str] = set()
    parts: dict[str, set[str]] = {}
    for line in found:
        match = re.fullmatch(r"from (\S+) import (.+)", line)
        name = line.split()[-1]
        if not re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text):
            continue
        if match is None:
            whole.add(line)
        else:
            parts.setdefault(match[1], set()).add(match[2])
    lines: list[str] = []
    for outside in (False, True):
        group = sorted(line for line in whole if _is_torch(line.split()[1]) == outside)
        for module in sorted(name for name in parts if _is_torch(name) == outside):
            names = sorted(parts[module], key=lambda name: (not name.isupper(), not name[0].isupper(), name.lower()))
            group.append(f"from {module} import {', '.join(names)}")
        lines += [*([""] if lines and group else []), *group]
    return lines


def _is_torch(module: str) -> bool:
    return module.split(".")[0] == "torch"


def _example(model: Part) -> list[str]:
    """A run of the file itself: random inputs, and the shapes that come out."""
    assert isinstance(model, Model)
    longest = getattr(model, "max_seq_len", None)
    args, more = _example_inputs(model, min(16, longest or 16))
    sizes = _vocabularies(model)
    lines = ['if __name__ == "__main__":', "    model = make_model()"]
    lines.append('    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")')
    if len(args) == 1 and isinstance(args[0], Mapping):
        shown = [
            f"        {name!r}: {_random(name, value, sizes)},".replace("'", '"') for name, value in args[0].items()
        ]
        lines += ["    inputs = {", *shown, "    }"]
        return [*lines, "    for name, output in model(inputs).items():", "        print(name, tuple(output.shape))"]
    names = ["inputs"] if len(args) == 1 else ["source", "target"]
    lines += [f"    {name} = {_random(name, value, sizes)}" for name, value in zip(names, args, strict=True)]
    odd = [name for name, value in more.items() if not isinstance(value, Tensor)]
    if odd:
        raise ConfigError(f"this part has no standalone form: calls take {', '.join(odd)}, which is no tensor")
    lines += [f"    {name} = {_random(name, value, sizes)}" for name, value in more.items()]
    given = ", ".join([*names, *(f"{name}={name}" for name in more)])
    return [*lines, f"    print(tuple(model({given}).shape))"]


def _example_inputs(model: Model, length: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return model.example_inputs(2, length)


def _random(name: str, value: Tensor, sizes: Mapping[str, int]) -> str:
    shape = tuple(value.shape)
    if value.dtype in (torch.int64, torch.int32):
        return f"torch.randint({sizes.get(name, sizes.get('', 2))}, {shape})"
    return f"torch.randn({', '.join(map(str, shape))})"


def _vocabularies(model: Any) -> dict[str, int]:
    """How many different ids each input may hold."""
    found = {
        "": getattr(model, "vocab_size", None),
        "source": getattr(getattr(model, "encoder", None), "vocab_size", None),
    }
    return {name: size for name, size in found.items() if isinstance(size, int)}
