"""Which way of computing a masked attention on a CPU is expected to be fastest: a model of measured times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from variform.ops.attention.call import Call
from variform.ops.attention.pattern import TILES, Pattern, pattern_of, readable, split
from variform.ops.masks import Mask

__all__ = ["SHORTEST", "TILE_PRICE", "Choice", "blocks_text", "choose", "is_small", "tile_price"]

SHORTEST = 512
"""Below this many queries or keys, one fused call on all pairs is as fast as gathered tiles."""

TILE_PRICE = {16: 6.0, 32: 3.5, 64: 2.6, 128: 2.0}
"""What a pair in a gathered tile costs, by the tile's length, where a pair of the fused kernel with a mask costs 1."""
_HALF = 1.25
"""How much more of the fused kernel's time half precision saves than of the gathering's."""
_LEAST = 1 << 18
"""Pairs of all rows and heads below which nothing is weighed."""
_USES = 4
"""Calls that share one look at a mask: layers, steps, forward and backward passes."""
_CACHE = 1 << 22
"""Bytes of keys, or of values, of one sample at which reading single ones costs its full price."""


@dataclass(frozen=True)
class Choice:
    """How a call whose mask has readable tensors is expected to run best.

    Args:
        backend: None is the fused kernel on all pairs.
        tile: length of the best tiles.
        why: the figure that decides, in words.
        tiles, pairs: what would have to hold for either backend, in words.
    """

    backend: Literal["block_sparse", "sparse"] | None
    tile: int | None
    why: str
    tiles: str
    pairs: str


def choose(call: Call, training: bool) -> Choice | None:
    """The backend with the least expected time; None where no mask has tensors that can be read.

    Measured on one core of two Xeons (AVX-512, float32), between which the fused kernel with a mask differs: 0.016 to
    0.023 ns a pair and feature of keys and values forward, 0.055 to 0.08 with the backward pass; the lower figures
    count. A single pair takes 5 + 0.06 per feature forward and 6 + 0.2 with the backward pass, half as much again
    where keys leave the cache: so scattered masks pay below 15 to 20 % of the pairs at 64 features (half precision:
    about 10 %). A pair in a gathered tile takes 1.4 to 2.4 (128), 1.6 to 3.4 (64) and 2.4 (32 long) times as long as
    in the fused kernel: `TILE_PRICE`. A share of the first look at the mask is counted each time, the first or not, so
    that equal calls run the same way.
    """
    mask, _ = split(call)
    if mask is None or not readable(call, mask):
        return None
    if is_small(call):
        words = "so few pairs are computed sooner than their mask is looked at"
        return Choice(None, None, "", words, words)
    pattern = pattern_of(call, mask)
    if pattern is None:
        return None
    key = (call.q.shape, call.v.shape[-1], call.q.dtype, call.dropout > 0, training)
    if key not in pattern.choices:
        pattern.choices[key] = _weighed(call, mask, pattern, training)
    found: Choice = pattern.choices[key]
    return found


def is_small(call: Call) -> bool:
    """Whether the fused kernel takes less time than any decision."""
    batch, heads, q_len, _ = call.q.shape
    return batch * heads * q_len * call.k.shape[2] < _LEAST


def _weighed(call: Call, mask: Mask, pattern: Pattern, training: bool) -> Choice:
    single, even = _single_pairs(call, pattern, training)
    tile, tiled, words = _tiled(call, mask, pattern, training)
    pairs = f"{_percent(pattern.density)} of the pairs are attended, which pays below {_percent(even)}"
    if min(single, tiled) >= 1.0:
        return Choice(None, tile, "", words, pairs)
    if single < tiled:
        return Choice("sparse", tile, pairs, words, f"{pairs}; tiles are cheaper")
    return Choice("block_sparse", tile, words, words, f"{pairs}; tiles are cheaper")


def tile_price(call: Call, block: int) -> float:
    """What a pair in a gathered tile costs, where a pair of the fused kernel costs 1."""
    nearest = max((length for length in TILES if length <= block), default=TILES[0])
    if call.dropout:
        return TILE_PRICE[nearest] * 0.6  # neither is fused then
    return TILE_PRICE[nearest] * (_HALF if call.q.dtype.itemsize < 4 else 1.0)


def _single_pairs(call: Call, pattern: Pattern, training: bool) -> tuple[float, float]:
    """Time over single pairs as a share of the fused kernel's, and the density at which they are equal."""
    batch, heads, q_len, dim = call.q.shape
    features, samples = dim + call.v.shape[-1], batch * heads
    dense = (0.055 if training else 0.016) * features
    if call.q.dtype.itemsize < 4:
        dense /= 1.6 if training else 2.4
    if call.dropout:
        dense *= 2.0  # the fused kernel's stand-in writes all pairs out
    far = min(1.0, pattern.k_len * max(dim, call.v.shape[-1]) * 4 / _CACHE)
    pair = 6 + (0.2 + 0.09 * far) * features if training else 5 + (0.06 + 0.036 * far) * features
    inspected = pattern.batch * pattern.heads / samples / _USES
    fixed = (1.0 + 40.0 * pattern.density) * inspected  # a look at every pair, a sort of those that are left
    calls = 3e5 * max(1.0, samples * 0.1) / (samples * q_len * pattern.k_len)
    room = dense - inspected - calls
    even = max(0.0, room / (pair + 40.0 * inspected))
    return (pair * pattern.density + fixed + calls) / dense, even


def _tiled(call: Call, mask: Mask, pattern: Pattern, training: bool) -> tuple[int | None, float, str]:
    """The best tile length, its time as a share of the fused kernel's, and what was found in words."""
    if min(call.q.shape[2], call.k.shape[2]) < SHORTEST:
        return None, 2.0, f"below {SHORTEST} queries or keys the fused kernel on all pairs is as fast"
    best, share = TILES[-1], float("inf")
    for block in reversed(TILES):
        price = tile_price(call, block)
        if pattern.density * price >= min(1.0, share):
            break  # shorter tiles cost more, and hold no fewer pairs
        found = pattern.tile_density(mask, block) * price
        if found < share:
            best, share = block, found
    if share == float("inf"):
        return None, 2.0, f"{_percent(pattern.density)} of the pairs are attended: too many for tiles of any length"
    return best, share, blocks_text(pattern.tile_density(mask, best), best, 1 / tile_price(call, best))


def blocks_text(density: float, block: int, even: float) -> str:
    """How many blocks are visited, and from how few on it pays."""
    return f"{_percent(density)} of the blocks of {block} are visited, which pays below {_percent(even)}"


def _percent(share: float) -> str:
    return f"{share:.2%}" if share < 0.02 else f"{share:.0%}"
