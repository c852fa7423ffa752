"""Keys and values through a latent: what decoding keeps of a token is small."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.parts.key_values.linear import cut
from variform.parts.kinds import KeyValues, Norm, State
from variform.parts.linear import Linear

Size = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


@register("latent")
class LatentKeyValues(KeyValues):
    """Keys and values of multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): c = norm(W_c x), k = W_k c,
    v = W_v c; decoding keeps c.

    A rotation would have to be done anew between c and each query, so the keys that are rotated are made of the token
    itself, in one of two layouts: the first `own_features` of every key, one vector a token that all heads share, as in
    DeepSeek-V2; or all features of the last `own_heads` key heads, as in x-transformers. Decoding keeps them too.

    Scores of few queries need no keys: q . W_k c = (W_k^T q) . c, and sum_j p_j W_v c_j = W_v sum_j p_j c_j.

    Shapes:
        x: [B, L, inputs] -> c [B, 1, L, dim_latent] and [B, 1, L, own_features] or [B, own_heads, L, dim_head]

    Args:
        dim_latent: features of c.
        own_features: features of a key that are made of the token itself, shared by all heads.
        own_heads: key heads that are made of the token itself.
        norm: of c; None for none.
        inputs: features of a token.
        kv_heads: number of key and value heads.
        dim_head: features of a key, own ones included.
        dim_value: features of a value.
        init_std: standard deviation of the initial weights; torch's default when None.
    """

    compressed: ClassVar[bool] = True

    def __init__(
        self,
        dim_latent: Size,
        own_features: Count = 0,
        own_heads: Count = 0,
        norm: Norm | None = None,
        inputs: Size = INHERIT,
        kv_heads: Size = INHERIT,
        dim_head: Size = INHERIT,
        dim_value: Size = INHERIT,
        init_std: float | None = INHERIT,
    ) -> None:
        super().__init__()
        self.dim_latent = dim_latent
        self.own_heads, self.own_features = own_heads, own_features
        self.key_heads, self.value_heads = kv_heads - own_heads, kv_heads
        self.dim_head, self.dim_value = dim_head, dim_value
        self.latent = Linear(inputs, dim_latent, False, std=init_std)
        self.norm = norm
        self.own = Linear(inputs, own_heads * dim_head or own_features, False, std=init_std) if self.has_own else None
        latent_keys = self.key_heads * (dim_head - own_features)
        self.k = Linear(dim_latent, latent_keys, False, std=init_std) if latent_keys else None
        self.v = Linear(dim_latent, kv_heads * dim_value, False, std=init_std)

    @property
    def has_own(self) -> bool:
        """Whether a part of the keys is made of the token itself."""
        return self.own_heads + self.own_features > 0

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The norm sees the latent."""
        return {"dim": facts["dim_latent"]}

    @classmethod
    def gives(cls, facts: Facts) -> Facts:
        """A rotation beside it turns the own features, where there are some."""
        return {"dim_head": facts["own_features"] or facts["dim_head"]}

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """One layout, with room for it."""
        found, features, heads = [], facts["own_features"], facts["own_heads"]
        if features and heads:
            found.append(
                Problem("own_heads", "own features of all heads, or heads of their own: one of the two", heads)
            )
        if features > facts["dim_head"]:
            found.append(Problem("own_features", f"a key has {facts['dim_head']} features in all", features))
        if heads > facts["kv_heads"]:
            found.append(Problem("own_heads", f"there are {facts['kv_heads']} key heads in all", heads))
        return found

    def forward(self, of_k: Tensor, of_v: Tensor) -> tuple[Tensor, Tensor]:
        """The latent, and what the keys have of the token itself."""
        c = self.latent(of_k)
        c = c if self.norm is None else self.norm(c)
        if self.own is None:
            return c.unsqueeze(1), c.new_zeros(c.shape[0], 0, c.shape[1], self.dim_head)
        return c.unsqueeze(1), cut(self.own(of_k), max(1, self.own_heads))

    def expand(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all heads."""
        c = first.squeeze(1)
        v = cut(self.v(c), self.value_heads)
        if self.k is None:
            return second if self.own_heads else second.expand(-1, self.key_heads, -1, -1), v
        k = cut(self.k(c), self.key_heads)
        if self.own_features:
            k = torch.cat((second.expand(-1, self.key_heads, -1, -1), k), -1)
        elif self.own_heads:
            k = torch.cat((k, second), 1)
        return k, v

    def rotated(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries or expanded keys, cut into what stands before the rotated part, that part, and what follows.

        Shapes:
            x: [B, heads, L, dim_head]; the three join along the features with `own_features`, else along the heads
        """
        if self.own_features:
            return x[..., :0], x[..., : self.own_features], x[..., self.own_features :]
        own = self.own_heads * x.shape[1] // self.value_heads if self.own_heads else x.shape[1]
        return x[:, : x.shape[1] - own], x[:, x.shape[1] - own :], x[:, :0]

    def joined(self, before: Tensor, rotated: Tensor, after: Tensor) -> Tensor:
        """The inverse of `rotated`."""
        return torch.cat((before, rotated, after), -1 if self.own_features else 1)

    def absorbed(self, q: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and one key head for all of them, of the same products as q with the expanded keys.

        Shapes:
            q: [B, H, Lq, dim_head] -> [B, H, Lq, D], [B, 1, Lk, D], D = dim_latent and what the keys have of their own
        """
        if self.own_features:
            own, q = q[..., : self.own_features], q[..., self.own_features :]
            q = own if self.k is None else torch.cat((self._into_latent(q), own), -1)
            return q, second if self.k is None else torch.cat((first, second), -1)
        if not self.own_heads:
            return self._into_latent(q), first
        _, own, _ = self.rotated(q)
        q = q[:, : q.shape[1] - own.shape[1]]
        group, width = own.shape[1] // self.own_heads, self.own_heads * self.dim_head
        # Each own head has its block of features, and is zero in those of the others.
        blocks = torch.eye(self.own_heads, dtype=q.dtype, device=q.device).repeat_interleave(group, 0)
        placed = (own.unsqueeze(-2) * blocks[:, None, :, None]).flatten(-2)
        placed = F.pad(placed, (first.shape[-1], 0))
        if q.shape[1]:
            placed = torch.cat((F.pad(self._into_latent(q), (0, width)), placed), 1)
        return placed, torch.cat((first, second.transpose(1, 2).flatten(2).unsqueeze(1)), -1)

    def _into_latent(self, q: Tensor) -> Tensor:
        assert self.k is not None
        weight = self.k.weight.view(self.key_heads, -1, self.dim_latent)
        grouped = q.reshape(q.shape[0], self.key_heads, -1, q.shape[3])  # [B, Hk, group * Lq, D]
        return (grouped @ weight).view(*q.shape[:3], self.dim_latent)

    def released(self, attended: Tensor) -> Tensor:
        """Attended values of attended latents.

        Shapes:
            attended: [B, H, Lq, dim_latent] -> [B, H, Lq, dim_value]
        """
        weight = self.v.weight.view(self.value_heads, self.dim_value, self.dim_latent)
        grouped = attended.reshape(attended.shape[0], self.value_heads, -1, self.dim_latent)
        return (grouped @ weight.mT).view(*attended.shape[:3], self.dim_value)

    def spares(self, queries: int) -> bool:
        """Whether fewer products are made by absorbing than by expanding, for so many queries a key."""
        inner = self.dim_head + self.dim_value
        wide = 2 * self.dim_latent + (self.own_features or self.own_heads * self.dim_head)
        return queries * (wide - inner) < self.dim_latent * inner

    def init_state(self, batch: int, max_len: int) -> State:
        """Buffers for the latents and the own parts of keys; the last slot takes what must not be kept."""
        heads = 1 if self.own_features else self.own_heads
        like, size = self.latent.weight, self.own_features or self.dim_head
        return {
            "k": like.new_zeros(batch, 1, max_len + 1, self.dim_latent),
            "v": like.new_zeros(batch, heads, max_len + 1, size),
        }
