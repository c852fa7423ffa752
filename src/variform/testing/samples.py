"""Small instances of parts for the checks: which arguments, and inside which model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from variform.core.part import Part
from variform.core.registry import parts
from variform.core.spec import Spec
from variform.testing.filling import minimal
from variform.testing.hosts import Host


@dataclass(frozen=True)
class Sample:
    """One small instance of a part.

    Args:
        spec: the instance; sizes come from the surroundings where it leaves them open.
        variant: tells several instances of one part apart.
        host: the model around it, where the usual one for its kind does not do.
        random: whether its results are drawn anew in every call, in evaluation too, so that no two are compared.
    """

    spec: Spec
    variant: str = ""
    host: Host | None = None
    random: bool = False

    @property
    def label(self) -> str:
        """`kind/name`, with the variant in brackets."""
        return f"{self.spec.kind}/{self.spec.name}" + (f"[{self.variant}]" if self.variant else "")


_samples: dict[type[Part], Callable[[], list[Sample]]] = {}


def samples_for(part: type[Part]) -> Callable[[Callable[[], list[Sample]]], Callable[[], list[Sample]]]:
    """Register the instances of a part that the suite runs over, in place of the automatic one."""

    def decorate(function: Callable[[], list[Sample]]) -> Callable[[], list[Sample]]:
        _samples[part] = function
        return function

    return decorate


def samples_of(part: type[Part]) -> list[Sample]:
    """The instances registered for a part, or the one with its required fields filled in."""
    if part in _samples:
        return _samples[part]()
    return [Sample(minimal(part))]


def all_samples() -> Iterator[Sample]:
    """The instances of every registered part."""
    for part in parts().values():
        yield from samples_of(part)
