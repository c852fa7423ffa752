"""`ViTransformerWrapper`: images in, classes or patch features out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.x_transformers.attention_layers import AttentionLayers
from variform.dialects.x_transformers.call import check_condition
from variform.dialects.x_transformers.errors import InputError
from variform.dialects.x_transformers.read import resolved
from variform.dialects.x_transformers.table import REQUIRED, Route, Table, apply_all, kept, problems_of, put, raise_any
from variform.dialects.x_transformers.views import AroundLayers
from variform.errors import Problem, nearest_multiples
from variform.parts.embedding.patches import PatchEmbedding
from variform.parts.head.heads import ClassifierHead, PoolHead
from variform.parts.norm.norms import LayerNorm
from variform.parts.position.absolute import LearnedPosition
from variform.stack.condition import condition_size
from variform.stack.model import Transformer
from variform.stack.registers import RegisterStack


@dataclass
class VisionDraft:
    """A vision model on its way to a spec."""

    image_size: int = 0
    patch_size: int = 0
    channels: int = 3
    num_classes: int | None = None
    post_emb_norm: bool = False
    emb_dropout: float = 0.0
    num_register_tokens: int = 0

    def spec(self, stack: Spec, dim: int) -> Spec:
        """The model around a stack of width `dim`: SimpleViT (arXiv:2205.01580), learned positions."""
        norm = LayerNorm.spec(bias=False)
        embedding = PatchEmbedding.spec(
            image_size=self.image_size,
            patch_size=self.patch_size,
            channels=self.channels,
            position=LearnedPosition.spec(std=1.0),
            patch_norm=norm,
            token_norm=norm,
            norm=norm if self.post_emb_norm else None,
            dropout=self.emb_dropout,
        )
        head = PoolHead.spec() if self.num_classes is None else ClassifierHead.spec(classes=self.num_classes)
        if self.num_register_tokens:
            stack = RegisterStack.spec(stack=stack, count=self.num_register_tokens, side="back", std=1.0)
        size = condition_size(stack)
        return Transformer.spec(dim=dim, dim_condition=size, embedding=embedding, stacks=[stack], head=head)

    def check(self) -> list[Problem]:
        """Patches tile the image."""
        if self.image_size < 1 or self.patch_size < 1:
            return [Problem("image_size", "image_size and patch_size must be positive", self.image_size)]
        if self.image_size % self.patch_size:
            hint = nearest_multiples(self.image_size, self.patch_size)
            message = f"must be a multiple of patch_size = {self.patch_size}"
            return [Problem("image_size", message, self.image_size, hint)]
        if self.num_register_tokens < 0:
            return [Problem("num_register_tokens", "must not be negative", self.num_register_tokens)]
        return []


VISION: Table = {
    "image_size": Route(REQUIRED, put("image_size"), types=(int,)),
    "patch_size": Route(REQUIRED, put("patch_size"), types=(int,)),
    "attn_layers": Route(REQUIRED, kept, types=(AttentionLayers,)),
    "channels": Route(3, put("channels"), types=(int,)),
    "num_classes": Route(None, put("num_classes"), types=(int,)),
    "post_emb_norm": Route(False, put("post_emb_norm")),
    "emb_dropout": Route(0.0, put("emb_dropout"), types=(int, float)),
    "num_register_tokens": Route(0, put("num_register_tokens"), types=(int,)),
}
"""Keyword -> what it does to a `VisionDraft`."""


class ViTransformerWrapper(AroundLayers):
    """A vision transformer around `attn_layers`, described by upstream's keywords.

    Shapes:
        img: [B, channels, image_size, image_size] -> [B, num_classes], or [B, dim] without classes

    Args:
        image_size: pixels along one side.
        patch_size: pixels along one side of a patch.
        attn_layers: an `Encoder` of this dialect.
        **keywords: see `VISION`.

    Raises:
        KeywordError: unknown or unsupported keywords, and values that do not fit; all at once.
    """

    embeds: ClassVar[bool] = False

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        raise_any(problems_of(type(self).__name__, VISION, keywords, VISION))
        draft = VisionDraft()
        apply_all(draft, VISION, keywords)
        raise_any(draft.check())
        layers: AttentionLayers = keywords["attn_layers"]
        spec = resolved(draft.spec(layers.spec, layers.dim), keywords)
        place = "stacks.0.stack" if draft.num_register_tokens else "stacks.0"
        self._hold_native(build(spec, ready={place: layers.native}), layers)
        self.patch_size = draft.patch_size

    def forward(
        self,
        img: Tensor,
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        *,
        condition: Tensor | None = None,
    ) -> Any:
        """Run the model.

        Args:
            img: images.
            return_embeddings: one vector a patch, in place of the classes.
            return_logits_and_embeddings: both.
            condition: [B, C], for adaptive parts.
        """
        check_condition(self.attn_layers, condition)
        if return_embeddings and return_logits_and_embeddings:
            raise InputError("choose one of return_embeddings and return_logits_and_embeddings")
        hidden = self.native(img, hidden=True, condition=condition)
        if return_embeddings:
            return hidden
        assert self.native.head is not None
        logits = self.native.head(hidden, {})
        return (logits, hidden) if return_logits_and_embeddings else logits
