"""Writing syntax trees as formatted source: double quotes, lines of at most 120 characters, one wrapped item a line."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from variform.export.phrase import text

WIDTH = 120


def statements(nodes: Sequence[ast.stmt], indent: int = 0) -> list[str]:
    """Statements as lines; its attribute `comment` stands behind a statement, `lead` before it."""
    lines: list[str] = []
    for place, node in enumerate(nodes):
        is_definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        if lines and (is_definition or isinstance(nodes[place - 1], (ast.FunctionDef, ast.ClassDef))):
            lines.append("")
        if getattr(node, "lead", ""):
            lines.append(f"{' ' * indent}# {node.lead}")  # type: ignore[attr-defined]
        written = _statement(node, indent)
        comment = getattr(node, "comment", "")
        if comment and len(written) == 1 and len(written[0]) + len(comment) + 4 <= WIDTH:
            written = [f"{written[0]}  # {comment}"]
        lines += written
    return lines


def _statement(node: ast.stmt, indent: int) -> list[str]:
    pad = " " * indent
    match node:
        case ast.FunctionDef():
            return _function(node, indent)
        case ast.ClassDef():
            return _class(node, indent)
        case ast.Expr(value=ast.Constant(value=str(doc))):
            return _docstring(doc, indent)
        case ast.Expr():
            return _laid("", node.value, "", indent)
        case ast.Assign():
            head = "".join(f"{text(target)} = " for target in node.targets)
            bare = f"{pad}{head}{text(node.value)[1:-1]}" if _is_pair(node.value) else ""
            return [bare] if bare and len(bare) <= WIDTH else _laid(head, node.value, "", indent)
        case ast.AnnAssign():
            head = f"{text(node.target)}: {text(node.annotation)}"
            return [pad + head] if node.value is None else _laid(f"{head} = ", node.value, "", indent)
        case ast.AugAssign():
            return _laid(f"{text(node.target)} {_operator(node)}= ", node.value, "", indent)
        case ast.Return():
            if node.value is None:
                return [f"{pad}return"]
            bare = f"{pad}return {text(node.value)[1:-1]}" if _is_pair(node.value) else ""
            return [bare] if bare and len(bare) <= WIDTH else _laid("return ", node.value, "", indent)
        case ast.Raise():
            return [f"{pad}raise"] if node.exc is None else _laid("raise ", node.exc, "", indent)
        case ast.If():
            return _branches(node, indent, "if")
        case ast.For():
            lines = _laid(f"for {text(node.target)} in ", node.iter, ":", indent)
            return lines + statements(node.body, indent + 4)
        case ast.While():
            return _laid("while ", node.test, ":", indent) + statements(node.body, indent + 4)
        case ast.With():
            head = ", ".join(
                text(item.context_expr) + (f" as {text(item.optional_vars)}" if item.optional_vars else "")
                for item in node.items
            )
            return [f"{pad}with {head}:", *statements(node.body, indent + 4)]
        case ast.Match():
            lines = [f"{pad}match {text(node.subject)}:"]
            for case in node.cases:
                lines.append(f"{pad}    case {ast.unparse(case.pattern).replace(chr(39), chr(34))}:")
                lines += statements(case.body, indent + 8)
            return lines
    return [pad + line for line in ast.unparse(ast.fix_missing_locations(node)).splitlines()]


def _is_pair(node: ast.expr) -> bool:
    return isinstance(node, ast.Tuple) and len(node.elts) > 1


def _operator(node: ast.AugAssign) -> str:
    return text(ast.BinOp(ast.Name("a"), node.op, ast.Name("b"))).split()[1]


def _branches(node: ast.If, indent: int, word: str) -> list[str]:
    lines = _laid(f"{word} ", node.test, ":", indent) + statements(node.body, indent + 4)
    match node.orelse:
        case []:
            return lines
        case [ast.If() as inner]:
            return lines + _branches(inner, indent, "elif")
    return [*lines, f"{' ' * indent}else:", *statements(node.orelse, indent + 4)]


def _class(node: ast.ClassDef, indent: int) -> list[str]:
    pad = " " * indent
    bases = f"({', '.join(map(text, node.bases))})" if node.bases else ""
    lines = [f"{pad}@{text(decorator)}" for decorator in node.decorator_list]
    lines.append(f"{pad}class {node.name}{bases}:")
    if ast.get_docstring(node) is not None and len(node.body) > 1:
        return [*lines, *statements(node.body[:1], indent + 4), "", *statements(node.body[1:], indent + 4)]
    return lines + statements(node.body, indent + 4)


def _function(node: ast.FunctionDef, indent: int) -> list[str]:
    pad = " " * indent
    lines = [f"{pad}@{text(decorator)}" for decorator in node.decorator_list]
    head, returns = f"{pad}def {node.name}(", f" -> {text(node.returns)}" if node.returns else ""
    given = _parameters(node.args)
    flat = f"{head}{', '.join(given)}){returns}:"
    if len(flat) <= WIDTH:
        lines.append(flat)
    elif indent + 4 + len(", ".join(given)) <= WIDTH:
        lines += [head, f"{pad}    {', '.join(given)}", f"{pad}){returns}:"]
    else:
        lines += [head, *(f"{pad}    {one}," for one in given), f"{pad}){returns}:"]
    return lines + statements(node.body, indent + 4)


def _parameters(args: ast.arguments) -> list[str]:
    plain = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    given = [_parameter(arg, default) for arg, default in zip(plain, defaults, strict=True)]
    if args.vararg:
        given.append(f"*{_parameter(args.vararg, None)}")
    elif args.kwonlyargs:
        given.append("*")
    given += [_parameter(arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return [*given, f"**{_parameter(args.kwarg, None)}"] if args.kwarg else given


def _parameter(arg: ast.arg, default: ast.expr | None) -> str:
    hint = f": {text(arg.annotation)}" if arg.annotation else ""
    if default is None:
        return arg.arg + hint
    return f"{arg.arg}{hint} = {text(default)}" if hint else f"{arg.arg}={text(default)}"


def _docstring(doc: str, indent: int) -> list[str]:
    pad = " " * indent
    raw = "r" if "\\" in doc else ""
    first, *rest = doc.splitlines()
    lines = [f'{pad}{raw}"""{first}', *(pad + line if line else "" for line in rest)]
    if rest:
        return [*lines, f'{pad}"""']
    return [f'{lines[0]}"""']


