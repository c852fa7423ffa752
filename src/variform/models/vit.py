"""ViT: images as sequences of patches."""

from __future__ import annotations

from variform.core.fields import Depth
from variform.core.registry import preset
from variform.core.spec import Spec
from variform.models.mixing import Attending, attending, begun
from variform.parts.embedding.patches import PatchEmbedding
from variform.parts.feedforward.mlp import MLP
from variform.parts.head.heads import ClassifierHead, PoolHead
from variform.parts.norm.norms import LayerNorm
from variform.parts.position.absolute import LearnedPosition
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer


@preset
def vit(
    *,
    image_size: int,
    patch_size: int,
    dim: int,
    depth: Depth,
    heads: int,
    classes: int | None = None,
    channels: int = 3,
    pool: str = "first",
    mult: float = 4.0,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    init_std: float | None = 0.02,
    attention: Attending = None,
) -> Spec:
    """A vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929): patches, class token, pre-norm encoder.

    Args:
        image_size: pixels along one side.
        patch_size: pixels along one side of a patch; divides `image_size`.
        dim: features of the residual stream.
        depth: number of layers.
        heads: number of attention heads; divides `dim`.
        classes: number of classes; None gives the pooled features.
        channels: colour channels.
        pool: "first" reads a class token, "mean" averages the patches (and there is no class token).
        mult: inner width of the MLP as a multiple of `dim`.
        dropout: probability of zeroing an embedding or branch feature, in training.
        drop_path: stochastic depth of the last layer; it grows linearly from zero at the first.
        init_std: standard deviation of initial weights; None for torch's.
        attention: what mixes the tokens: the name or the description of an attention or a mixer (`variform parts`).
    """

    mixer = attending(attention, bias=True, out_bias=True)

    def layer(place: int) -> Spec:
        path = drop_path * place / max(1, depth - 1)
        return TransformerLayer.spec(
            sublayers=[
                Sublayer.spec(body=mixer, dropout=dropout, drop_path=path),
                Sublayer.spec(body=MLP.spec(mult=mult), dropout=dropout, drop_path=path),
            ]
        )

    tokens = 1 if pool == "first" else 0
    embedding = PatchEmbedding.spec(
        image_size=image_size,
        patch_size=patch_size,
        channels=channels,
        class_tokens=tokens,
        position=LearnedPosition.spec(),
        dropout=dropout,
    )
    return Transformer.spec(
        dim=dim,
        heads=heads,
        init_std=init_std,
        embedding=embedding,
        stacks=[LayerStack.spec(layers=begun([layer(i) for i in range(depth)]), norm=LayerNorm.spec())],
        head=PoolHead.spec(pool=pool) if classes is None else ClassifierHead.spec(classes=classes, pool=pool),
    )
