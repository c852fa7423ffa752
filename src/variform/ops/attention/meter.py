"""A hook on every attention call: the cost counter and `explain` see calls without the backends knowing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from variform.ops.attention.call import Call

__all__ = ["Sink", "apart_from_attention", "inside_attention", "is_metered", "metering", "standing_in"]

Sink = Callable[[Call, str], None]
"""Told of each attention: the call, and the backend asked for."""

sinks: list[Sink] = []
target: str | None = None
_depth = 0


@contextmanager
def metering(sink: Sink) -> Iterator[None]:
    """Within the context `attention()` calls `sink(call, backend)` once per attention, before it runs."""
    sinks.append(sink)
    try:
        yield
    finally:
        sinks.remove(sink)


@contextmanager
def standing_in(device: str) -> Iterator[None]:
    """Within the context (and under `metering`) tensors are stand-ins for those of another device type.

    Calls carry `device` as their target, so that backends answer for it. What runs is a fused attention that keeps
    q, k, v and the result, or the plain one where no fused attention computes the call; whoever was asked for by
    name and refuses is reported, not raised.
    """
    global target
    before, target = target, device
    try:
        yield
    finally:
        target = before


def is_metered() -> bool:
    """Whether someone is told of attention calls: a cost is being measured, or weights collected."""
    return bool(sinks)


def inside_attention() -> bool:
    """Whether a metered attention is running, whose operations `sink` has accounted for."""
    return _depth > 0


@contextmanager
def apart_from_attention() -> Iterator[None]:
    """Within the context operations count for themselves, though a metered attention asks for them."""
    global _depth
    before, _depth = _depth, 0
    try:
        yield
    finally:
        _depth = before


@contextmanager
def metered(call: Call, backend: str) -> Iterator[None]:
    """Report a call to the sinks and mark its run."""
    global _depth
    if not _depth:
        for sink in sinks:
            sink(call, backend)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
