"""How a part calls its children: what they publish and keep is merged in one place."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from variform.errors import ShapeError
from variform.parts.kinds.residual import Residual
from variform.parts.kinds.streams import Output, StreamPart, Streams
from variform.parts.memories import Recall


def call(part: StreamPart, x: Tensor, streams: Streams, slot: str, published: dict[str, Any]) -> Tensor:
    """Call a child and merge what it publishes into `published`; the one place where this is done.

    Decode state is keyed by call: the child sees its own branch of the tree under `slot`, and its new state is
    put there.

    Args:
        part: the child.
        x: its main input.
        streams: the streams it may read.
        slot: the name of this call within the caller (the field's name, or its place in a list).
        published: what the caller has published so far; changed in place.
    """
    state, recall = streams.get("state"), streams.get("memories")
    if state is not None:
        streams = {**streams, "state": state.get(slot)}
    out = part(x, streams) if recall is None or not part.remembers else _recalled(part, x, streams, recall)
    if not isinstance(out, tuple):
        return out
    x, new = out
    if "state" in new:
        branches = published.setdefault("state", {})
        branches[slot] = new["state"]
        if len(new) > 1:
            published.update(new)
            published["state"] = branches
    else:
        published.update(new)
    return x


def _recalled(part: StreamPart, x: Tensor, streams: Streams, recall: Recall) -> Output:
    """Run a step on the tokens remembered and those of this segment, and keep the latter."""
    if recall.length and getattr(part, "entry", None) is not None:
        raise ShapeError("a step that reads what earlier steps were given cannot have memories: they are of one step")
    out = part(*recall.opened(x, streams))
    y, new = out if isinstance(out, tuple) else (out, {})
    return y[:, recall.length :], {**new, "memories": recall.after(x, streams.get("valid"))}


def join(
    residual: Residual, x: Tensor, branch: Tensor, streams: Streams, slot: str, published: dict[str, Any]
) -> Tensor:
    """Call a residual with the streams it reads; its decode state is kept under `slot`, as `call` does.

    Args:
        residual: what joins.
        x: the stream.
        branch: what is joined to it.
        streams: the streams of the caller.
        slot: the name of this call within the caller.
        published: what the caller has published so far; changed in place.
    """
    if not residual.reads:
        out = residual(x, branch)
    else:
        state = streams.get("state")
        out = residual(x, branch, streams if state is None else {**streams, "state": state.get(slot)})
    if not isinstance(out, tuple):
        return out
    published.setdefault("state", {})[slot] = out[1]["state"]
    return out[0]
