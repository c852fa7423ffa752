"""Attention to random positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.native import SparseFirst
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.parts.attention.patterned import RandomAttention as NativeRandom

Rate = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]


@dataclass
class RandomAttentionConfig(AttentionConfig):
    """The configuration of `RandomAttention`."""

    r: float | None = None
    constant_masking: bool | None = None
    force_sparsity: bool | None = None
    causal: bool | None = None
    seed: int | None = None


@register_attention("random", RandomAttentionConfig)
class RandomAttention(SparseFirst):
    """Each position sees itself and every other with probability r (BigBird, Zaheer et al. 2020, arXiv:2007.14062).

    Args:
        dropout: probability of dropping an attention weight, in training.
        causal: only the past.
        r: probability of each pair.
        constant_masking: keep one set of pairs; otherwise training draws another at each call.
        force_sparsity: visit the tiles of the pattern alone wherever that can be done, faster or not.
        seed: equal seeds keep equal pairs; drawn from torch's generator by default, and saved with the weights.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "random"

    def __init__(
        self,
        dropout: Rate,
        causal: bool = False,
        r: Share = 0.01,
        constant_masking: bool = True,
        force_sparsity: bool = False,
        seed: int | None = None,
        **superset: Any,
    ) -> None:
        given = {"dropout": dropout, "causal": causal, "r": r, "constant_masking": constant_masking, "seed": seed}
        verify(RandomAttention, **given, force_sparsity=force_sparsity)
        if seed is None:
            given["seed"] = int(torch.randint(0, 1 << 31, (), device="cpu"))
        super().__init__(NativeRandom.spec(**given))
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "random")
        self.r = r
        self.constant_masking = constant_masking
        self.force_sparsity = force_sparsity
