"""Reducing expressions: what is known stands in the place of what asks for it."""

from __future__ import annotations

import ast
import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

from variform.export.known import PRESENT, Known
from variform.export.shake import LAYERS, at

UNKNOWN = object()
"""Neither true nor false for sure."""

_NEVER_GIVEN = ("Mask", "PendingScores", "Cheap")
"""Classes whose instances no standalone code meets: its tensors are tensors."""

_ATTENTION = (
    "attend",
    "attend_blocks",
    "attend_chunks",
    "attend_grouped_query",
    "attend_wide_values",
    "attend_with_memory",
    "scaled_dot_product_attention",
)
"""Functions whose arguments are false by default: what is given as false is left out."""

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Reducer(ast.NodeTransformer):
    """Reduces the expressions of a function.

    Args:
        known: what holds in it.
        stores: how often each local name is bound.
        changed: local names whose items are set, or whose methods are called.
    """

    def __init__(self, known: Known, stores: Mapping[str, int], changed: set[str]) -> None:
        self.known = known
        self.stores = stores
        self.changed = changed
        self.env: dict[str, ast.expr] = {}  # locals that stand for something simpler
        self.containers: set[str] = set()  # locals that are self._modules or self._parameters

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if not isinstance(node.ctx, ast.Load):
            return node
        if node.id in self.env:
            return self.env[node.id]
        value = self.known.names.get(node.id, PRESENT)
        return node if value is PRESENT or self.stores.get(node.id, 1) > 1 else constant(value)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        node.value = self.visit(node.value)
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=attr, ctx=ast.Load()):
                value = self.known.own.get(attr, PRESENT)
                return node if value is PRESENT else constant(value)
            case ast.Attribute(value=ast.Name(id="sides"), attr=attr) if attr in self.known.absent:
                return ast.Constant(None)
        return node

    def _own(self, name: str) -> ast.expr:
        return self.visit_Attribute(ast.Attribute(ast.Name("self", ast.Load()), name, ast.Load()))

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key))):
                if name in self.containers:
                    return self._own(key)
                for found, value in zip(*_entries(self.known.tables.get(name)), strict=True):
                    if isinstance(found, ast.Constant) and found.value == key:
                        return value
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="get"), args=[ast.Constant(value=key)]):
                if name in self.containers:
                    return self._own(str(key))
                if name == "streams" and key in self.known.absent:
                    return ast.Constant(None)
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, ast.Name(id="tuple")]) if not self.known.publishes:
                return ast.Constant(False)
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, ast.Name(id=name)]) if name in _NEVER_GIVEN:
                return ast.Constant(False)
            case ast.Call(func=ast.Attribute(value=modules, attr="in_order")) if not self.known.repeats:
                return modules
            case ast.Call(func=ast.Name(id="ModuleList")) if not self.known.repeats:
                node.func = ast.Attribute(at(LAYERS, "nn"), "ModuleList", ast.Load())
            case ast.Call(func=ast.Name(id="call"), args=[part, x, streams, *_]) if not self.known.publishes:
                return ast.Call(part, [x, streams], [])
            case ast.Call(func=ast.Name(id="join"), args=[residual, onto, branch, *_]):
                return ast.Call(residual, [onto, branch], [])
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=[x, ast.Constant(value=None)]) if (
                name.endswith("norm")
            ):
                node.args = [x]  # without a condition
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in _ATTENTION:
                node.keywords = [k for k in node.keywords if not _is_default(k.value)]
            case ast.Call(func=ast.Name(id="Sides")):
                node.keywords = [k for k in node.keywords if not is_nothing(k.value)]
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if len(node.ops) != 1:
            return node
        left, right = node.left, node.comparators[0]
        if self.known.images is not None and ast.unparse(node) == "inputs.dim() == 4":
            return ast.Constant(self.known.images)
        compare = _COMPARE.get(type(node.ops[0]))
        if isinstance(left, ast.Constant) and isinstance(right, ast.Constant) and compare is not None:
            return ast.Constant(bool(compare(left.value, right.value)))
        if isinstance(right, ast.Constant) and right.value is None and self._is_present(left):
            return ast.Constant(isinstance(node.ops[0], ast.IsNot))
        return node

    def _is_present(self, node: ast.expr) -> bool:
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=attr):
                return self.known.own.get(attr) is PRESENT
            case ast.Name(id=name):
                return self.known.names.get(name) is PRESENT and self.stores.get(name, 1) <= 1
        return False

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.BinOp(op=ast.Mult(), right=ast.Constant(value=int(factor))) if factor == 1:
                return node.left
            case ast.BinOp(op=ast.Add(), right=ast.Constant(value=int(term))) if term == 0:
                return node.left
        return node

    def visit_ListComp(self, node: ast.ListComp) -> ast.expr:
        self.generic_visit(node)
        match node.generators:
            case [ast.comprehension(target=ast.Name(id=name), iter=ast.Tuple(elts=items), ifs=[])]:
                return ast.List([self.visit(_Put(name, item).visit(copy.deepcopy(node.elt))) for item in items])
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not):
            truth = self.truth(node.operand)
            return node if truth is UNKNOWN else ast.Constant(not truth)
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        stops = isinstance(node.op, ast.Or)
        kept: list[ast.expr] = []
        for place, value in enumerate(node.values):
            truth = self.truth(value)
            if truth is UNKNOWN:
                kept.append(value)
            elif truth == stops:
                kept.append(value)
                break
            elif place == len(node.values) - 1:
                kept.append(value)
        if len(kept) == 1:
            return kept[0]
        node.values = kept
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        node.test = self.tested(self.visit(node.test))
        truth = self.truth(node.test)
        if truth is not UNKNOWN:
            return self.visit(node.body if truth else node.orelse)  # type: ignore[no-any-return]
        node.body, node.orelse = self.visit(node.body), self.visit(node.orelse)
        return node.body if ast.dump(node.body) == ast.dump(node.orelse) else node

    def tested(self, test: ast.expr) -> ast.expr:
        """A condition without a last operand that changes nothing."""
        if isinstance(test, ast.BoolOp) and self.truth(test.values[-1]) is isinstance(test.op, ast.And):
            return test.values[0] if len(test.values) == 2 else ast.BoolOp(test.op, test.values[:-1])
        return test

    def truth(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return bool(node.value)
            case ast.Dict(keys=keys):
                return bool(keys)
            case ast.Tuple(elts=items):
                return bool(items)
            case ast.BoolOp(op=ast.And(), values=values) if any(self.truth(v) is False for v in values):
                return False
            case ast.BoolOp(op=ast.Or(), values=values) if any(self.truth(v) is True for v in values):
                return True
        return UNKNOWN


def constant(value: Any) -> ast.expr:
    """A plain value as syntax."""
    if isinstance(value, (tuple, list)):
        items = [constant(item) for item in value]
        return ast.Tuple(items, ast.Load()) if isinstance(value, tuple) else ast.List(items, ast.Load())
    if isinstance(value, Mapping):
        return ast.Dict([ast.Constant(key) for key in value], [constant(item) for item in value.values()])
    return ast.Constant(value)


def _entries(table: ast.Dict | None) -> tuple[list[ast.expr | None], list[ast.expr]]:
    return ([], []) if table is None else (table.keys, table.values)


class _Put(ast.NodeTransformer):
    """Puts an expression in the place of a name."""

    def __init__(self, name: str, value: ast.expr) -> None:
        self.name = name
        self.value = value

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.value if node.id == self.name and isinstance(node.ctx, ast.Load) else node


def is_own(value: ast.expr) -> bool:
    """Whether an expression is an attribute of `self`."""
    match value:
        case ast.Attribute(value=ast.Name(id="self")):
            return True
    return False


def _is_default(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and not value.value


def is_nothing(value: ast.expr) -> bool:
    """Whether an expression is None or an empty tuple."""
    match value:
        case ast.Constant(value=None) | ast.Tuple(elts=[]):
            return True
    return False