def _laid(head: str, node: ast.expr, tail: str, indent: int) -> list[str]:
    """An expression between two texts: on one line where it fits, else its last bracket opened."""
    pad, flat = " " * indent, text(node)
    if indent + len(head) + len(flat) + len(tail) <= WIDTH:
        return [f"{pad}{head}{flat}{tail}"]
    match node:
        case ast.Call():
            return _opened(f"{head}{text(node.func)}(", _arguments(node), f"){tail}", indent)
        case ast.List():
            return _opened(f"{head}[", [("", item) for item in node.elts], f"]{tail}", indent)
        case ast.Dict():
            pairs = [
                ("**" if key is None else f"{text(key)}: ", value)
                for key, value in zip(node.keys, node.values, strict=True)
            ]
            return _opened(f"{head}{{", pairs, f"}}{tail}", indent)
        case ast.DictComp():
            loops = [f"{pad}    for {text(g.target)} in {text(g.iter)}" for g in node.generators]
            lines = _laid(f"{text(node.key)}: ", node.value, "", indent + 4)
            return [f"{pad}{head}{{", *lines, *loops, f"{pad}}}{tail}"]
        case ast.ListComp() | ast.GeneratorExp():
            left, right = "[]" if isinstance(node, ast.ListComp) else "()"
            lines = _laid("", node.elt, "", indent + 4)
            loops = [f"{pad}    for {text(g.target)} in {text(g.iter)}" for g in node.generators]
            return [f"{pad}{head}{left}", *lines, *loops, f"{pad}{right}{tail}"]
        case ast.Starred():
            return _laid(f"{head}*", node.value, tail, indent)
    if head.endswith(("= ", "return ", "raise ")):
        return [f"{pad}{head}(", *_operands(node, indent + 4), f"{pad}){tail}"]
    return [f"{pad}{head}{flat}{tail}"]


def _operands(node: ast.expr, indent: int) -> list[str]:
    """An expression without brackets of its own, one operand a line where it is too long."""
    pad, flat = " " * indent, text(node)
    if indent + len(flat) <= WIDTH:
        return [pad + flat]
    match node:
        case ast.BinOp():
            operator = text(ast.BinOp(ast.Name("a"), node.op, ast.Name("b"))).split()[1]
            return [*_operands(node.left, indent), f"{pad}{operator} {text(node.right)}"]
        case ast.IfExp():
            return [*_operands(node.body, indent), f"{pad}if {text(node.test)}", f"{pad}else {text(node.orelse)}"]
    return [pad + flat]


def _arguments(node: ast.Call) -> list[tuple[str, ast.expr]]:
    named = [("**" if keyword.arg is None else f"{keyword.arg}=", keyword.value) for keyword in node.keywords]
    return [*(("", arg) for arg in node.args), *named]


def _opened(head: str, items: list[tuple[str, ast.expr]], tail: str, indent: int) -> list[str]:
    pad = " " * indent
    match items:
        case [("", ast.GeneratorExp() as only)]:
            loops = [f"{pad}    for {text(g.target)} in {text(g.iter)}" for g in only.generators]
            return [f"{pad}{head}", *_laid("", only.elt, "", indent + 4), *loops, f"{pad}{tail}"]
    flat = ", ".join(f"{name}{text(value)}" for name, value in items)
    if indent + 4 + len(flat) <= WIDTH:
        return [f"{pad}{head}", f"{pad}    {flat}", f"{pad}{tail}"]
    body = [line for name, value in items for line in _laid(name, value, ",", indent + 4)]
    return [f"{pad}{head}", *body, f"{pad}{tail}"]
