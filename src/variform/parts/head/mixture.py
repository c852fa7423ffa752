"""Heads that answer with more than a linear map's softmax: mixtures of softmaxes, and sigsoftmax."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.dims import Shape
from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.core.spec import described
from variform.parts.kinds import Head, Streams
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("mixture")
class MixtureHead(Head):
    """A mixture of softmaxes (Yang et al. 2017, arXiv:1711.03953): log sum_k pi_k softmax(head(W_k x)).

    pi = softmax(W x). The output is logarithms of probabilities, which serve as logits: one softmax over a linear map
    has at most `dim` + 1 dimensions of logarithms, a mixture has not. Computed by logsumexp, so nothing underflows.

    Shapes:
        x: [..., dim] -> [..., vocab_size]

    Args:
        head: gives the logits of each component, with the same weights.
        components: how many softmaxes are mixed.
        dim: features.
        init_std: standard deviation of the initial weights; torch's default when None.
    """

    def __init__(self, head: Head, components: Size = 4, dim: Size = INHERIT, init_std: float | None = INHERIT) -> None:
        super().__init__()
        self.head = head
        self.components = components
        self.expand = Linear(dim, dim * components, bias=False, std=init_std)
        self.weigh = Linear(dim, components, bias=False, std=init_std)

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """The head's."""
        return inner_shape(args, x)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Mix in at least float32."""
        each = self.head(self.expand(x).view(*x.shape[:-1], self.components, -1), streams)
        each = each if each.dtype.itemsize >= 4 else each.float()
        weights = self.weigh(x).to(each.dtype).log_softmax(-1)
        return (each.log_softmax(-1) + weights.unsqueeze(-1)).logsumexp(-2).to(x.dtype)


@register("sigsoftmax")
class SigsoftmaxHead(Head):
    """Sigsoftmax (Kanai et al. 2018, arXiv:1805.10829): logits z + log sigmoid(z), for e^z sigmoid(z) / sum.

    Shapes:
        x: what the head takes -> what it gives

    Args:
        head: gives the logits z.
    """

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """The head's."""
        return inner_shape(args, x)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Add log sigmoid."""
        logits = self.head(x, streams)
        return logits + F.logsigmoid(logits)


def inner_shape(args: Facts, x: Shape, slot: str = "head") -> Shape:
    """The shape that the head in a slot gives for an input of shape `x`: that itself where there is none."""
    inner = described(args[slot])
    shape: Shape = x if inner is None else inner.part.out_shape(inner.args, x)
    return shape
