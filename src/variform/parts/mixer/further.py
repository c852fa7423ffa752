"""What the stream `beside` has for a mixer, and what a mixer refuses beside its input."""

from __future__ import annotations

from torch import Tensor, nn

from variform.errors import ShapeError
from variform.parts.beside import Beside
from variform.parts.kinds import Attention, Mixer, Streams


def keys_beside(mixer: nn.Module, attention: Attention, streams: Streams) -> Beside | None:
    """The further keys and values that the stream `beside` has for a mixer.

    Raises:
        ShapeError: its attention takes none, or they are not whole.
    """
    given = streams.get("beside")
    found: Beside | None = None if given is None else given.get(mixer)
    if found is None:
        return None
    if (found.k is None) != (found.v is None) or (found.k is None and found.valid is not None):
        raise ShapeError("further keys and values are given together, and which of them there are with them")
    if found.k is not None and not attention.takes_beside:
        raise ShapeError(f"the attention {attention.name!r} takes no further keys and values: leave them out")
    return found


def with_added(mixer: nn.Module, x: Tensor, streams: Streams) -> Tensor:
    """What keys and values are made of, with what the stream `beside` adds to it for a mixer.

    Raises:
        ShapeError: it is of another shape.
    """
    given = streams.get("beside")
    found: Beside | None = None if given is None else given.get(mixer)
    if found is None or found.added is None:
        return x
    if found.added.shape != x.shape:
        raise ShapeError(f"what is added to keys and values has shape {list(x.shape)}, not {list(found.added.shape)}")
    return x + found.added


def refuse_deltas(mixer: Mixer) -> None:
    """Refuse the stream `deltas`, of a mixer that reads none of it.

    Raises:
        ShapeError: in any case.
    """
    raise ShapeError(f"{mixer.name!r} reads no deltas: take a projected attention, or leave them out")
