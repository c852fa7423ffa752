"""Where the parts of a built model stand: a tree of places, named by their paths in the spec."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from variform.core.part import Part
from variform.core.spec import Shared, Spec
from variform.errors import ConfigError
from variform.stack.execute import ModuleList

FOLDED = "="
"""First character of the name of a shared part that `fold` made; names of users' shared parts are their own."""


@dataclass(frozen=True)
class Place:
    """One place of a spec tree and the part that stands there.

    Args:
        path: dotted, as in the spec: `stacks.0.layers.3.sublayers.0.body`; empty for the root.
        spec: the resolved spec.
        part: the module; the same one at every place of a shared part.
        shared: the name under which it is shared, or None.
        children: the places below, in field order.
    """

    path: str
    spec: Spec
    part: Part
    shared: str | None
    children: tuple[Place, ...]

    def walk(self) -> Iterator[Place]:
        """This place and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


def place_tree(model: nn.Module) -> Place:
    """The places of a model that was built from a spec, or of the one that a wrapper with a `spec` holds.

    Raises:
        ConfigError: no part of the model carries its spec.
    """
    described = [part for part in model.modules() if isinstance(part, Part) and "_spec" in part.__dict__]
    spec = getattr(model, "spec", None)
    root = next((part for part in described if part is model or part.spec == spec), None)
    if root is None:
        raise ConfigError(f"this {type(model).__name__} carries no spec", hint="build it from a spec: vf.build(spec)")
    return _Finder(described).place("", root, None)


class _Finder:
    """Finds the module that was made from a spec: the spec is the module's own, or equal to it (a ready part)."""

    def __init__(self, described: list[Part]) -> None:
        self.built = {id(part.__dict__["_spec"]): part for part in described}
        self.named: dict[str, Part] = {}

    def place(self, path: str, part: Part, shared: str | None) -> Place:
        """The place of a part and all below it."""
        below = []
        for slot, index, child in part.spec.children():
            step = slot if index is None else f"{slot}.{index}"
            here = f"{path}.{step}" if path else step
            if isinstance(child, Shared):
                if child.name not in self.named:  # the module was made from the spec of the first place
                    assert child.spec is not None, "a resolved spec describes its shared parts at every place"
                    self.named[child.name] = self._part(child.spec, part, slot, index)
                below.append(self.place(here, self.named[child.name], child.name))
            else:
                below.append(self.place(here, self._part(child, part, slot, index), None))
        return Place(path, part.spec, part, shared, tuple(below))

    def _part(self, spec: Spec, parent: Part, slot: str, index: int | None) -> Part:
        """The part of a spec below another: where the slot is kept under its name, else by its very description.

        Equal items of a list may have one description, and are told apart by their place.
        """
        held = getattr(parent, slot, None)
        if index is not None and isinstance(held, ModuleList):
            held = list(held.in_order())[index]
        if isinstance(held, Part) and "_spec" in held.__dict__ and (held.spec is spec or held.spec == spec):
            return held
        if id(spec) in self.built:
            return self.built[id(spec)]
        raise ConfigError(f"cannot find the part at {slot!r} of {parent.kind} {parent.name!r} among its modules")


def fold(resolved: Spec) -> Spec:
    """The same model with equal items of a list made one shared part, so that a hundred equal layers are built once.

    Items that differ in the fact `layer` alone count as equal.

    Args:
        resolved: a resolved spec.
    """
    return _folded(resolved, "", {})


def _folded(spec: Spec, path: str, named: dict[str, Shared]) -> Spec:
    changed: dict[str, Spec | Shared | tuple[Spec | Shared, ...]] = {}
    for name, value in spec.args.items():
        here = f"{path}.{name}" if path else name
        if isinstance(value, (Spec, Shared)):
            changed[name] = _item(value, here, named)
        elif isinstance(value, tuple) and any(isinstance(item, (Spec, Shared)) for item in value):
            changed[name] = _items(value, here, named)
    return spec.replace(**changed) if changed else spec


def _items(values: tuple[Spec | Shared, ...], path: str, named: dict[str, Shared]) -> tuple[Spec | Shared, ...]:
    first: dict[Spec, int] = {}
    same = [first.setdefault(without_layer(v), i) if isinstance(v, Spec) else -1 for i, v in enumerate(values)]
    uses = Counter(same)
    items: list[Spec | Shared] = []
    for index, value in enumerate(values):
        here = f"{path}.{index}"
        if isinstance(value, Shared) or uses[same[index]] == 1:
            items.append(_item(value, here, named))
            continue
        name = f"{FOLDED}{path}.{same[index]}"
        if name not in named:
            named[name] = Shared(name, _folded(value, here, named))
        items.append(named[name])
    return tuple(items)


def _item(value: Spec | Shared, path: str, named: dict[str, Shared]) -> Spec | Shared:
    if isinstance(value, Spec):
        return _folded(value, path, named)
    if value.name not in named:
        assert value.spec is not None, "a resolved spec describes its shared parts at every place"
        named[value.name] = Shared(value.name, _folded(value.spec, path, named))
    return named[value.name]


def without_layer(spec: Spec) -> Spec:
    """The same description without the fact `layer`, in which equal layers differ."""

    def strip(value: object) -> object:
        if isinstance(value, Spec):
            return without_layer(value)
        return tuple(strip(item) for item in value) if isinstance(value, tuple) else value

    return Spec(spec.part, {name: strip(value) for name, value in spec.args.items() if name != "layer"})
