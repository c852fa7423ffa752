"""Maps from features to features, for slots that need one: gates, latent queries, the way out of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.parts.activation import ACTIVATIONS, Activation
from variform.parts.kinds import Projection
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("linear")
class LinearProjection(Projection):
    """A linear map: y = W x + b.

    Shapes:
        x: [..., inputs] -> [..., outputs]

    Args:
        inputs: features in.
        outputs: features out.
        bias: learn the offset b.
        zero: begin with W = 0, so that only the offset is seen at first.
        offset: what b begins as.
        init_std: standard deviation of the initial weights; torch's default when None.
        writes: residual writes of the model, for the initial scale of a map that writes to the residual stream.
    """

    def __init__(
        self,
        inputs: Size = INHERIT,
        outputs: Size = INHERIT,
        bias: bool = False,
        zero: bool = False,
        offset: float = 0.0,
        init_std: float | None = INHERIT,
        writes: int | None = INHERIT,
    ) -> None:
        super().__init__()
        self.out = Linear(inputs, outputs, False, std=0.0 if zero else init_std, writes=writes)
        self.initial = offset
        self.offset = nn.Parameter(torch.empty(outputs)) if bias else None
        self.reset_parameters()

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """An offset needs a parameter."""
        if facts["offset"] and not facts["bias"]:
            return [Problem("offset", "there is no offset to begin so: bias is off", facts["offset"])]
        return []

    def reset_parameters(self) -> None:
        """The offset at its initial value; the map draws its own weights."""
        if self.offset is not None:
            nn.init.constant_(self.offset, self.initial)

    def forward(self, x: Tensor) -> Tensor:
        """Map."""
        y = self.out(x)
        return y if self.offset is None else y + self.offset


@register("low_rank")
class LowRankProjection(Projection):
    """A map through few features (LoRA's form, Hu et al. 2021, arXiv:2106.09685): y = W_up act(W_down x).

    Shapes:
        x: [..., inputs] -> [..., outputs]

    Args:
        rank: features in between; less than one of the two sides.
        inputs: features in.
        outputs: features out.
        activation: act, between the two maps.
        zero: begin with W_up = 0.
        init_std: standard deviation of the initial weights; torch's default when None.
        writes: residual writes of the model, for the initial scale of a map that writes to the residual stream.
    """

    def __init__(
        self,
        rank: Size,
        inputs: Size = INHERIT,
        outputs: Size = INHERIT,
        activation: Activation = "none",
        zero: bool = False,
        init_std: float | None = INHERIT,
        writes: int | None = INHERIT,
    ) -> None:
        super().__init__()
        self.down = Linear(inputs, rank, False, std=init_std)
        self.activation = activation
        self.act = ACTIVATIONS[activation]
        self.out = Linear(rank, outputs, False, std=0.0 if zero else init_std, writes=writes)

    def forward(self, x: Tensor) -> Tensor:
        """Map down and up."""
        return self.out(self.act(self.down(x)))


@register("glu")
class GatedProjection(Projection):
    """A gated linear map (Dauphin et al. 2016, arXiv:1612.08083): [a, g] = W x, y = a * sigmoid(g).

    As the way out of attention it is attention on attention (Huang et al. 2019, arXiv:1908.06954), with gates that
    see the attended values alone.

    Shapes:
        x: [..., inputs] -> [..., outputs]

    Args:
        inputs: features in.
        outputs: features out.
        bias: learn an offset.
        init_std: standard deviation of the initial weights; torch's default when None.
        writes: residual writes of the model, for the initial scale of a map that writes to the residual stream.
    """

    def __init__(
        self,
        inputs: Size = INHERIT,
        outputs: Size = INHERIT,
        bias: bool = False,
        init_std: float | None = INHERIT,
        writes: int | None = INHERIT,
    ) -> None:
        super().__init__()
        self.out = Linear(inputs, 2 * outputs, bias, std=init_std, writes=writes)

    def forward(self, x: Tensor) -> Tensor:
        """Map and gate."""
        return F.glu(self.out(x), dim=-1)


@register("identity")
class IdentityProjection(Projection):
    """No map: y = x.

    Shapes:
        x: [..., inputs] -> the same, inputs = outputs

    Args:
        inputs: features in.
        outputs: features out, as many.
    """

    def __init__(self, inputs: Size = INHERIT, outputs: Size = INHERIT) -> None:
        super().__init__()

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """As many features go out as come in."""
        return _same_size(facts)

    def forward(self, x: Tensor) -> Tensor:
        """The same."""
        return x


@register("head_order")
class HeadOrder(Projection):
    """The features of heads in another order, and no map: y = concat_i x_order[i].

    Without an output map the order of heads is that of the features that go out.

    Shapes:
        x: [..., inputs] -> the same, inputs = outputs

    Args:
        order: for each place of the result, which of as many equal pieces of x stands there.
        inputs: features in.
        outputs: features out, as many.
    """

    def __init__(self, order: Sequence[int], inputs: Size = INHERIT, outputs: Size = INHERIT) -> None:
        super().__init__()
        self.order = list(order)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Each piece stands once, and they are as large."""
        order, inputs = list(facts["order"]), facts["inputs"]
        if not order or sorted(order) != list(range(len(order))) or inputs % len(order):
            return [Problem("order", f"each of so many equal pieces of {inputs} features once", tuple(order))]
        return _same_size(facts)

    def forward(self, x: Tensor) -> Tensor:
        """Reorder."""
        pieces = x.reshape(*x.shape[:-1], len(self.order), -1)
        return pieces[..., self.order, :].reshape(x.shape)


def _same_size(facts: Facts) -> list[Problem]:
    """As many features go out as come in."""
    inputs, outputs = facts["inputs"], facts["outputs"]
    if inputs == outputs:
        return []
    return [Problem("outputs", f"without a map the {inputs} features that come in must go out", outputs)]
