"""Steps that work on each token on its own: linear map, embedding, activation, copy, merge."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.dims import Shape, shape_text
from variform.core.inherit import INHERIT, inherit
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem, ShapeError, nearest_multiples
from variform.ops.recompute import Cheap
from variform.parts.activation import ACTIVATIONS, Activation
from variform.parts.kinds import Norm, Op
from variform.parts.linear import Linear, mapped
from variform.parts.op.merging import CopyOp, MergeOp

__all__ = ["ActivationOp", "CopyOp", "EmbeddingOp", "LinearOp", "MergeOp", "last_size"]

Size = Annotated[int, Field(gt=0)]


def last_size(name: str, dim: int, shape: Shape) -> None:
    """Refuse an input whose last size is not what the op was made for."""
    if not shape or shape[-1] != dim:
        raise ShapeError(f"{name} works on {dim} features, and its input is {shape_text(shape)}")


@register("linear")
class LinearOp(Op):
    """y = out_norm(W norm(x) + b).

    Shapes:
        x: [..., dim] -> [..., out]

    Args:
        dim: features in.
        out: features out; `dim` by default.
        bias: add b.
        bias_init: initial value of b; drawn as torch does when None.
        norm: before the map.
        out_norm: after it.
        init_std: standard deviation of the initial weights; torch's default when None.
    """

    def __init__(
        self,
        dim: Size = INHERIT,
        out: Size | None = None,
        bias: bool = True,
        bias_init: float | None = None,
        norm: Norm | None = None,
        out_norm: Norm | None = None,
        init_std: float | None = INHERIT,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.project = Linear(dim, out or dim, bias, std=init_std)
        self.out_norm = out_norm
        self.bias_init = bias_init
        self.reset_parameters()

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The second norm sees the features that come out."""
        return {"dim": facts["out"] or facts["dim"]} if slot == "out_norm" else {}

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """An initial value needs a bias."""
        if facts["bias_init"] is not None and not facts["bias"]:
            return [Problem("bias_init", "there is no bias to initialise", facts["bias_init"], "leave one of them out")]
        return []

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The last size changes."""
        last_size("a linear map", args["dim"], inputs[0])
        return ((*inputs[0][:-1], args["out"] or args["dim"]),)

    def reset_parameters(self) -> None:
        """Set the bias, where a value is given; the map itself draws its own parameters."""
        if self.bias_init is not None:
            nn.init.constant_(self.project.bias, self.bias_init)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map the last dimension."""
        x: Any = inputs[0]
        if isinstance(x, Cheap):
            y = mapped(self.project, x) if self.norm is None else self.project(self.norm(x.value))
        else:
            y = self.project(x if self.norm is None else self.norm(x))
        return y if self.out_norm is None else self.out_norm(y)


@register("embedding")
class EmbeddingOp(Op):
    """A learned vector for each id.

    Shapes:
        ids: [...] integers in [0, classes) -> [..., out]

    Args:
        classes: number of different ids.
        out: features of a vector.
        std: standard deviation of the initial vectors.
    """

    ids: ClassVar[tuple[int, ...]] = (0,)
    accepts: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"ids"}),)

    def __init__(self, classes: Size, out: Size, std: Annotated[float, Field(gt=0)] = 1.0) -> None:
        super().__init__()
        self.classes = classes
        self.std = std
        self.weight = nn.Parameter(torch.empty(classes, out))
        self.reset_parameters()

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """One size more."""
        return ((*inputs[0], args["out"]),)

    @classmethod
    def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
        """Features."""
        return ("features",)

    def reset_parameters(self) -> None:
        """Normal vectors."""
        nn.init.normal_(self.weight, 0.0, self.std)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Look the ids up."""
        (ids,) = inputs
        if ids.dtype not in (torch.int64, torch.int32):
            raise ShapeError(f"an embedding takes integer ids, not {ids.dtype}")
        try:
            return F.embedding(ids, self.weight)
        except IndexError:
            low, high = int(ids.min()), int(ids.max())
            raise ShapeError(f"ids must lie in [0, {self.classes}); these lie in [{low}, {high}]") from None


@register("activation")
class ActivationOp(Op):
    """y = act_1(x_1) * ... * act_n(x_n), with x cut into as many pieces as there are functions.

    One function is a plain activation, two a gated linear unit without its maps (Shazeer 2020, arXiv:2002.05202).

    Shapes:
        x: [..., dim] -> [..., dim / n]

    Args:
        functions: act, one a piece.
        dim: features in; a plain activation does without, and works on scores too.
        norm: on x.
        out_norm: on y.
    """

    pairwise: ClassVar[bool] = True

    def __init__(
        self,
        functions: Annotated[tuple[Activation, ...], Field(min_length=1)] = ("gelu",),
        dim: Size | None = inherit(None),
        norm: Norm | None = None,
        out_norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.functions = [ACTIVATIONS[name] for name in functions]
        self.out_norm = out_norm

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The second norm sees the features that come out."""
        dim = facts.get("dim")
        return {"dim": max(1, dim // len(facts["functions"]))} if slot == "out_norm" and dim is not None else {}

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The pieces have equal sizes."""
        dim, count = facts["dim"], len(facts["functions"])
        if dim is None:
            message = f"{count} functions need a known number of features"
            return [] if count == 1 else [Problem("functions", message, facts["functions"])]
        if dim % count:
            message = f"{count} functions need a number of features that {count} divides, not {dim}"
            message += f"; it reads {facts['read_words']}" if "read_words" in facts else ""
            return [Problem("functions", message, facts["functions"], nearest_multiples(dim, count))]
        return []

    @classmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The last size is divided."""
        shape, plain = inputs[0], len(args["functions"]) == 1 and args["norm"] is None and args["out_norm"] is None
        if plain and shape and not isinstance(shape[-1], int):
            return inputs
        last_size("the activation", args["dim"], shape)
        return ((*shape[:-1], args["dim"] // len(args["functions"])),)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Apply the functions and multiply."""
        (x,) = inputs
        x = x if self.norm is None else self.norm(x)
        pieces = x.chunk(len(self.functions), dim=-1)
        y = self.functions[0](pieces[0])
        for function, piece in zip(self.functions[1:], pieces[1:], strict=True):
            y = y * function(piece)
        return y if self.out_norm is None else self.out_norm(y)
