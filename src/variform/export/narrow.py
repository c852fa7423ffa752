"""Narrowing the functions of a whole file to how they are called, and leaving out what nothing reaches."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from variform.export.flow import stores
from variform.export.fold import fold
from variform.export.known import Known
from variform.export.shake import Place

_MISSING = object()


def narrow(pieces: Mapping[Place, ast.stmt], roots: Iterable[ast.AST], known: Known) -> None:
    """Fold parameters that every call of a function leaves alone, or gives the same constant; in place."""
    functions = [node for node in pieces.values() if isinstance(node, ast.FunctionDef)]
    while True:
        used = _uses([*pieces.values(), *roots], {function.name for function in functions})
        # What one function loses may be seen by the others a round later: calls that are gone only hold back.
        if not [function for function in functions if _narrowed(function, used[function.name], known)]:
            return


def _uses(nodes: Iterable[ast.AST], names: set[str]) -> dict[str, tuple[list[ast.Call], int]]:
    """For each function its calls, and how often its name stands anywhere."""
    calls: dict[str, list[ast.Call]] = {name: [] for name in names}
    counts = dict.fromkeys(names, 0)
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id in names:
                calls[inner.func.id].append(inner)
            elif isinstance(inner, ast.Name) and inner.id in names:
                counts[inner.id] += 1
    return {name: (calls[name], counts[name]) for name in names}


def reached(pieces: dict[Place, ast.stmt], roots: Iterable[ast.AST]) -> None:
    """Leave out the pieces that the roots do not need; in place."""
    named = {_name(node): place for place, node in pieces.items()}
    waiting, kept = [*roots], set[Place]()
    while waiting:
        for inner in ast.walk(waiting.pop()):
            place = named.get(inner.id) if isinstance(inner, ast.Name) else None
            if place is not None and place not in kept:
                kept.add(place)
                waiting.append(pieces[place])
    for place in [place for place in pieces if place not in kept]:
        del pieces[place]


def _name(node: ast.stmt) -> str:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Assign(targets=[ast.Name(id=name)]):
            return name
    return ""


def _narrowed(function: ast.FunctionDef, used: tuple[list[ast.Call], int], known: Known) -> bool:
    """Narrow one function; whether it changed."""
    calls, names = used
    starred = any(isinstance(arg, ast.Starred) for call in calls for arg in call.args)
    if not calls or names > len(calls) or any(k.arg is None for call in calls for k in call.keywords):
        return False
    args = function.args
    positional = [] if starred else list(enumerate(args.args))
    for place, arg in [*positional, *((None, arg) for arg in args.kwonlyargs)]:
        value = _same([_given(call, place, arg.arg, _default(args, arg)) for call in calls])
        if value is _MISSING:
            continue
        is_rebound = stores(function)[arg.arg] > 1
        if is_rebound and not (value is None and _takes_default(function, arg.arg)):
            continue
        for call in calls:
            call.keywords = [k for k in call.keywords if k.arg != arg.arg]
            if place is not None and len(call.args) > place:
                del call.args[place]
        _remove(args, arg)
        fold(function, known if is_rebound else replace(known, names={**known.names, arg.arg: value}))
        return True
    return False


def _takes_default(function: ast.FunctionDef, name: str) -> bool:
    """Put what stands for None in the place of `if name is None: name = default`, where that comes first."""
    for place, node in enumerate(function.body):
        match node:
            case ast.If(
                test=ast.Compare(left=ast.Name(id=tested), ops=[ast.Is()], comparators=[ast.Constant(value=None)]),
                body=[ast.Assign(targets=[ast.Name(id=bound)])],
                orelse=[],
            ) if tested == bound == name:
                function.body[place : place + 1] = node.body
                return True
        if any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node)):
            return False
    return False


def _default(args: ast.arguments, arg: ast.arg) -> ast.expr | None:
    if arg in args.kwonlyargs:
        return args.kw_defaults[args.kwonlyargs.index(arg)]
    place = args.args.index(arg) - len(args.args) + len(args.defaults)
    return args.defaults[place] if place >= 0 else None


def _given(call: ast.Call, place: int | None, name: str, default: ast.expr | None) -> Any:
    """What a call gives for a parameter, if it is a constant."""
    value = default
    if place is not None and len(call.args) > place:
        value = call.args[place]
    value = next((k.value for k in call.keywords if k.arg == name), value)
    return value.value if isinstance(value, ast.Constant) else _MISSING


def _same(values: list[Any]) -> Any:
    first = values[0]
    return first if all(type(v) is type(first) and v == first for v in values) else _MISSING


def _remove(args: ast.arguments, arg: ast.arg) -> None:
    if arg in args.kwonlyargs:
        place = args.kwonlyargs.index(arg)
        del args.kwonlyargs[place], args.kw_defaults[place]
        return
    place = args.args.index(arg)
    from_end = place - len(args.args) + len(args.defaults)
    if from_end >= 0:
        del args.defaults[from_end]
    del args.args[place]
