"""Expressions as text on one line, spaced and quoted as formatters want it."""

from __future__ import annotations

import ast
import math
from typing import Any

_BINARY: dict[type[ast.operator], tuple[str, int]] = {
    ast.BitOr: ("|", 7),
    ast.BitXor: ("^", 8),
    ast.BitAnd: ("&", 9),
    ast.LShift: ("<<", 10),
    ast.RShift: (">>", 10),
    ast.Add: ("+", 11),
    ast.Sub: ("-", 11),
    ast.Mult: ("*", 12),
    ast.Div: ("/", 12),
    ast.FloorDiv: ("//", 12),
    ast.Mod: ("%", 12),
    ast.MatMult: ("@", 12),
    ast.Pow: ("**", 14),
}
_UNARY: dict[type[ast.unaryop], tuple[str, int]] = {
    ast.Not: ("not ", 5),
    ast.USub: ("-", 13),
    ast.UAdd: ("+", 13),
    ast.Invert: ("~", 13),
}
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
}


def text(node: ast.expr, level: int = 0) -> str:
    """An expression on one line; in brackets where it binds less than `level`."""
    written, own = _written(node)
    return f"({written})" if own < level else written


def literal(value: Any) -> str:
    """A plain value as source."""
    if isinstance(value, str):
        shown = repr(value)
        return f'"{shown[1:-1]}"'.replace("\\'", "'") if '"' not in value else shown
    if isinstance(value, float):
        if math.isinf(value):
            return "math.inf" if value > 0 else "-math.inf"
        return repr(value).replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return "..." if value is Ellipsis else repr(value)


def _written(node: ast.expr) -> tuple[str, int]:
    match node:
        case ast.Constant():
            return literal(node.value), 16
        case ast.Name():
            return node.id, 16
        case ast.Attribute():
            return f"{text(node.value, 16)}.{node.attr}", 16
        case ast.Call():
            return f"{text(node.func, 16)}({_arguments(node)})", 16
        case ast.Subscript():
            return f"{text(node.value, 16)}[{_index(node.slice)}]", 16
        case ast.BinOp():
            return _binary(node)
        case ast.UnaryOp():
            sign, own = _UNARY[type(node.op)]
            return f"{sign}{text(node.operand, own)}", own
        case ast.BoolOp():
            word, own = ("or", 3) if isinstance(node.op, ast.Or) else ("and", 4)
            return f" {word} ".join(text(value, 5) for value in node.values), own
        case ast.Compare():
            pairs = zip(node.ops, node.comparators, strict=True)
            return " ".join([text(node.left, 7), *(f"{_COMPARE[type(op)]} {text(x, 7)}" for op, x in pairs)]), 6
        case ast.IfExp():
            return f"{text(node.body, 2)} if {text(node.test, 2)} else {text(node.orelse, 1)}", 1
    return _display(node)


def _display(node: ast.expr) -> tuple[str, int]:
    match node:
        case ast.Tuple():
            inner = ", ".join(text(item, 1) for item in node.elts) + ("," if len(node.elts) == 1 else "")
            return (inner, 0) if isinstance(node.ctx, ast.Store) and len(node.elts) > 1 else (f"({inner})", 16)
        case ast.List():
            return f"[{', '.join(text(item, 1) for item in node.elts)}]", 16
        case ast.Set():
            return f"{{{', '.join(text(item, 1) for item in node.elts)}}}", 16
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            inner = ", ".join(f"**{text(v, 7)}" if k is None else f"{text(k)}: {text(v)}" for k, v in pairs)
            return f"{{{inner}}}", 16
        case ast.ListComp():
            return f"[{text(node.elt, 1)}{_loops(node.generators)}]", 16
        case ast.GeneratorExp():
            return f"({text(node.elt, 1)}{_loops(node.generators)})", 16
        case ast.DictComp():
            return f"{{{text(node.key)}: {text(node.value)}{_loops(node.generators)}}}", 16
        case ast.Starred():
            return f"*{text(node.value, 7)}", 16
        case ast.Slice():
            return _index(node), 16
        case ast.Yield(value=ast.expr() as value):
            return f"yield {text(value)[1:-1] if isinstance(value, ast.Tuple) else text(value)}", 0
        case ast.YieldFrom():
            return f"yield from {text(node.value)}", 0
    shown = ast.unparse(ast.fix_missing_locations(node))  # f-strings, lambdas and what is rarer
    if "'" in shown and '"' not in shown:
        shown = shown.replace("'", '"')
    return shown, 0 if isinstance(node, ast.Lambda) else 16


def _binary(node: ast.BinOp) -> tuple[str, int]:
    sign, own = _BINARY[type(node.op)]
    if isinstance(node.op, ast.Pow):
        left, right = text(node.left, own + 1), text(node.right, own - 1)
        tight = _is_simple(node.left) and _is_simple(node.right)
        return (f"{left}**{right}" if tight else f"{left} ** {right}"), own
    return f"{text(node.left, own)} {sign} {text(node.right, own + 1)}", own


def _is_simple(node: ast.expr) -> bool:
    """Whether an operand of a power, or a bound of a slice, needs no air around the operator."""
    match node:
        case ast.Name():
            return True
        case ast.Constant(value=int() | float()):
            return True
        case ast.Attribute():
            return _is_simple(node.value) and not isinstance(node.value, ast.Constant)
        case ast.UnaryOp(op=ast.USub()):
            return _is_simple(node.operand)
    return False


def _index(node: ast.expr) -> str:
    match node:
        case ast.Slice():
            bounds = [node.lower, node.upper]
            tight = all(
                bound is None or (_is_simple(bound) and not isinstance(bound, ast.Attribute)) for bound in bounds
            )
            before = "" if node.lower is None else text(node.lower) + ("" if tight else " ")
            after = "" if node.upper is None else ("" if tight else " ") + text(node.upper)
            return f"{before}:{after}" + ("" if node.step is None else f":{text(node.step)}")
        case ast.Tuple() if node.elts:
            return ", ".join(_index(item) for item in node.elts) + ("," if len(node.elts) == 1 else "")
    return text(node)


def _loops(generators: list[ast.comprehension]) -> str:
    return "".join(
        f" for {text(g.target)} in {text(g.iter, 2)}" + "".join(f" if {text(test, 2)}" for test in g.ifs)
        for g in generators
    )


def _arguments(node: ast.Call) -> str:
    match node:
        case ast.Call(args=[ast.GeneratorExp() as only], keywords=[]):
            return text(only)[1:-1]
    given = [text(arg, 1) for arg in node.args]
    given += [f"**{text(k.value, 7)}" if k.arg is None else f"{k.arg}={text(k.value, 1)}" for k in node.keywords]
    return ", ".join(given)
