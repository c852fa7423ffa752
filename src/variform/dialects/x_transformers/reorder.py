"""Orders of execution that a call asks for: a view of a stack, of the same modules, in which they run otherwise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from variform.dialects.x_transformers.errors import InputError
from variform.parts.entry.layers import LayerMixture
from variform.parts.stream_ops.history import BeginHistory, JoinSkip
from variform.parts.stream_ops.inject import InjectInput
from variform.stack.execute import ModuleList
from variform.stack.stack import LayerStack
from variform.stack.tapped import changed, replaced
from variform.weights.x_transformers.stack import steps_of

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention_layers import AttentionLayers
    from variform.dialects.x_transformers.changes import Changes

Repeats = Sequence[Any]
"""((block or (first, last)), times), or several such pairs; blocks count from 0."""

F = TypeVar("F", bound=Callable[..., Any])


def takes_orders(forward: F) -> F:
    """A forward that takes `layers_execute_order`, `repeat_blocks`, `causal` and changes of features: for this call.

    `layers_execute_order` are indices of sublayers as they run; `repeat_blocks` says of blocks how often they run;
    `causal` whether self-attention looks back alone; for `transform_block_inputs` see `changes`, for `rotary_pos_emb`
    and `polar_pos_emb` see `rotations`, for `pos` of floats see `placed`.
    """

    @functools.wraps(forward)
    def ordered(
        self: Any,
        *args: Any,
        layers_execute_order: Sequence[int] | None = None,
        repeat_blocks: Repeats | None = None,
        causal: bool | None = None,
        transform_block_inputs: Changes | None = None,
        **keywords: Any,
    ) -> Any:
        if causal is not None:
            if keywords.get("cache") is not None:
                raise InputError("causal=... of a call is for whole sequences: leave the cache out")
            self = self.with_causality(causal)
        if layers_execute_order is not None or repeat_blocks is not None:
            self = self.reordered(layers_execute_order, repeat_blocks)
        if isinstance(pos := keywords.get("pos"), Tensor) and pos.is_floating_point() and hasattr(self, "embeds"):
            if keywords.get("cache") is not None:
                raise InputError("pos of floats is for whole sequences: leave the cache out")
            ids: Tensor = args[0] if args else keywords["x"]
            self, added = self.with_positions(pos, keywords.get("sum_embeds"), len(ids))
            keywords |= {"pos": None, **({} if added is None else {"sum_embeds": added})}
        tokens = keywords.pop("transform_token_embeds", None)
        if transform_block_inputs is not None or tokens is not None:
            if keywords.get("cache") is not None:
                raise InputError("features are changed in whole sequences: leave the cache out")
            self = self.with_changes(transform_block_inputs, tokens)
        rotary, polar = keywords.pop("rotary_pos_emb", None), keywords.pop("polar_pos_emb", None)
        if rotary is not None or polar is not None:
            for name in ("cache", "context_pos"):
                if keywords.get(name) is not None:
                    raise InputError(f"rotary_pos_emb and polar_pos_emb of a call go without {name}")
            self = self.with_angles(rotary, polar)
        return forward(self, *args, **keywords)

    return ordered  # type: ignore[return-value]


def layers_in_order(
    layers: AttentionLayers, order: Sequence[int] | None, repeat_blocks: Repeats | None
) -> AttentionLayers:
    """A view of a stack of this dialect, whose sublayers run in another order.

    Raises:
        InputError: an order that cannot be, or layers that are made for one order.
    """
    stack = next(module for module in layers.native.modules() if isinstance(module, LayerStack))
    steps = list(dict.fromkeys(steps_of(stack)))
    if order is not None and repeat_blocks is not None:
        raise InputError("layers_execute_order and repeat_blocks exclude one another: both say what runs when")
    if repeat_blocks is not None:
        order = _repeated(repeat_blocks, layers.block_size, len(steps))
    assert order is not None
    if not order or not all(0 <= index < len(steps) for index in order):
        raise InputError(f"layers_execute_order holds indices 0..{len(steps) - 1}, not {tuple(order)}")
    fixed = {"integrate_layers": LayerMixture, "unet_skips": JoinSkip}
    for keyword, part in fixed.items():
        if any(isinstance(module, part) for module in stack.modules()):
            raise InputError(f"layers built with {keyword} are made for one order, and cannot run in another")
    begin = [module for module in stack.modules() if isinstance(module, (BeginHistory, InjectInput))]
    other = changed(stack, layers=ModuleList([*begin, *(steps[index] for index in order)]))
    view: AttentionLayers = changed(layers, native=replaced(layers.native, stack, other))
    view.__dict__["order"] = tuple(order)
    return view


def _repeated(repeats: Repeats, size: int, steps: int) -> tuple[int, ...]:
    """The order of sublayers when some blocks run several times."""
    if size == 0:
        raise InputError("repeat_blocks counts blocks of one make, and these layers have an order of their own")
    pairs = [repeats] if len(repeats) == 2 and isinstance(repeats[1], int) else list(repeats)
    count, often = steps // size, {}
    for span, times in pairs:
        first, last = span if isinstance(span, (tuple, list)) else (span, span)
        if not 0 <= first <= last < count or times < 1:
            raise InputError(f"repeat_blocks: blocks are 0..{count - 1} and run at least once, not {(span, times)}")
        often[first] = (last, times)
    order: list[int] = []
    block = 0
    while block < count:
        last, times = often.get(block, (block, 1))
        order += [*range(block * size, (last + 1) * size)] * times
        block = last + 1
    return tuple(order)


def block_size(draft: Any) -> int:
    """How many sublayers a block has; 0 where they have an order of their own."""
    if draft.ordered:
        return 0
    mixers = 1 if draft.only_cross or not draft.cross_attend else 2
    return mixers + (0 if draft.only_attn else 1) + (1 if draft.macaron and not draft.only_attn else 0)


__all__ = ["block_size", "layers_in_order", "takes_orders"]
