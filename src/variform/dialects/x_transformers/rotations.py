"""Angles that a call gives: `rotary_pos_emb` and `polar_pos_emb`, in the place of those by positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.dialects.x_transformers.errors import InputError
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.mixer.projected import ProjectedAttention
from variform.parts.position.polar import PolarRotation
from variform.parts.position.rotary import RotaryRotation
from variform.stack.tapped import changed, replaced

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention_layers import AttentionLayers

Angles = tuple[Tensor, Any]
"""Upstream's pair: angles [B or 1, N, features], and the factors of xPos or the phases of heads."""


class GivenRotary(nn.Module):
    """Turns pairs of features by given angles; queries are multiplied by given factors, and keys divided by them.

    Shapes:
        angles, factors: [B or 1, N, d], each pair twice; the last Lq are the queries', the last Lk the keys'
    """

    def __init__(self, angles: Tensor, factors: Tensor | float) -> None:
        super().__init__()
        self.angles = angles
        self.factors = factors

    def forward(
        self, q: Tensor, k: Tensor, q_positions: Tensor | None, k_positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Turn both sides."""
        return self._turned(q, False), self._turned(k, True)

    def _turned(self, x: Tensor, inverse: bool) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        angles = _last(self.angles, x).to(wide)
        size = angles.shape[-1]
        own, rest = x[..., :size].to(wide), x[..., size:]
        first, second = own[..., ::2], own[..., 1::2]
        turned = own * angles.cos() + torch.stack((-second, first), -1).flatten(-2) * angles.sin()
        if isinstance(self.factors, Tensor):
            factors = _last(self.factors, x).to(wide)
            turned = turned / factors if inverse else turned * factors
        return torch.cat((turned.to(x.dtype), rest), -1)


class GivenPolar(nn.Module):
    """Polar coordinates at given angles, with given phases [1, 1, D], or of the heads that have some [H, 1, D]."""

    def __init__(self, angles: Tensor, phase: Tensor, like: PolarRotation) -> None:
        super().__init__()
        self.angles = angles
        self.phase = phase
        self.scale = like.scale
        self.gain = like.gain
        self.of_queries = like.of_queries

    def forward(
        self, q: Tensor, k: Tensor, q_positions: Tensor | None, k_positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Turn both sides."""
        of_q, of_k = (-self.phase, None) if self.of_queries else (None, self.phase)
        return self._turned(q, of_q, 1.0), self._turned(k, of_k, self.gain)

    def _turned(self, x: Tensor, phase: Tensor | None, gain: float) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        turn = _last(self.angles, x).to(wide)
        if phase is not None:
            turn = turn + phase.to(wide)
        length = F.softplus(x.to(wide) * self.scale) * gain
        return torch.cat((length * turn.cos(), length * turn.sin()), -1).to(x.dtype)


def _last(given: Tensor, x: Tensor) -> Tensor:
    """The rows of the last tokens, for all heads: [B, N, d] -> [B, 1, L, d]."""
    length = x.shape[2]
    if given.shape[1] < length or given.shape[0] not in (1, x.shape[0]):
        held = list(given.shape[:2])
        raise InputError(f"angles are given for {held} tokens, and [{x.shape[0]}, {length}] are to be turned")
    return given[:, given.shape[1] - length :].unsqueeze(1)


def layers_turned(layers: AttentionLayers, rotary: Angles | None, polar: Angles | None) -> AttentionLayers:
    """A view of a stack of this dialect, of the same modules, in which self-attention goes by given angles.

    Raises:
        InputError: both, or such that do not fit.
    """
    if rotary is not None and polar is not None:
        raise InputError("rotary_pos_emb and polar_pos_emb exclude one another")
    given: Any = rotary if polar is None else polar
    name = "rotary_pos_emb" if polar is None else "polar_pos_emb"
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[0], Tensor) or given[0].dim() != 3:
        raise InputError(f"{name} is a pair, angles [1 or batch, length, features] and factors or phases")
    view = _seen(layers.native, *given, polar is not None, {})
    if view is layers.native:
        raise InputError(f"{name} was passed, and no self-attention of these layers can be turned by it")
    return changed(layers, native=view)


def _seen(module: Any, angles: Tensor, second: Any, polar: bool, done: dict[int, nn.Module]) -> Any:
    if id(module) in done:
        return done[id(module)]
    view: Any = module
    if isinstance(module, (MultiHead, ProjectedAttention)):
        view = _turned(module, angles, second, polar)
    else:
        children = {
            name: _seen(child, angles, second, polar, done)
            for name, child in module._modules.items()
            if child is not None
        }
        other = {name: child for name, child in children.items() if child is not module._modules[name]}
        view = changed(module, **other) if other else module
    done[id(module)] = view
    return view


def _turned(mixer: Any, angles: Tensor, second: Any, polar: bool) -> Any:
    own = mixer.rotation
    parts = [] if own is None else list(own.modules())
    kind = PolarRotation if polar else RotaryRotation
    held: Any = next((part for part in parts if isinstance(part, kind)), None)
    if polar:
        if held is None:
            raise InputError("polar_pos_emb of a call needs layers that were built with polar_pos_emb=True")
        if not isinstance(second, Tensor) or second.shape[0] not in (1, held.phase.shape[0]):
            side = "query" if held.of_queries else "key"
            raise InputError(f"the phases are [{held.phase.shape[0]}, 1, features], one for each {side} head")
        phase = second.clamp(-2 * math.pi, 0.0)
        return changed(mixer, rotation=replaced(own, held, GivenPolar(angles, phase, held)))
    size, most = angles.shape[-1], mixer.dim_head
    if size > most or size % 2:
        raise InputError(f"rotary_pos_emb turns an even number of features, at most a head's {most}, not {size}")
    if own is not None and held is None:
        raise InputError("rotary_pos_emb of a call: these layers have another rotation")
    turn = GivenRotary(angles, second)
    return changed(mixer, rotation=turn if held is None else replaced(own, held, turn))
