"""Definitions as a standalone file has them: hooks of the library dropped, fields of the model at hand folded in."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from variform.core.fields import fields_of
from variform.core.part import Part
from variform.core.spec import Shared, Spec
from variform.export.fold import fold
from variform.export.hints import hint_syntax, hinted
from variform.export.inputs import name_inputs
from variform.export.known import PRESENT, Known
from variform.export.shake import LAYERS, STANDINS, Place, Unsupported, at, module_tree
from variform.ops.scores import ScoreMod
from variform.parts.kinds import Norm, Op

_ROOTS = ("__init__", "forward", "reset_parameters", "_apply")


def _doc_behind(place: Place) -> str:
    """The text that stands behind a constant."""
    body = module_tree(place[0]).body
    for node, after in itertools.pairwise(body):
        match node, after:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                if name == place[1]:
                    return text
    return ""


def _is_standin(module: str) -> bool:
    return module.startswith(f"{STANDINS}.")


@dataclass
class Facts:
    """What is known of all modules of one class in a model.

    Args:
        own: attributes by name, as `Known.own`.
        fields: arguments of the constructor, likewise.
        held: attributes that are modules, parameters or buffers.
    """

    own: Mapping[str, Any]
    fields: Mapping[str, Any]
    held: frozenset[str]


def facts_of(instances: Iterable[nn.Module]) -> Facts:
    """What modules of one class have in common."""
    modules = list(instances)
    attributes = [_attributes(module) for module in modules]
    specs = [m.spec.args for m in modules if isinstance(m, Part) and "_spec" in m.__dict__]
    held = frozenset(name for m in modules for name in (*m._modules, *m._parameters, *m._buffers))
    return Facts(_common(attributes), _common([{k: _slot(v) for k, v in spec.items()} for spec in specs]), held)


def _attributes(module: nn.Module) -> dict[str, Any]:
    plain = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    held = {**module._modules, **module._parameters, **module._buffers}
    return {**plain, **{name: None if value is None else PRESENT for name, value in held.items()}}


def _slot(value: Any) -> Any:
    return PRESENT if isinstance(value, (Spec, Shared)) else value


def _common(several: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in several[0] if several else ():
        values = [one.get(name) for one in several]
        first = values[0]
        if all(type(value) is type(first) and value == first for value in values) and _is_switch(first):
            found[name] = first
        elif all(value is not None for value in values):
            found[name] = PRESENT
    return found


def _is_switch(value: Any) -> bool:
    """Whether a value is put into the code: what chooses a way, not what is a size."""
    if isinstance(value, tuple):
        return all(isinstance(item, str) for item in value)
    return value is None or isinstance(value, (bool, str)) or (isinstance(value, float) and value in (0.0, 1.0))


def prepare(node: ast.stmt, place: Place, facts: Mapping[Place, Facts], known: Known) -> ast.stmt:
    """A copy of a definition, made standalone.

    Raises:
        Unsupported: it has no standalone form.
    """
    match node:
        case ast.FunctionDef():
            _documented(node)
            hinted(node, getattr(importlib.import_module(place[0]), place[1], None))
            fold(node, _without_absent(node, known) if _is_standin(place[0]) else known)
        case ast.ClassDef():
            actual = getattr(importlib.import_module(place[0]), place[1])
            if isinstance(actual, type) and issubclass(actual, nn.Module):
                module_class(node, actual, facts.get(place), known)
            else:
                _plain_class(node, actual, place, known)
        case ast.Assign() | ast.AnnAssign():
            if node.value is not None:
                node = ast.Assign([ast.Name(place[1], ast.Store())], node.value)
            node.lead = _doc_behind(place) if _is_standin(place[0]) else ""  # type: ignore[union-attr]
    return node


def module_class(node: ast.ClassDef, actual: type, facts: Facts | None, known: Known) -> None:
    """A module's class: what `forward` and the constructor need, with this model's fields folded in."""
    _documented(node)
    parents = [base for base in actual.__mro__[1:] if base.__module__.startswith("torch.")]
    standard = parents[0] is nn.Module
    node.bases = [ast.Attribute(at(LAYERS, "nn"), "Module" if standard else parents[0].__name__, ast.Load())]
    node.decorator_list, node.keywords = [], []
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    _bar_inherited(actual, methods)
    here = replace(known, own={} if facts is None else facts.own)
    kept: dict[str, ast.FunctionDef] = {}
    is_whole = not issubclass(actual, Part) and not _is_standin(actual.__module__)  # others may call any of its methods
    waiting = [name for name in methods if is_whole or name in _ROOTS]
    while waiting:
        method = methods[waiting.pop(0)]
        if method.name in kept:
            continue
        kept[method.name] = method
        _method(method, actual, facts, here)
        waiting += [n.attr for n in ast.walk(method) if isinstance(n, ast.Attribute) and n.attr in methods]
    doc = [item for item in node.body[:1] if isinstance(item, ast.Expr)]
    node.body = [*doc, *(item for item in node.body if isinstance(item, ast.FunctionDef) and item.name in kept)]


def _bar_inherited(actual: type, methods: Mapping[str, Any]) -> None:
    """Code that a part inherits from another part is not looked for: parts are final."""
    for name in ("__init__", "forward"):
        owner = next(base for base in actual.__mro__ if name in vars(base))
        if name not in methods and not owner.__module__.startswith("torch."):
            if owner is Part or (name == "__init__" and owner is nn.Module):
                continue
            raise Unsupported(f"it inherits {name} from {owner.__name__}")


def _method(method: ast.FunctionDef, actual: type, facts: Facts | None, known: Known) -> None:
    if method.body and isinstance(method.body[0], ast.Expr) and isinstance(method.body[0].value, ast.Constant):
        method.body = method.body[1:] or [ast.Pass()]
    raw = inspect.getattr_static(actual, method.name)
    hinted(method, getattr(raw, "__func__", getattr(raw, "fget", raw)))
    if method.name == "__init__":
        _constructor(method, actual)
        known = replace(known, names={**known.names, **({} if facts is None else facts.fields)})
    if method.name == "forward":
        if issubclass(actual, Op):
            name_inputs(method, actual.arity)
        if _is_standin(actual.__module__) or issubclass(actual, Norm):
            known = _without_absent(method, known)
    fold(method, known)


def _without_absent(function: ast.FunctionDef, known: Known) -> Known:
    """Drop the parameters for what the model does not take; inside they are what they are by default."""
    args, values = function.args, dict[str, Any]()
    first = len(args.args) - len(args.defaults)
    kept = []
    for arg, default in zip(args.args[first:], args.defaults, strict=True):
        if arg.arg in known.absent and isinstance(default, ast.Constant):
            values[arg.arg] = default.value
        else:
            kept.append((arg, default))
    args.args, args.defaults = args.args[:first] + [arg for arg, _ in kept], [default for _, default in kept]
    return replace(known, names={**known.names, **values})


def _constructor(method: ast.FunctionDef, actual: type) -> None:
    """Fields as a reader would write them: what is required first, defaults only where they are plain values."""
    args = method.args
    if issubclass(actual, Part):
        known = {field.name: field for field in fields_of(actual)}
        for arg in args.args:
            if arg.arg in known and known[arg.arg].is_slot:
                kind = "list[nn.Module]" if known[arg.arg].many else "nn.Module"
                text = f"{kind} | None" if known[arg.arg].optional else kind
                arg.annotation = _module_hint(text)
            elif arg.arg in known:
                arg.annotation = hint_syntax(known[arg.arg].annotation)
    defaults: list[ast.expr | None] = [None] * (len(args.args) - len(args.defaults)) + list(args.defaults)
    pairs = [(arg, value if _is_plain(value) else None) for arg, value in zip(args.args, defaults, strict=True)]
    pairs = [pair for pair in pairs if pair[1] is None] + [pair for pair in pairs if pair[1] is not None]
    args.args = [arg for arg, _ in pairs]
    args.defaults = [value for _, value in pairs if value is not None]


def _module_hint(text: str) -> ast.expr:
    tree = ast.parse(text, mode="eval").body
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "nn":
            node.id = at(LAYERS, "nn").id
    return tree


def _is_plain(value: ast.expr | None) -> bool:
    """Whether a default is a number, a string, None, or made of them."""
    return value is not None and not any(isinstance(n, (ast.Name, ast.Call)) for n in ast.walk(value))


def _plain_class(node: ast.ClassDef, actual: Any, place: Place, known: Known) -> None:
    if isinstance(actual, type) and issubclass(actual, ScoreMod):
        raise Unsupported(f"its change of attention scores, {place[1]}, is no added bias that is known")
    _documented(node)
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            raw = inspect.getattr_static(actual, item.name)
            _documented(item)
            hinted(item, getattr(raw, "__func__", getattr(raw, "fget", raw)))
            fold(item, known)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            item.annotation = hint_syntax(_hint(actual, item.target.id))


def _hint(actual: Any, name: str) -> Any:
    import typing

    try:
        return typing.get_type_hints(actual).get(name, Any)
    except (NameError, TypeError):
        return Any


def _documented(node: ast.FunctionDef | ast.ClassDef) -> None:
    """The docstring without its sections of arguments, which are no longer these."""
    doc = ast.get_docstring(node)
    if doc is None:
        return
    kept: list[str] = []
    for place, paragraph in enumerate(doc.split("\n\n")):
        if paragraph.startswith(("Args:", "Raises:", "Errors:", "Class attributes:", "Attributes:")):
            break
        is_formula = "= " in paragraph or "<- " in paragraph
        if place == 0 or (isinstance(node, ast.ClassDef) and (is_formula or paragraph.startswith("Shapes:"))):
            kept.append(paragraph)
    node.body[0] = ast.Expr(ast.Constant("\n\n".join(kept).strip()))
