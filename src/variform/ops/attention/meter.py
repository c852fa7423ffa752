"""A hook on every attention call: the cost counter and `explain` see calls without the backends knowing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from variform.ops.attention.call import Call

__all__ = ["Sink", "inside_attention", "metering"]

Sink = Callable[[Call], None]

sinks: list[Sink] = []
_depth = 0


@contextmanager
def metering(sink: Sink) -> Iterator[None]:
    """Within the context `attention()` calls `sink(call)` once per attention, before it runs."""
    sinks.append(sink)
    try:
        yield
    finally:
        sinks.remove(sink)


def inside_attention() -> bool:
    """Whether a metered attention is running, whose operations `sink` has accounted for."""
    return _depth > 0


@contextmanager
def metered(call: Call) -> Iterator[None]:
    """Report `call` to the sinks and mark its run."""
    global _depth
    if not _depth:
        for sink in sinks:
            sink(call)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
