"""What a function does with its names: how often they are bound, which are changed, which are read."""

from __future__ import annotations

import ast


def stores(function: ast.FunctionDef) -> dict[str, int]:
    """How often each local name is bound; parameters count once, names bound in loops twice."""
    counts: dict[str, int] = {}

    def count(node: ast.AST, times: int) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.arg):
                counts[child.arg] = counts.get(child.arg, 0) + 1
            elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                counts[child.id] = counts.get(child.id, 0) + times
            count(child, 2 if isinstance(child, (ast.For, ast.While)) else times)

    count(function, 1)
    return counts


def changed(function: ast.FunctionDef) -> set[str]:
    """Local names whose items are set, or whose methods are called."""
    found: set[str] = set()
    for node in ast.walk(function):
        match node:
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store()) | ast.Attribute(value=ast.Name(id=name)):
                found.add(name)
    return found


def loads(node: ast.AST) -> set[str]:
    """All names that are read."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def tidy(function: ast.FunctionDef) -> list[ast.stmt]:
    """Without assignments that nothing reads, and with a value returned rather than named first."""
    read = loads(function)
    body: list[ast.stmt] = []
    for node in function.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name not in read and _is_pure(value):
                continue
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name(id=other)) if name == other:
                continue
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if body and name not in loads(value):
                match body[-1]:
                    case ast.Assign(targets=[ast.Name(id=other)], value=ast.Constant()) if other == name:
                        body.pop()
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)]) if body:
                match body[-1]:
                    case ast.Assign(targets=[ast.Attribute(attr=other)], value=ast.Constant()) if other == name:
                        body.pop()
            case ast.Return(value=ast.Name(id=name)) if body:
                match body[-1]:
                    case ast.Assign(targets=[ast.Name(id=other)], value=value) if other == name:
                        body[-1] = ast.Return(value)
                        continue
            case ast.Assign(targets=[ast.Tuple(elts=items)], value=value) if all(
                isinstance(item, ast.Name) and item.id not in read for item in items
            ) and _is_pure(value):
                continue
            case ast.Assign(targets=[ast.Tuple(elts=items)]):
                for item in items:
                    if isinstance(item, ast.Name) and item.id not in read:
                        item.id = "_"
        body.append(node)
    match body[-1:]:
        case [ast.Return(value=None)]:
            body.pop()
    return body or [ast.Pass()]


def _is_pure(value: ast.expr) -> bool:
    for node in ast.walk(value):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Attribute(value=ast.Name(id="streams"), attr="get") | ast.Name(id="positions_of"):
                    continue
            return False
    return True
