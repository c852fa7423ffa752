"""The native specs of blocks: what `.spec` of a model of this dialect says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from variform.core.spec import Shared, Spec
from variform.dialects.xformers.components import MultiHeadDispatch, PostNorm, PreNorm, Residual
from variform.dialects.xformers.components.feedforward import MLP, Conv2DFeedforward, MixtureOfExperts
from variform.dialects.xformers.components.feedforward.glu import Gated
from variform.dialects.xformers.components.feedforward.native import NativeFeedforward
from variform.dialects.xformers.components.patch_embedding import PatchEmbedding
from variform.dialects.xformers.components.positional_embedding.base import PlacedEmbedding
from variform.dialects.xformers.components.residual import Branch, Skip
from variform.dialects.xformers.errors import Wrong, config_error
from variform.dialects.xformers.factory.block import innermost
from variform.dialects.xformers.factory.block_factory import xFormerDecoderBlock, xFormerEncoderBlock
from variform.parts.embedding.factorised import FactorisedEmbedding
from variform.parts.embedding.image import ImageEmbedding
from variform.parts.mixer.compositional import Compositional, CrossCompositional
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.norm.norms import LayerNorm
from variform.parts.residual.scaled import ScaledResidual
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

SHARED_EMBEDDING = "embedding"
"""The name under which encoder and decoder share their embedding."""


def encoder_spec(blocks: Sequence[xFormerEncoderBlock], shared: bool = False) -> Spec:
    """The native model of encoder blocks, without a head.

    Args:
        blocks: in order.
        shared: the embedding is also the decoder's.
    """
    layers = []
    for block in blocks:
        if block.patch_emb is not None and not _embeds_patches(block):
            layers.append(block.patch_emb.spec)
        layers.append(TransformerLayer.spec(sublayers=[_attention(block.wrap_att), _feedforward(block.wrap_ff)]))
    stacks = [_stack(blocks, layers)]
    simplicial = blocks[-1].simplicial_embedding
    if simplicial is not None:
        stacks.append(LayerStack.spec(layers=[], norm=simplicial.spec))
    if blocks[0].patch_emb is None:
        return _model(blocks[0], stacks, shared)
    return _vision(blocks[0], stacks)


def _embeds_patches(block: Any) -> bool:
    """Whether patches and positions are one embedding; a patch embedding alone is the first layer."""
    return block.patch_emb is not None and block.pose_encoding is not None


def _vision(first: Any, stacks: list[Spec]) -> Spec:
    """A model of images, or of their pixels as a sequence; with positions, of the size that these are for."""
    patches: PatchEmbedding = first.patch_emb
    if not _embeds_patches(first):
        return Transformer.spec(
            embedding=None, stacks=stacks, dim=patches.config.in_channels, heads=None, vocab_size=None
        )
    part = first.pose_encoding
    if not isinstance(part, PlacedEmbedding) or hasattr(first, "embedding_projector"):
        raise _no_equivalent(part)
    embedding = ImageEmbedding.spec(
        patches=patches.spec,
        height=_image_side(patches, part.longest),
        channels=patches.config.in_channels,
        embedding=part.spec,
    )
    return Transformer.spec(embedding=embedding, stacks=stacks, dim=first.dim_model, heads=None, vocab_size=None)


def _image_side(patches: PatchEmbedding, places: int | None) -> int:
    """Pixels along a side of the square image whose patches have so many places; a multiple of the stride if any."""
    side = math.isqrt(places or 0)
    if not side or side**2 != places:
        message = "an image whose patches have this many positions is not known: a native model needs its size"
        raise config_error([Wrong("position_encoding_config.seq_len", message, places, "a square number")])
    layer, step = patches.spec, patches.config.stride
    part: Any = layer.part
    sizes = (side * step, (side - 1) * step + patches.config.kernel_size - 2 * patches.config.padding)
    return next(size for size in sizes if part.side(dict(layer.args), size) == side)


def decoder_spec(blocks: Sequence[xFormerDecoderBlock], shared: bool = False) -> Spec:
    """The native model of decoder blocks, without a head; the memory is its stream `context`.

    Args:
        blocks: in order.
        shared: the embedding is also the encoder's.
    """
    layers = []
    for index, block in enumerate(blocks):
        steps = [_attention(block.wrap_att), _feedforward(block.wrap_ff)]
        if block.wrap_cross is not None:
            steps.insert(1, _cross(block.wrap_cross, index))
        layers.append(TransformerLayer.spec(sublayers=steps))
    return _model(blocks[0], [_stack(blocks, layers)], shared)


def _stack(blocks: Sequence[Any], layers: list[Spec]) -> Spec:
    if not blocks[0].reversible:
        return LayerStack.spec(layers=layers, norm=_final_norm(blocks[-1].wrap_ff))
    norm = blocks[-1].final_norm
    return LayerStack.spec(layers=layers, norm=None if norm is None else _native_norm(norm), executor="reversible")


def _model(first: Any, stacks: list[Spec], shared: bool) -> Spec:
    """An embedding, if there is one, in front of stacks."""
    part = first.pose_encoding
    embedding: Spec | Shared | None = None
    longest = None
    if part is not None:
        if not isinstance(part, PlacedEmbedding):
            raise _no_equivalent(part)
        longest, embedding = part.longest, part.spec
        projector = getattr(first, "embedding_projector", None)
        if projector is not None:
            embedding = FactorisedEmbedding.spec(embedding=embedding, dim_embedding=projector.in_features)
        if shared:
            embedding = Shared(SHARED_EMBEDDING, embedding)
    return Transformer.spec(
        embedding=embedding, stacks=stacks, dim=first.dim_model, heads=None, vocab_size=None, max_seq_len=longest
    )


def _attention(wrapper: nn.Module) -> Spec:
    heads = innermost(wrapper)
    assert isinstance(heads, MultiHeadDispatch)
    return _step(wrapper, heads.spec, heads.resid_drop.p)


def _cross(wrapper: nn.Module, index: int) -> Spec:
    """A step to the memory; a norm before it is the memory's too."""
    heads = innermost(wrapper)
    assert isinstance(heads, MultiHeadDispatch)
    if heads.spec.part is Compositional:
        return _cross_compositional(wrapper, heads, index)
    if heads.spec.part is not MultiHead:
        raise config_error([Wrong("", f"cross attention by {heads.spec.name!r} has no native equivalent")])
    own = dict(heads.spec.args)
    if own.pop("rotation") is not None:
        raise config_error([Wrong("", "cross attention with rotary embeddings has no native equivalent")])
    if (norm := _norm_before(wrapper)) is not None:
        shared = Shared(f"cross_norm_{index}", norm)
        body = CrossMultiHead.spec(**own, dim_context=own["dim"], context_norm=shared)
        return _step(wrapper, body, heads.resid_drop.p, norm=shared)
    return _step(wrapper, CrossMultiHead.spec(**own, dim_context=own["dim"]), heads.resid_drop.p)


