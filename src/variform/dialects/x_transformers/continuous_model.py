"""Keywords of upstream's `ContinuousTransformerWrapper`, routed to a model of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from variform.core.spec import Spec
from variform.dialects.x_transformers.around import AROUND, AroundDraft
from variform.dialects.x_transformers.attention_layers import AttentionLayers
from variform.dialects.x_transformers.table import Route, Table, put
from variform.errors import Problem
from variform.parts.embedding.features import FeatureEmbedding
from variform.parts.embedding.prefixed import PrefixedEmbedding
from variform.parts.head.heads import ClassifierHead, LinearHead, PoolHead


@dataclass
class ContinuousDraft(AroundDraft):
    """A model of features on its way to a spec."""

    dim_in: int | None = None
    dim_out: int | None = None
    project_in: nn.Module | None = None
    project_out: nn.Module | None = None
    average_pool_embed: bool = False
    probabilistic: bool = False
    use_identity_if_same_dim: bool = False

    def ends(self, dim: int, position: Spec | None) -> dict[str, Any]:
        """Features, mapped where they have another width, and a linear head."""
        features = FeatureEmbedding.spec(position=position, norm=self.norm(), dim_in=self._mapped(self.dim_in, dim))
        outputs = None if self.dim_out is None else self._mapped(self.dim_out * (2 if self.probabilistic else 1), dim)
        head: Spec | None = None
        if self.average_pool_embed:
            pooled = {"pool": "mean"}
            head = PoolHead.spec(**pooled) if outputs is None else ClassifierHead.spec(classes=outputs, bias=False)
        elif outputs is not None:
            head = LinearHead.spec(outputs=outputs)
        return {"embedding": PrefixedEmbedding.spec(embedding=features, dropout=self.emb_dropout), "head": head}

    def _mapped(self, size: int | None, dim: int) -> int | None:
        return None if self.use_identity_if_same_dim and size == dim else size

    def check(self, layers: AttentionLayers) -> list[Problem]:
        """A map is given as a size or as a module."""
        found, dim = super().check(layers), layers.dim
        for end in ("in", "out"):
            size, module = getattr(self, f"dim_{end}"), getattr(self, f"project_{end}")
            if size is not None and module is not None:
                found.append(Problem(f"project_{end}", f"give dim_{end}, a size, or a module, and not both"))
            if size is not None and size < 1:
                found.append(Problem(f"dim_{end}", "must be positive", size))
        if self.probabilistic and self.dim_out is None and self.project_out is None and dim % 2:
            message = f"mean and variance come in pairs, and there are {dim} features; give dim_out"
            found.append(Problem("probabilistic", message, True))
        return found


CONTINUOUS: Table = {
    **AROUND,
    "max_seq_len": Route(None, put("max_seq_len"), types=(int,)),
    "dim_in": Route(None, put("dim_in"), types=(int,)),
    "dim_out": Route(None, put("dim_out"), types=(int,)),
    "project_in": Route(None, put("project_in"), types=(nn.Module,)),
    "project_out": Route(None, put("project_out"), types=(nn.Module,)),
    "post_emb_norm": Route(False, put("post_emb_norm")),
    "average_pool_embed": Route(False, put("average_pool_embed")),
    "probabilistic": Route(False, put("probabilistic")),
    "use_identity_if_same_dim": Route(False, put("use_identity_if_same_dim")),
}
"""Keyword -> what it does to a `ContinuousDraft`."""
