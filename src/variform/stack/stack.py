"""The stack: an ordered list of layers and a way to execute them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from variform.core.inherit import INHERIT, inherit
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.ops.reversible import prepare
from variform.parts.kinds import Layer, Norm, Output, Stack, State, Streams, call
from variform.stack.execute import ModuleList, given_by, list_state, run_in_order
from variform.stack.reversible import reversible_problems, run_reversible

Size = Annotated[int, Field(gt=0)]


@register("stack")
class LayerStack(Stack):
    """Layers in order, then a final norm.

    Names that its layers publish end here, losses apart. `dim`, `heads` and `causal`, when given, hold for its layers
    instead of the model's. The executor `checkpoint` recomputes each layer in the backward pass instead of keeping
    its activations (Chen et al. 2016, arXiv:1604.06174); values and gradients are the same.

    The executor `reversible` is another model with the same parameters (RevNet, Gomez et al. 2017, arXiv:1707.04585;
    Reformer, Kitaev et al. 2020, arXiv:2001.04451): two streams begin as x; each sublayer in turn adds its branch of
    the one to the other, and they change places, y1 = x1 + attention(x2), y2 = x2 + feedforward(y1); the result is
    their mean. Sublayers of a decoder layer, three as they may be, take turns likewise. The backward pass computes the
    streams of each layer from those after it, so that nothing is kept a layer. A layer that is not made of sublayers
    (merged patches, say) is given the mean, and two streams begin anew.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]

    Args:
        layers: what runs, in order; a `Shared` layer may stand several times.
        norm: after the last layer (pre-norm stacks want one); None for none.
        executor: "plain", "checkpoint" or "reversible".
        dim: features, for the layers.
        heads: number of heads, for the layers.
        causal: whether position i may depend on positions <= i only.
    """

    ends_streams: ClassVar[bool] = True

    def __init__(
        self,
        layers: Sequence[Layer],
        norm: Norm | None = None,
        executor: Literal["plain", "checkpoint", "reversible"] = "plain",
        dim: Size | None = INHERIT,
        heads: Size | None = INHERIT,
        causal: bool = inherit(False),
    ) -> None:
        super().__init__()
        self.layers = ModuleList(layers)
        self.norm = norm
        self.executor = executor
        if executor == "reversible":
            prepare()

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """Each layer knows its place and the depth."""
        return {"layer": index, "depth": count} if slot == "layers" else {}

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Reversible layers add branches, and hand on nothing else."""
        return reversible_problems(facts["layers"]) if facts["executor"] == "reversible" else []

    @classmethod
    def gives(cls, facts: Facts) -> Facts:
        """What the layers give."""
        return given_by(facts["layers"], facts)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Run the layers and the final norm."""
        watch = streams.get("watch")
        if watch is not None:
            watch.enters(self, x, streams)
        if self.executor == "reversible":
            x, published = run_reversible(self.layers, x, streams)
        elif self.executor == "checkpoint" and self.training:
            x, published = self._checkpointed(x, streams)
        else:
            x, published = _ending(run_in_order(self.layers, x, streams, "layers"))
        if self.norm is not None:
            if watch is not None:
                watch.enters(self.norm, x, streams)
            x = self.norm(x, streams.get("condition"))
        if watch is not None:
            watch.leaves(self, x)
        return (x, published) if published else x

    def _checkpointed(self, x: Tensor, streams: Streams) -> tuple[Tensor, dict[str, Any]]:
        state: State = {}
        kept: dict[str, Any] = {}
        streams = dict(streams)  # what is read again in the backward pass is what was read, not what came of it
        for place, layer in enumerate(self.layers.in_order()):
            slot = f"layers.{place}"

            def run(x: Tensor, streams: Streams, layer: Any = layer, slot: str = slot) -> tuple[Tensor, dict[str, Any]]:
                new: dict[str, Any] = {}
                return call(layer, x, streams, slot, new), new

            x, new = checkpoint(run, x, streams, use_reentrant=False)
            state.update(new.pop("state", {}))
            if new:
                streams = {**streams, **new}
                kept.update(new)
        return _ending((x, {**kept, "state": state} if state else kept))

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """One branch a layer, by place."""
        return list_state(self.layers, "layers", batch, max_len, streams)


def _ending(out: Output) -> tuple[Tensor, dict[str, Any]]:
    if isinstance(out, tuple):
        x, published = out
        return x, {name: published[name] for name in ("state", "losses", "memories") if name in published}
    return out, {}
