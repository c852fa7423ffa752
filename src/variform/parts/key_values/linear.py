"""Keys and values by linear maps."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.parts.kinds import KeyValues
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]


@register("linear")
class LinearKeyValues(KeyValues):
    """Keys W_k x and values W_v x, cut into heads.

    Shapes:
        x: [B, L, inputs] -> k [B, kv_heads, L, dim_head], v [B, kv_heads, L, dim_value]

    Args:
        inputs: features of a token.
        kv_heads: number of key and value heads.
        dim_head: features of a key.
        dim_value: features of a value.
        bias: learn offsets.
        init_std: standard deviation of the initial weights; torch's default when None.
    """

    def __init__(
        self,
        inputs: Size = INHERIT,
        kv_heads: Size = INHERIT,
        dim_head: Size = INHERIT,
        dim_value: Size = INHERIT,
        bias: bool = False,
        init_std: float | None = INHERIT,
    ) -> None:
        super().__init__()
        self.heads, self.dim_value = kv_heads, dim_value
        self.k = Linear(inputs, kv_heads * dim_head, bias, std=init_std)
        self.v = Linear(inputs, kv_heads * dim_value, bias, std=init_std)

    def forward(self, of_k: Tensor, of_v: Tensor) -> tuple[Tensor, Tensor]:
        """Map."""
        return cut(self.k(of_k), self.heads), cut(self.v(of_v), self.heads)


def cut(x: Tensor, heads: int) -> Tensor:
    """[B, L, heads * D] to [B, heads, L, D]; no heads are allowed too."""
    size = x.shape[-1] // heads if heads else 0
    return x.view(*x.shape[:-1], heads, size).transpose(1, 2)
