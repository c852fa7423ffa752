"""Steps of programs as single expressions, where the part has no weights and its forward is one line."""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from variform.core.part import Part
from variform.export.fold import fold
from variform.export.inputs import name_inputs
from variform.export.known import PRESENT, Known
from variform.export.shake import Shaken, definition
from variform.parts.kinds import Op
from variform.parts.op.tokenwise import ActivationOp


def inlined(op: Part, known: Known, shaken: Shaken, reads: Sequence[str]) -> ast.expr | None:
    """The result of an op as one expression over names; None where that cannot be.

    Args:
        op: the part.
        known: of the model.
        shaken: takes in what the expression needs.
        reads: the names of the op's inputs.
    """
    if not isinstance(op, Op) or any(True for _ in op.parameters()) or any(True for _ in op.buffers()):
        return None
    if isinstance(op, ActivationOp) and len(reads) == 1:
        return _activation(op, known, shaken, reads[0])
    if any(True for _ in op.children()):
        return None
    place = (type(op).__module__, type(op).__qualname__)
    place = shaken.standins.get(place, place)
    node = definition(place)
    assert isinstance(node, ast.ClassDef)
    found = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "forward"]
    if not found:
        return None
    forward = copy.deepcopy(found[0])
    if inspect.getdoc(op.forward):
        forward.body = [n for n in forward.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    _without_hints(forward)
    name_inputs(forward, len(reads))
    if forward.args.vararg is not None:
        return None
    names = [arg.arg for arg in forward.args.args[1:]]
    _without_hints(forward)
    fold(forward, replace(known, own=_plain_values(op)))
    match forward.body:
        case [ast.Return(value=ast.expr() as value)] if len(names) == len(reads) and not _uses_self(value):
            shaken.link(forward, place[0])
            return _Substituted(dict(zip(names, reads, strict=True))).visit(value)  # type: ignore[no-any-return]
    return None


def _activation(op: ActivationOp, known: Known, shaken: Shaken, name: str) -> ast.expr | None:
    functions = op.spec["functions"]
    if op.norm is not None or op.out_norm is not None or len(functions) != 1:
        return None
    table = known.tables["ACTIVATIONS"]
    for key, value in zip(table.keys, table.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == functions[0]:
            expression = ast.Expr(ast.Call(copy.deepcopy(value), [], []))
            shaken.link(expression, "variform.parts.activation")
            assert isinstance(expression.value, ast.Call)
            expression.value.args = [ast.Name(name, ast.Load())]
            return expression.value
    return None


def _plain_values(op: nn.Module) -> Mapping[str, Any]:
    """All attributes that are plain values; the rest is present."""
    found: dict[str, Any] = {}
    for name, value in vars(op).items():
        if not name.startswith("_") and name != "training":
            found[name] = value if _is_plain(value) else PRESENT
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, (bool, int, float, str))


def _without_hints(function: ast.FunctionDef) -> None:
    function.returns = None
    for arg in (*function.args.args, function.args.vararg):
        if arg is not None:
            arg.annotation = None


def _uses_self(value: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "self" for node in ast.walk(value))


class _Substituted(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.names.get(node.id, node.id), node.ctx)
