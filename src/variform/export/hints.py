"""Type hints of a standalone file: plain types, `Tensor` and `nn.Module`."""

from __future__ import annotations

import ast
import collections.abc
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn

from variform.export.shake import ATTENTION, LAYERS, at
from variform.parts.kinds import Sides


def hinted(function: ast.FunctionDef, actual: Any) -> None:
    """Replace the hints of a function's syntax by plain ones; they go where the function itself is not at hand."""
    try:
        known = typing.get_type_hints(actual)
    except (NameError, TypeError, AttributeError):
        known = {}
    arguments = function.args
    for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if arg is not None:
            arg.annotation = _syntax(known[arg.arg]) if arg.arg in known else None
    function.returns = _syntax(known["return"]) if "return" in known else None
    for node in function.body:  # hints of functions within are of no use to a reader
        for inner in ast.walk(node):
            if isinstance(inner, ast.FunctionDef):
                hinted(inner, None)


def hint_syntax(hint: Any) -> ast.expr:
    """A type as a plain hint."""
    return _syntax(hint)


def _syntax(hint: Any) -> ast.expr:
    tree = ast.parse(_text(hint), mode="eval").body
    return typing.cast(ast.expr, _Placed().visit(tree))


class _Placed(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.Name:
        if node.id in ("Tensor", "nn", "torch", "Any", "Sides"):
            return at(ATTENTION if node.id in ("Sides", "torch") else LAYERS, node.id)
        return at(__name__, node.id) if node.id in ("Callable", "Iterator", "Path") else node


def _text(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if hint is type(None):
        return "None"
    if origin is Annotated:
        return _text(args[0])
    if origin is Literal:
        return " | ".join(dict.fromkeys(type(value).__name__ for value in args))
    if origin in (typing.Union, types.UnionType):
        kept = [arg for arg in args if not (Tensor in args and get_origin(arg) is tuple)]
        return " | ".join(dict.fromkeys(_text(arg) for arg in kept))
    if origin in (dict, Mapping, collections.abc.Mapping):
        return f"dict[{', '.join(map(_text, args))}]"
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable):
        return f"list[{_text(args[0])}]"
    if origin is tuple:
        return f"tuple[{', '.join('...' if arg is Ellipsis else _text(arg) for arg in args)}]"
    if origin is Iterator:
        return f"Iterator[{_text(args[0])}]"
    if origin is collections.abc.Callable or hint is Callable:
        return "Callable"
    return _class_text(hint)


def _class_text(hint: Any) -> str:
    if hint is Sides or getattr(hint, "__name__", "") == "Sides":
        return "Sides"
    if isinstance(hint, type):
        if issubclass(hint, nn.Module):
            return "nn.Module"
        if issubclass(hint, Tensor):
            return "Tensor"
        if hint.__module__ == "builtins" or hint is Path:
            return hint.__name__
        if hint in (torch.dtype, torch.device):
            return f"torch.{hint.__name__}"
    return "Any"
