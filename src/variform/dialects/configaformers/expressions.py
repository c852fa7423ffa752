"""Expressions over named numbers: `4*d`, `8 + 8*(i % 2)`, `i % 2 == 0`; nothing else is evaluated."""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from variform.errors import ConfigError, did_you_mean

Number = int | float
"""Booleans are among the integers: a comparison counts 1 where it holds."""

LONGEST = 200
"""Characters of the longest expression, so that no file can make the reader run deep or long."""

LARGEST = 2**63
"""Integers stay below it on the way, and exponents below 64."""

_FORMS = "numbers, names, + - * / // % **, comparisons, and, or, not, min(...), max(...) and brackets"

_OTHERS = {"&&": "and", "||": "or", " = ": "=="}
"""Signs of other languages, by what they are here."""

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}


def evaluate(text: str, names: Mapping[str, Number]) -> Number:
    """The value of an expression.

    Args:
        text: the expression.
        names: the numbers that it may name.

    Raises:
        ConfigError: it is no expression of these forms, names something unknown, divides by zero or grows too large.
    """
    try:
        value: Number = _value(_parsed(text), names, text)
    except OverflowError:
        raise ConfigError(f"{text!r} grows beyond 2**63") from None
    return value


def names_in(text: str) -> frozenset[str]:
    """The names in an expression.

    Raises:
        ConfigError: it is no expression.
    """
    return _names(_parsed(text))


def substitute(text: str, names: Mapping[str, Number]) -> int | str:
    """An expression with known names replaced by their numbers: an integer where none is left.

    Raises:
        ConfigError: it is no expression, or a number in it is no integer.
    """
    tree = _parsed(text)
    inside = _names(tree)
    if inside.isdisjoint(names):
        return text
    if inside <= set(names):
        return integer(text, names)

    class _Known(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return ast.Constant(names[node.id]) if node.id in names else node

    return ast.unparse(_Known().visit(tree))


def integer(text: str, names: Mapping[str, Number]) -> int:
    """The value of an expression that must be an integer."""
    value = evaluate(text, names)
    if isinstance(value, bool):
        raise ConfigError(
            f"{text!r} is {value}, and an integer is due", hint="a comparison counts 1 in a product: 8*(i > 0)"
        )
    if isinstance(value, float):
        hint = "'//' divides to an integer" if "/" in text.replace("//", "") else "use whole numbers"
        raise ConfigError(f"{text!r} is {value:g}, a number with a point, and an integer is due", hint=hint)
    return value


def condition(text: str, names: Mapping[str, Number]) -> bool:
    """The value of an expression that must be true or false."""
    value = evaluate(text, names)
    if not isinstance(value, bool):
        raise ConfigError(f"{text!r} is {value:g}, and a condition is true or false", hint=f"compare it: {text} == 0")
    return value


def _names(tree: ast.expr) -> frozenset[str]:
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in called)


def _parsed(text: str) -> ast.expr:
    if len(text) > LONGEST:
        raise ConfigError(f"an expression has at most {LONGEST} characters, and this has {len(text)}")
    try:
        with warnings.catch_warnings():  # Python warns of `1if`, which is refused below
            warnings.simplefilter("ignore")
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        other = next((f"{sign!r} is written {ours!r}; " for sign, ours in _OTHERS.items() if sign in text), "")
        raise ConfigError(f"{text!r} is not an expression", hint=f"{other}write {_FORMS}") from None


def _value(node: ast.expr, names: Mapping[str, Number], text: str) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() as number):
            return _bounded(number, text)
        case ast.Name(id=name):
            if name not in names:
                hint = did_you_mean(name, names) if names else "nothing is named here"
                more = "" if hint.startswith("did") else "; sizes={...} names numbers"
                raise ConfigError(f"{name!r} is not known in {text!r}", hint=hint + more)
            return names[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand, names, text))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _combined(sign, _value(left, names, text), _value(right, names, text), text)
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_truth(item, names, text) for item in values)
        case ast.BoolOp(values=values):
            return any(_truth(item, names, text) for item in values)
        case ast.Compare(left=left, ops=signs, comparators=others) if all(type(sign) in _COMPARE for sign in signs):
            sides = [_value(side, names, text) for side in (left, *others)]
            pairs = zip(sides, sides[1:], signs, strict=False)
            return all(_COMPARE[type(sign)](a, b) for a, b, sign in pairs)
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=[_, _, *_] as given, keywords=[]):
            return (min if name == "min" else max)(_value(item, names, text) for item in given)
    raise ConfigError(f"{text!r} holds {ast.unparse(node)!r}, which is not evaluated", hint=f"write {_FORMS}")


def _truth(node: ast.expr, names: Mapping[str, Number], text: str) -> bool:
    value = _value(node, names, text)
    if not isinstance(value, bool):
        raise ConfigError(f"{text!r} joins {ast.unparse(node)!r}, which is neither true nor false", hint="compare it")
    return value


def _combined(sign: ast.operator, a: Any, b: Any, text: str) -> Any:
    if isinstance(sign, (ast.Div, ast.FloorDiv, ast.Mod)) and b == 0:
        raise ConfigError(f"{text!r} divides by zero")
    if isinstance(sign, ast.Pow) and abs(b) >= 64:
        raise ConfigError(f"{text!r} has an exponent of {b:g}", hint="exponents are below 64")
    if isinstance(sign, ast.Pow) and a < 0 and isinstance(b, float):
        raise ConfigError(f"{text!r} takes a root of {a:g}")
    if isinstance(sign, ast.Pow) and a == 0 and b < 0:
        raise ConfigError(f"{text!r} divides by zero")
    return _bounded(_BINARY[type(sign)](a, b), text)


def _bounded(value: Any, text: str) -> Any:
    if not -LARGEST < value < LARGEST:  # false for a number that is none, too
        raise ConfigError(f"{text!r} grows beyond 2**63")
    return value
