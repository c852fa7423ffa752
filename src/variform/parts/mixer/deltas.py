"""What the stream `deltas` adds on the way of a mixer, and whether all of it is read there."""

from __future__ import annotations

from torch import Tensor

from variform.errors import ShapeError
from variform.parts.attention.delta import DeltaAttention
from variform.parts.beside import Deltas
from variform.parts.kinds import Attention, KeyValues, Streams
from variform.parts.mixer.multi_head import split_heads


def changed_query(q: Tensor, attention: Attention, streams: Streams) -> Tensor:
    """Queries with what the stream `deltas` adds to them.

    Shapes:
        q: [B, L, heads * dim_head]

    Raises:
        ShapeError: something is to be added to results or weights, and the attention adds nothing there.
    """
    deltas: Deltas | None = streams.get("deltas")
    if deltas is None:
        return q
    adds = {part.of_weights for part in attention.modules() if isinstance(part, DeltaAttention)}
    for name, wanted in (("out", False), ("weights", True)):
        if getattr(deltas, name) is not None and wanted not in adds:
            of = "weights" if wanted else "output"
            message = f"deltas add to {name}, and the attention {attention.name!r} adds nothing there"
            raise ShapeError(f"{message}: take 'delta' with of={of!r} around it, or leave it out")
    return q if deltas.q is None else q + deltas.q


def changed_keys(keys: KeyValues, made: tuple[Tensor, Tensor], streams: Streams) -> tuple[Tensor, Tensor]:
    """Keys and values with what the stream `deltas` adds to them.

    Raises:
        ShapeError: latents stand in their place.
    """
    deltas: Deltas | None = streams.get("deltas")
    if deltas is None or (deltas.k is None and deltas.v is None):
        return made
    if keys.compressed:
        raise ShapeError("nothing can be added to keys and values that are kept as latents")
    added = zip(made, (deltas.k, deltas.v), strict=True)
    first, second = (x if delta is None else x + split_heads(delta, x.shape[1]) for x, delta in added)
    return first, second
