"""Features that a call changes on their way through the layers: `transform_block_inputs`, `transform_token_embeds`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from variform.dialects.x_transformers.errors import InputError
from variform.stack.sublayer import Sublayer
from variform.stack.tapped import Change, changed, layer_stack, tapped_stack

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention_layers import AttentionLayers

Changes = Mapping[int, Change] | Callable[[int, Tensor], Tensor]
"""What is done to the inputs of blocks, which count from 1: by their number, or one function of number and features.

Block 1 reads the tokens' vectors, before positions are added. Where a token has several residual streams, the features
of other blocks are [B, L, S, dim].
"""


def block_places(layers: AttentionLayers) -> list[int]:
    """The place of the first layer of each block in its stack, as blocks run; where sublayers have an order of their
    own, each is a block."""
    size = layers.block_size or 1
    places: list[int] = []
    count = 0
    for place, layer in enumerate(layer_stack(layers.native).layers.in_order()):
        if count == len(places) * size:
            places.append(place)
        count += _steps(layer)
    return places[: -(-count // size)]


def layers_changed(layers: AttentionLayers, blocks: Changes | None) -> AttentionLayers:
    """A view of a stack of this dialect in which the inputs of its blocks, but for the first, are changed.

    Raises:
        InputError: blocks that there are not.
    """
    if isinstance(blocks, Mapping) and 1 in blocks:
        raise InputError("transform_block_inputs: block 1 reads the input of these layers, which is the caller's")
    changes = _changes(layers, blocks)
    return changed(layers, native=tapped_stack(layers.native, changes)) if changes else layers


def _changes(layers: AttentionLayers, blocks: Changes | None) -> dict[int, Change]:
    if blocks is None:
        return {}
    places = block_places(layers)
    if not isinstance(blocks, Mapping):
        return {place: partial(blocks, number) for number, place in enumerate(places, 1) if number > 1}
    for number in blocks:
        if not 1 <= number <= len(places):
            raise InputError(f"transform_block_inputs: blocks are 1..{len(places)}, not {number}")
    return {places[number - 1]: change for number, change in blocks.items()}


def _steps(layer: Any) -> int:
    """How many sublayers a layer runs."""
    if isinstance(layer, Sublayer):
        return 1
    inner: list[nn.Module] = list(layer.sublayers.in_order()) if hasattr(layer, "sublayers") else []
    return sum(_steps(one) for one in inner)
