"""The inputs of an op by name: `forward(self, *inputs)` as a reader would write it."""

from __future__ import annotations

import ast
import copy

from variform.export.shake import LAYERS, at


def name_inputs(forward: ast.FunctionDef, count: int | None = None) -> None:
    """`forward(self, *inputs)` with the names that its first line gives the inputs.

    Args:
        forward: changed in place.
        count: how many inputs there are; as many as the code names by default.
    """
    if forward.args.vararg is None or forward.args.vararg.arg != "inputs":
        return
    forward.body = [item for item in forward.body if not (isinstance(item, ast.AnnAssign) and item.value is None)]
    match forward.body[0]:
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Name(id="inputs")):
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            body = forward.body[1:]
        case _:
            names = ["x", "y", "z"][: max(count or 1, _most_inputs(forward))]
            body = [_Inputs(names).visit(copy.deepcopy(node)) for node in forward.body]
    if any(isinstance(node, ast.Name) and node.id == "inputs" for item in body for node in ast.walk(item)):
        return  # they are used as a whole
    forward.body = body
    forward.args.vararg = None
    hint = at(LAYERS, "Tensor").id
    forward.args.args += [ast.arg(name, ast.Name(hint, ast.Load())) for name in names]


def _most_inputs(forward: ast.FunctionDef) -> int:
    places = [0]
    for node in ast.walk(forward):
        match node:
            case ast.Subscript(value=ast.Name(id="inputs"), slice=ast.Constant(value=int(place))):
                places.append(place)
    return max(places) + 1


class _Inputs(ast.NodeTransformer):
    def __init__(self, names: list[str]) -> None:
        self.names = names

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        match node:
            case ast.Subscript(value=ast.Name(id="inputs"), slice=ast.Constant(value=int(place))):
                return ast.Name(self.names[place], ast.Load())
        return self.generic_visit(node)
