"""Running lists of layers: streams merged between them, decode state keyed by place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from variform.core.part import Facts
from variform.core.spec import described
from variform.parts.kinds import Output, State, StreamPart, Streams, call, holds_state


class ModuleList(nn.ModuleList):
    """A list of modules in execution order, in which one module may stand several times.

    A module that is used twice is registered once, so that wrappers that walk the tree (FSDP, `apply`) meet it
    once; `order` says which module runs at each place.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        unique: list[nn.Module] = []
        self_order: list[int] = []
        for module in modules:
            index = next((i for i, known in enumerate(unique) if known is module), None)
            if index is None:
                index = len(unique)
                unique.append(module)
            self_order.append(index)
        super().__init__(unique)
        self.order = tuple(self_order)

    def in_order(self) -> Iterator[nn.Module]:
        """The modules as they run."""
        modules = list(self._modules.values())
        return iter(modules if len(modules) == len(self.order) else [modules[index] for index in self.order])


def run_in_order(layers: ModuleList, x: Tensor, streams: Streams, slot: str, places: range | None = None) -> Output:
    """Call layers one after another, or those at some places; what one publishes, the later ones read."""
    published: dict[str, Any] = {}
    branches: State = {}
    for place, layer in enumerate(layers.in_order()):
        if places is not None and place not in places:
            continue
        new: dict[str, Any] = {"state": branches}
        x = call(layer, x, streams, f"{slot}.{place}", new)  # type: ignore[arg-type]
        if len(new) > 1:
            del new["state"]
            published.update(new)
            streams = {**streams, **new}
    if branches:
        published["state"] = branches
    return (x, published) if published else x


def given_by(children: Iterable[Any], facts: Facts) -> dict[str, Any]:
    """What the parts of a list, described, give to those after it."""
    given: dict[str, Any] = {}
    for child in map(described, children):
        given.update(child.part.gives({**facts, **given, **dict(child.args)}))
    return given


def list_state(layers: ModuleList, slot: str, batch: int, max_len: int, streams: Streams) -> State:
    """Decode state of a list of layers, one branch a place (a shared layer has one for each of its uses)."""
    state: State = {}
    for place, layer in enumerate(layers.in_order()):
        if holds_state(layer):
            assert isinstance(layer, StreamPart)
            state[f"{slot}.{place}"] = layer.init_state(batch, max_len, streams)
    return state
