"""What a call gives attentions beside their input: further keys and values, what is added to that of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.errors import InputError
from variform.parts.beside import Beside
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.mixer.projected import ProjectedAttention
from variform.parts.mixer.projected_cross import ProjectedCrossAttention
from variform.stack.pool import LayerPool
from variform.stack.stack import LayerStack
from variform.weights.x_transformers import tiled_heads
from variform.weights.x_transformers.stack import body_of, steps_of

OWN, CROSS = (MultiHead, ProjectedAttention), (CrossMultiHead, ProjectedCrossAttention)
GIVEN: dict[str, Any] = {
    "self_attn_additional_kv": None,
    "additional_kv_mask": None,
    "detach_additional_kv": False,
    "route_additional_kv_to_top": True,
    "self_attn_kv_residuals": None,
    "cross_attn_kv_residuals": None,
}
"""The arguments that are honoured here, with upstream's defaults."""


@dataclass(frozen=True)
class Lent:
    """What a call gives, by upstream's names.

    Args:
        self_attn_additional_kv: a list with keys and values [B, heads, M, dim_head] a self-attention, or None.
        additional_kv_mask: [B, M] bool, which of them there are.
        detach_additional_kv: take them as constants.
        route_additional_kv_to_top: the list is that of the last self-attentions, and not of the first.
        self_attn_kv_residuals: [n, B, L, dim], added to what the keys and values of the first n self-attentions are
            made of; [B, L, dim] for the first alone.
        cross_attn_kv_residuals: the same of the context, for cross attentions.
    """

    self_attn_additional_kv: Sequence[tuple[Tensor, Tensor] | None] | None = None
    additional_kv_mask: Tensor | None = None
    detach_additional_kv: bool = False
    route_additional_kv_to_top: bool = True
    self_attn_kv_residuals: Tensor | None = None
    cross_attn_kv_residuals: Tensor | None = None

    @classmethod
    def taken(cls, more: dict[str, Any]) -> Lent:
        """The arguments of a call that are meant here, which leave the others."""
        return cls(**{name: more.pop(name, default) for name, default in GIVEN.items()})

    def beside(self, layers: nn.Module) -> dict[nn.Module, Beside] | None:
        """By mixer of the layers, what each is given; None where nothing is.

        Raises:
            InputError: there are more of them than attentions, or an attention runs several times.
        """
        further, own, cross = self.self_attn_additional_kv, self.self_attn_kv_residuals, self.cross_attn_kv_residuals
        if further is None and own is None and cross is None:
            if self.additional_kv_mask is not None:
                raise InputError("additional_kv_mask is of self_attn_additional_kv, which was not passed")
            return None
        mixers = mixers_in_order(layers)
        if len(set(mixers)) < len(mixers):
            raise InputError(
                "an attention runs several times here: what it is given beside its input is not told apart"
            )
        found: dict[nn.Module, Beside] = {}
        for kinds, added, name in ((OWN, own, "self_attn_kv_residuals"), (CROSS, cross, "cross_attn_kv_residuals")):
            places = [mixer for mixer in mixers if isinstance(mixer, kinds)]
            rows = [] if added is None else list(added) if added.dim() == 4 else [added]
            if len(rows) > len(places):
                raise InputError(f"{name} are {len(rows)}, and there are {len(places)} such attentions")
            found |= {mixer: Beside(added=row) for mixer, row in zip(places, rows, strict=False)}
        for mixer, pair in self._pairs([mixer for mixer in mixers if isinstance(mixer, OWN)]):
            k, v = (x.detach() for x in pair) if self.detach_additional_kv else pair
            k = k * longer(mixer)
            found[mixer] = further_keys(mixer.heads, mixer.kv_heads, k, v, self.additional_kv_mask)._replace(
                added=found[mixer].added if mixer in found else None
            )
        return found

    def _pairs(self, mixers: list[Any]) -> Iterator[tuple[Any, tuple[Tensor, Tensor]]]:
        """Each self-attention with the keys and values that are for it."""
        given = self.self_attn_additional_kv
        if given is None:
            return
        if not isinstance(given, (list, tuple)):
            kind = type(given).__name__
            raise InputError(f"self_attn_additional_kv is a list of keys and values, one pair a layer, and no {kind}")
        pairs = list(given)
        if self.route_additional_kv_to_top:
            pairs = pairs[-len(mixers) :]
            pairs = [None] * (len(mixers) - len(pairs)) + pairs
        elif len(pairs) > len(mixers):
            raise InputError(
                f"self_attn_additional_kv has {len(pairs)} pairs, and there are {len(mixers)} such attentions"
            )
        yield from ((mixer, pair) for mixer, pair in zip(mixers, pairs, strict=False) if pair is not None)


def longer(mixer: Any) -> float:
    """How many times longer keys are here than upstream's, whose norms are not of the mean."""
    attention, norm = mixer.attention, mixer.k_norm
    while (inner := getattr(attention, "attention", None)) is not None:
        attention = inner
    if norm is None or getattr(attention, "scale", None) is None:  # qk_rmsnorm has the scale of any attention
        return 1.0
    size = mixer.dim_head
    longer = math.sqrt(size / getattr(norm, "groups", 1))
    return longer if next(norm.parameters(), None) is None else float(longer * size**-0.25)


def further_keys(heads: int, key_heads: int, k: Tensor, v: Tensor, valid: Tensor | None) -> Beside:
    """Further keys and values with heads as here: upstream's query head i reads head i mod their number.

    Raises:
        InputError: that number does not divide `heads`.
    """
    count = k.shape[1]
    if count == key_heads:
        return Beside(k, v, valid)
    if heads % count:
        raise InputError(f"further keys and values have {count} heads, which does not divide heads = {heads}")
    of = torch.tensor(tiled_heads(heads, key_heads), device=k.device) % count
    return Beside(k.index_select(1, of), v.index_select(1, of), valid)


def mixers_in_order(layers: nn.Module) -> list[Any]:
    """The attentions of a stack in the order in which they run, which is not always that of checkpoints."""
    stack = next(module for module in layers.modules() if isinstance(module, LayerStack))
    running = [layer for layer in stack.layers.in_order() if not isinstance(layer, LayerPool)]
    bodies = [body_of(step) for layer in running for step in steps_of(layer)]
    return [body for body in bodies if isinstance(body, (*OWN, *CROSS))]


def heads_in_order(layers: nn.Module, x: Tensor | None, name: str) -> Tensor | None:
    """A mask or bias with an axis of heads, in the order of heads that the self-attentions here have.

    Shapes:
        x: [H, Lq, Lk] or [B, H, Lq, Lk]; others, and those of one head, are left as they are

    Raises:
        InputError: layers of different key heads have different orders, or there are other heads.
    """
    if x is None or x.dim() < 3 or x.shape[-3] == 1:
        return x
    counts = {m.heads for m in layers.modules() if isinstance(m, OWN)}
    if counts and x.shape[-3] not in counts:
        raise InputError(
            f"{name} {list(x.shape)} is of {x.shape[-3]} heads, and there are {min(counts)}: of three axes the first "
            "counts heads; what differs from row to row is [batch, 1, L, L]"
        )
    groups = {(m.heads, m.kv_heads) for m in layers.modules() if isinstance(m, OWN)}
    orders = {tuple(tiled_heads(*sizes)) for sizes in groups}
    if len(orders) > 1:
        raise InputError(f"{name} of each head cannot serve layers whose key heads differ in number")
    order = torch.tensor(list(orders.pop()) if orders else list(range(x.shape[-3])), device=x.device)
    return x if len(order) != x.shape[-3] else x.index_select(-3, order)
