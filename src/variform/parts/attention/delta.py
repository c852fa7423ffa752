"""Changes of attention that its caller gives: of the weights, and of what the heads give."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from variform.core.part import Can, Facts, use
from variform.core.registry import register
from variform.errors import ShapeError
from variform.parts.attention.around import AroundAttention
from variform.parts.attention.gated import to_heads
from variform.parts.beside import Deltas
from variform.parts.kinds import Attention, Sides, State


@register("delta")
class DeltaAttention(AroundAttention):
    """Adds what the caller gives in the stream `deltas`: o <- o + W v for weights W, or o <- o + d.

    Modulation of a model's attention from outside of it (arXiv:2605.12357); without the stream it is the inner
    attention. Weights are added to those after the softmax, as they are: no mask hides a pair, and none is dropped.

    Shapes:
        q, k, v: as the inner attention's; weights [B, H, Lq, Lk], or [B, Lq, H * Dv]

    Args:
        attention: the attention that is changed.
        of: "weights", or "output".
    """

    def __init__(self, attention: Attention = use("softmax"), of: Literal["weights", "output"] = "output") -> None:
        super().__init__()
        self.attention = attention
        self.of_weights = of == "weights"

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """Of outputs, what the inner attention can; weights of tokens that are no longer there cannot be told."""
        can = super().abilities(args)
        return replace(can, decode=can.decode and args.get("of") != "weights")

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend and add."""
        out = self.attention(q, k, v, sides)
        deltas = (sides.streams or {}).get("deltas")
        if not isinstance(deltas, Deltas):
            return out
        if self.of_weights:
            return out if deltas.weights is None else self._with_weights(out, v, deltas.weights)
        if deltas.out is None:
            return out
        if isinstance(out, tuple):
            return out[0] + to_heads(deltas.out, out[0].shape[1]), out[1]
        return out + to_heads(deltas.out, out.shape[1])

    def _with_weights(self, out: Tensor | tuple[Tensor, State], v: Tensor, weights: Tensor) -> Tensor:
        if isinstance(out, tuple):
            raise ShapeError("weights cannot be added while decoding: those of cached tokens are not told")
        wanted = (*out.shape[:3], v.shape[2])
        if tuple(weights.shape) != wanted:
            raise ShapeError(f"added weights have shape {list(wanted)}, not {list(weights.shape)}")
        group = out.shape[1] // v.shape[1]
        return out + weights.to(v.dtype) @ (v if group == 1 else v.repeat_interleave(group, 1))