def _cross_compositional(wrapper: nn.Module, heads: MultiHeadDispatch, index: int) -> Spec:
    own = {**heads.spec.args, "dim_context": heads.spec["dim"]}
    if (norm := _norm_before(wrapper)) is not None:
        shared = Shared(f"cross_norm_{index}", norm)
        body = CrossCompositional.spec(**own, context_norm=shared)
        return _step(wrapper, body, heads.resid_drop.p, norm=shared)
    return _step(wrapper, CrossCompositional.spec(**own), heads.resid_drop.p)


def _feedforward(wrapper: nn.Module) -> Spec:
    if _has_final_norm(wrapper):
        assert isinstance(wrapper, PostNorm)
        wrapper = wrapper.sublayer
    part = innermost(wrapper)
    if isinstance(part, MLP):
        return _step(wrapper, part.spec, part.output_dropout)
    if isinstance(part, (NativeFeedforward, Conv2DFeedforward, Gated, MixtureOfExperts)):
        return _step(wrapper, part.spec, 0.0)
    raise _no_equivalent(part)


def _step(wrapper: nn.Module, body: Spec, dropout: float, norm: Spec | Shared | None = None) -> Spec:
    """One residual step from its wrappers: Residual(PreNorm(...)), or PostNorm(Residual(...)).

    With a Branch where the residual is the norm after it is of the branch.
    """
    if isinstance(wrapper, Residual | Branch):
        return Sublayer.spec(body=body, norm=norm or _norm_before(wrapper), dropout=dropout)
    assert isinstance(wrapper, PostNorm)
    residual = wrapper.sublayer
    if isinstance(residual, Branch):
        after = _norm(wrapper)
        if dropout and after is not None:
            message = "a norm of what dropout left has no native equivalent: reversible post-norm blocks have none"
            raise config_error([Wrong("", message, hint="dropout 0, or residual_norm_style 'pre'")])
        return Sublayer.spec(body=body, norm=None, branch_norm=after, dropout=dropout)
    assert isinstance(residual, Residual)
    scaled = None if residual.scale is None else ScaledResidual.spec(alpha=residual.scale)
    return Sublayer.spec(body=body, norm=None, out_norm=_norm(wrapper), residual=scaled, dropout=dropout)


def _has_final_norm(wrapper: nn.Module) -> bool:
    """Whether a PostNorm stands around a whole pre-norm step."""
    inner = wrapper.sublayer if isinstance(wrapper, PostNorm) else None
    return isinstance(inner, Residual) and isinstance(inner.layer, PreNorm)


def _final_norm(wrapper: nn.Module) -> Spec | None:
    return _norm(wrapper) if _has_final_norm(wrapper) else None


def _norm_before(wrapper: nn.Module) -> Spec | None:
    if isinstance(wrapper, Residual):
        return _norm(wrapper.layer)
    return _norm(wrapper.branch) if isinstance(wrapper, Branch) else None


def _norm(wrapper: Any) -> Spec | None:
    return _native_norm(wrapper.norm)


def _native_norm(norm: nn.Module) -> Spec | None:
    if isinstance(norm, Skip):
        return None
    if not isinstance(norm, nn.LayerNorm) or not norm.elementwise_affine:
        raise _no_equivalent(norm)
    return LayerNorm.spec(dim=norm.normalized_shape[0], eps=norm.eps)


def _no_equivalent(part: Any) -> Exception:
    return config_error([Wrong("", f"a {type(part).__name__} registered here has no native equivalent")])
