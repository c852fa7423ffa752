"""Folding: what is known of a part's fields is put into its code, and what cannot happen is taken out."""

from __future__ import annotations

import ast
from typing import Any

from variform.export.flow import changed, stores, tidy
from variform.export.known import PRESENT, Known
from variform.export.reduce import UNKNOWN, Reducer, is_nothing, is_own

_CHECKS = ("ShapeError", "ConfigError", "StreamError", "refuse_streams", "refuse_unable")
"""Errors and functions that check what a caller gives; torch's own errors serve in a standalone file."""


def fold(function: ast.FunctionDef, known: Known) -> None:
    """Fold a function in place, until nothing changes."""
    before = ""
    while (now := ast.dump(function)) != before:
        before = now
        folder = _Folder(known, stores(function), changed(function))
        function.body = folder.block(function.body) or [ast.Pass()]
        function.body = tidy(function)


class _Folder(Reducer):
    """Folds statements."""

    def block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """Folded statements; what stands behind a return is left out."""
        done: list[ast.stmt] = []
        for statement in body:
            result = self.visit(statement)
            done += result if isinstance(result, list) else [] if result is None else [result]
            if done and isinstance(done[-1], (ast.Return, ast.Raise)):
                break
        return done

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
        node.test = self.tested(self.visit(node.test))
        truth = self.truth(node.test)
        if truth is not UNKNOWN:
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
        match node.targets:
            case [ast.Attribute(value=ast.Name(id="sides"), attr=attr)] if attr in self.known.absent:
                return None
        node.value = self.visit(node.value)
        match node.targets, node.value:
            case [ast.Tuple(elts=names)], ast.Tuple(elts=values) if len(names) == len(values):
                if all(is_own(value) or isinstance(value, ast.Constant) for value in values) or any(
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
                kept = [(k, v) for k, v in zip(given.keys, given.values, strict=True) if not is_nothing(v)]
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
        return is_own(value) and self.known.own.get(value.attr) is PRESENT  # type: ignore[attr-defined]


def _refuses(body: list[ast.stmt]) -> bool:
    """Whether all that statements do is to word an error about what was given."""
    match body:
        case [ast.Raise(exc=ast.Call(func=ast.Name(id=name)))]:
            return name in _CHECKS
    return False
