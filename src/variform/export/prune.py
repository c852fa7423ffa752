"""Pruning a whole file: attributes that nothing reads, fields of constructors that nothing uses."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping

from variform.export.classes import Facts
from variform.export.flow import loads
from variform.export.shake import Place


def prune(pieces: Mapping[Place, ast.stmt], facts: Mapping[Place, Facts], roots: Iterable[ast.AST] = ()) -> None:
    """Take out what nothing reads, in place, until nothing changes."""
    classes = {place: node for place, node in pieces.items() if isinstance(node, ast.ClassDef)}
    before = ""
    while (now := "".join(ast.dump(node) for node in classes.values())) != before:
        before = now
        outside = _attributes([*pieces.values(), *roots], own=False)
        for place, node in classes.items():
            held = facts[place].held if place in facts else frozenset()
            gone = _class(node, outside | _attributes([node], own=True), held)
            _without(pieces.values(), node.name, gone)
        _linears(pieces)
        _sides(pieces, outside)


def _attributes(nodes: Iterable[ast.AST], own: bool) -> set[str]:
    """Attributes that are read: of `self`, or of anything else."""
    return {
        n.attr
        for node in nodes
        for n in ast.walk(node)
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load) and _is_self(n.value) == own
    }


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _without(nodes: Iterable[ast.AST], name: str, gone: set[str]) -> None:
    """Calls of a class that stand in other definitions, without the keywords of parameters that it no longer has."""
    for node in nodes if gone else ():
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == name:
                call.keywords = [k for k in call.keywords if k.arg not in gone]


def _class(node: ast.ClassDef, read: set[str], held: frozenset[str]) -> set[str]:
    """Prune a class; the names of parameters that its constructor loses."""
    gone: set[str] = set()
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    init = methods.get("__init__")
    if init is None:
        return gone
    init.body = [item for item in init.body if not _is_idle(item, read, held)]
    used = loads(init)
    for arg, default in list(
        zip(reversed(init.args.args), [*reversed(init.args.defaults), *[None] * 99], strict=False)
    ):
        if arg.arg != "self" and arg.arg not in used:
            init.args.args.remove(arg)
            gone.add(arg.arg)
            if default is not None:
                init.args.defaults.remove(default)
    reset = methods.get("reset_parameters")
    if reset is not None and all(isinstance(item, ast.Pass) for item in reset.body):
        node.body.remove(reset)
        for method in methods.values():
            method.body = [item for item in method.body if not _is_call(item, "reset_parameters")]
    again = methods.get("_apply")
    if again is not None and not any(_is_call(item, "reset_parameters") for item in ast.walk(again)):
        node.body = [item for item in node.body if item is not again]  # it has nothing to compute anew
    if len(init.body) == 1 and not init.args.args[1:] and _is_call(init.body[0], "__init__"):
        node.body.remove(init)
    return gone


def _is_call(node: ast.AST, method: str) -> bool:
    """Whether a statement calls a method without arguments."""
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=attr), args=[], keywords=[])):
            return attr == method
    return False


def _is_idle(item: ast.stmt, read: set[str], held: frozenset[str]) -> bool:
    match item:
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=attr)], value=value):
            return attr not in read and (attr not in held or isinstance(value, ast.Constant))
    return False


def _linears(pieces: Mapping[Place, ast.stmt]) -> None:
    """Where no standard deviation is given anywhere, torch's own linear map serves."""
    calls = [
        n
        for node in pieces.values()
        for n in ast.walk(node)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "Linear"
    ]
    given = [k.value for call in calls for k in call.keywords if k.arg == "std"]
    if all(isinstance(value, ast.Constant) and value.value is None for value in given):
        for call in calls:
            call.func = ast.Attribute(ast.Name("nn", ast.Load()), "Linear", ast.Load())
            call.keywords = [k for k in call.keywords if k.arg not in ("std", "writes")]


def _sides(pieces: Mapping[Place, ast.stmt], read: set[str]) -> None:
    """What attention is told and no attention of the model asks."""
    for node in pieces.values():
        if isinstance(node, ast.ClassDef) and node.name == "Sides":
            node.body = [
                item
                for item in node.body
                if not (
                    isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id not in read
                )
            ]
        for inner in ast.walk(node):
            match inner:
                case ast.Call(func=ast.Name(id="Sides"), keywords=keywords):
                    inner.keywords = [k for k in keywords if k.arg in read]
