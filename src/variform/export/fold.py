"""Folding: what is known of a part's fields is put into its code, and what cannot happen is taken out."""

from __future__ import annotations

import ast
import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from variform.export.flow import changed, stores, tidy
from variform.export.shake import LAYERS, at

PRESENT = object()
"""Known not to be None; nothing else is known."""

_UNKNOWN = object()
_CHECKS = ("ShapeError", "ConfigError", "StreamError", "refuse_streams")
"""Errors and functions that check what a caller gives; torch's own errors serve in a standalone file."""

_NEVER_GIVEN = ("Mask", "PendingScores", "Cheap")
"""Classes whose instances no standalone code meets: its tensors are tensors."""

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


def fold(function: ast.FunctionDef, known: Known) -> None:
    """Fold a function in place, until nothing changes."""
    before = ""
    while (now := ast.dump(function)) != before:
        before = now
        folder = _Folder(known, stores(function), changed(function))
        function.body = folder.block(function.body) or [ast.Pass()]
        function.body = tidy(function)


class _Folder(ast.NodeTransformer):
    def __init__(self, known: Known, stores: Mapping[str, int], changed: set[str]) -> None:
        self.known = known
        self.stores = stores
        self.changed = changed
        self.env: dict[str, ast.expr] = {}  # locals that stand for something simpler
        self.containers: set[str] = set()  # locals that are self._modules or self._parameters

    def block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """Folded statements; what stands behind a return is left out."""
        done: list[ast.stmt] = []
        for statement in body:
            result = self.visit(statement)
            done += result if isinstance(result, list) else [] if result is None else [result]
            if done and isinstance(done[-1], (ast.Return, ast.Raise)):
                break
        return done

    # ---- statements ----

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        node.value = self.visit(node.value)
        match node.value:
            case ast.Call(func=ast.Name(id=name)) if name in _CHECKS:
                return None
        return node

    def visit_Assert(self, node: ast.Assert) -> None:
        return None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = self.block(node.body) or [ast.Pass()]
        return node

    def visit_For(self, node: ast.For) -> ast.For:
        node.iter = self.visit(node.iter)
        node.body = self.block(node.body) or [ast.Pass()]
        return node

    def visit_With(self, node: ast.With) -> ast.With:
        node.body = self.block(node.body) or [ast.Pass()]
        return node

    def visit_If(self, node: ast.If) -> ast.stmt | list[ast.stmt] | None:
        node.test = self._tested(self.visit(node.test))
        truth = self._truth(node.test)
        if truth is not _UNKNOWN:
            return self.block(node.body if truth else node.orelse)
        node.body, node.orelse = self.block(node.body), self.block(node.orelse)
        if _refuses(node.body) and not node.orelse:
            return None  # a check of the arguments
        if _refuses(node.body):
            return node.orelse
        if _refuses(node.orelse):
            return node.body
        if not node.body and not node.orelse:
            return None
        if not node.body:
            node.test, node.body, node.orelse = ast.UnaryOp(ast.Not(), node.test), node.orelse, []
        return node

    def visit_Try(self, node: ast.Try) -> list[ast.stmt]:
        # What handlers do here is to word an error better, or to find a parameter that was wrapped.
        return self.block(node.body)

    def visit_Match(self, node: ast.Match) -> Any:
        node.subject = self.visit(node.subject)
        if not isinstance(node.subject, ast.Constant):
            for case in node.cases:
                case.body = self.block(case.body)
            return node
        for case in node.cases:
            match case.pattern:
                case ast.MatchValue(value=ast.Constant(value=value)) if value == node.subject.value:
                    return self.block(case.body)
                case ast.MatchAs(pattern=None):
                    return self.block(case.body)
        return None

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        if node.value is None:
            return None
        return self.visit(ast.Assign([node.target], node.value))

    def visit_Assign(self, node: ast.Assign) -> Any:
        node.value = self.visit(node.value)
        match node.targets, node.value:
            case [ast.Tuple(elts=names)], ast.Tuple(elts=values) if len(names) == len(values):
                if all(_is_own(value) or isinstance(value, ast.Constant) for value in values) or any(
                    isinstance(value, ast.Constant) for value in values
                ):
                    pairs = zip(names, values, strict=True)
                    return self.block([ast.Assign([name], value) for name, value in pairs])
            case [ast.Name(id=name)], ast.Attribute(value=ast.Name(id="self"), attr="_modules" | "_parameters"):
                self.containers.add(name)
                return None
            case [ast.Name(id=name)], value if self.stores.get(name) == 1 and self._is_simple(value, name):
                self.env[name] = value
                return None
        match node:
            case ast.Assign(targets=[ast.Name(id="streams")], value=ast.Dict() as given):
                kept = [(k, v) for k, v in zip(given.keys, given.values, strict=True) if not _is_nothing(v)]
                given.keys, given.values = [k for k, _ in kept], [v for _, v in kept]
        node.targets = [self.visit(target) for target in node.targets]
        return node

    def _is_simple(self, value: ast.expr, name: str) -> bool:
        """Whether a local name can be replaced by its value everywhere."""
        match value:
            case ast.Constant():
                return True
            case ast.Dict(keys=[]):
                return not self.known.publishes and name not in self.changed
            case ast.Tuple(elts=[]):
                return True
            case ast.Name(id=other):
                return self.stores.get(other, 0) <= 1
        return _is_own(value) and self.known.own.get(value.attr) is PRESENT  # type: ignore[attr-defined]

    # ---- expressions ----

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
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=[x, ast.Constant(value=None)]) if (
                name.endswith("norm")
            ):
                node.args = [x]  # without a condition
            case ast.Call(
                func=ast.Name(id="attend" | "attend_blocks" | "attend_with_memory")
                | ast.Attribute(attr="scaled_dot_product_attention")
            ):
                node.keywords = [k for k in node.keywords if not _is_default(k.value)]
            case ast.Call(func=ast.Name(id="Sides")):
                node.keywords = [k for k in node.keywords if not _is_nothing(k.value)]
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
            truth = self._truth(node.operand)
            return node if truth is _UNKNOWN else ast.Constant(not truth)
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        stops = isinstance(node.op, ast.Or)
        kept: list[ast.expr] = []
        for place, value in enumerate(node.values):
            truth = self._truth(value)
            if truth is _UNKNOWN:
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
        node.test = self._tested(self.visit(node.test))
        truth = self._truth(node.test)
        if truth is not _UNKNOWN:
            return self.visit(node.body if truth else node.orelse)  # type: ignore[no-any-return]
        node.body, node.orelse = self.visit(node.body), self.visit(node.orelse)
        return node.body if ast.dump(node.body) == ast.dump(node.orelse) else node

    def _tested(self, test: ast.expr) -> ast.expr:
        """A condition without a last operand that changes nothing."""
        if isinstance(test, ast.BoolOp) and self._truth(test.values[-1]) is isinstance(test.op, ast.And):
            return test.values[0] if len(test.values) == 2 else ast.BoolOp(test.op, test.values[:-1])
        return test

    def _truth(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return bool(node.value)
            case ast.Dict(keys=keys):
                return bool(keys)
            case ast.Tuple(elts=items):
                return bool(items)
            case ast.BoolOp(op=ast.And(), values=values) if any(self._truth(v) is False for v in values):
                return False
            case ast.BoolOp(op=ast.Or(), values=values) if any(self._truth(v) is True for v in values):
                return True
        return _UNKNOWN


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


def _refuses(body: list[ast.stmt]) -> bool:
    """Whether all that statements do is to word an error about what was given."""
    match body:
        case [ast.Raise(exc=ast.Call(func=ast.Name(id=name)))]:
            return name in _CHECKS
    return False


def _is_own(value: ast.expr) -> bool:
    match value:
        case ast.Attribute(value=ast.Name(id="self")):
            return True
    return False


def _is_default(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and not value.value


def _is_nothing(value: ast.expr) -> bool:
    match value:
        case ast.Constant(value=None) | ast.Tuple(elts=[]):
            return True
    return False
