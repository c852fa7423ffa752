"""What encoder and decoder blocks have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.xformers.building import build_part
from variform.dialects.xformers.components.attention.masking import AttMask, read_padding
from variform.dialects.xformers.components.feedforward import FEEDFORWARD_REGISTRY, Feedforward
from variform.dialects.xformers.components.multi_head_config import build_multi_head_attention
from variform.dialects.xformers.components.multi_head_dispatch import MultiHeadDispatch
from variform.dialects.xformers.components.patch_embedding import build_patch_embedding
from variform.dialects.xformers.components.positional_embedding import POSITION_EMBEDDING_REGISTRY
from variform.dialects.xformers.components.positional_embedding.base import PlacedEmbedding
from variform.dialects.xformers.components.residual import (
    Branch,
    PostNorm,
    PreNorm,
    Residual,
    ResidualNormStyle,
    get_deepnorm_coefficients,
    get_normalization_layer,
)
from variform.dialects.xformers.errors import CallError, Wrong, below, config_error
from variform.dialects.xformers.factory.block_configs import LayerPosition, xFormerBlockConfig
from variform.dialects.xformers.factory.reversing import Given, Step, run_reversible
from variform.errors import ShapeError
from variform.parts.embedding.features import behind_class_tokens


class Block(nn.Module):
    """What encoder and decoder blocks have in common: embedding, wrappers, feedforward, final norm."""

    wrap_att: nn.Module
    wrap_ff: nn.Module

    def __init__(
        self, config: xFormerBlockConfig, layer_position: LayerPosition | None, residual_scale: float | None
    ) -> None:
        super().__init__()
        self.dim_model = config.dim_model
        self.num_layers = config.num_layers
        self.residual_norm_style = config.residual_norm_style
        self.reversible = config.reversible
        self.final_norm: nn.Module | None = None
        self.layer_position = layer_position or config.layer_position
        self.dropped: tuple[str, ...] = ()
        patches = getattr(config, "patch_embedding_config", None)
        self.patch_emb = None if patches is None else build_patch_embedding(patches)
        self.pose_encoding = self._embedding(config)
        if residual_scale is None and config.residual_norm_style == ResidualNormStyle.DeepNorm:
            coefficients, _ = get_deepnorm_coefficients(config.num_layers, 0)
            assert coefficients is not None
            residual_scale = coefficients.alpha
        self._scale = residual_scale

    @property
    def mha(self) -> MultiHeadDispatch:
        """The multi-head attention to the sequence itself, inside its wrappers."""
        heads = innermost(self.wrap_att)
        assert isinstance(heads, MultiHeadDispatch)
        return heads

    @property
    def feedforward(self) -> Feedforward:
        """The feedforward, inside its wrappers."""
        part = innermost(self.wrap_ff)
        assert isinstance(part, Feedforward)
        return part

    def __repr__(self) -> str:
        """The tree as upstream printed it: attention and feedforward alone, then in their wrappers."""
        shown = nn.Module()
        shown._get_name = lambda: type(self).__name__  # type: ignore[method-assign]
        inner = {"mha": self.mha, "feedforward": self.feedforward}
        for name, child in self.named_children():
            if name == "wrap_att":
                for alone, part in inner.items():
                    shown.add_module(alone, part)
            shown.add_module(name, child)
        return repr(shown)

    def _describe_parts(self) -> None:
        """The attributes by which callers choose what a block is given.

        Raises:
            ConfigError: the attention is causal and the feedforward is not.
        """
        attention = self.mha.attention
        if getattr(attention, "causal", False) and not self.feedforward.causal:
            message = "lets tokens depend on later ones, and the attention of the block is causal"
            raise config_error([Wrong("feedforward_config", message, type(self.feedforward).__name__)])
        self.supports_attention_mask = attention.supports_attention_mask
        self.requires_same_k_q_dimensions = attention.requires_same_k_q_dimensions
        squared = attention.requires_squared_context or self.feedforward.requires_squared_context
        self.requires_squared_context_length = squared

    def _embedding(self, config: xFormerBlockConfig) -> nn.Module | None:
        described = config.position_encoding_config
        if described is None:
            return None
        if not self.layer_position.is_first():
            self.dropped += ("position_encoding_config",)
            return None
        with below("position_encoding_config"):
            part: nn.Module = build_part(POSITION_EMBEDDING_REGISTRY, described)
        self._note("position_encoding_config", part)
        width = described.get("dim_model", config.dim_model)
        if width != config.dim_model:
            self.embedding_projector = nn.Linear(width, config.dim_model)
        return part

    def _note(self, name: str, part: Any) -> None:
        """Keep what a part of the configuration had no use for."""
        self.dropped += tuple(f"{name}.{key}" for key in part.dropped if key != "dim_model")

    def _heads(self, config: Mapping[str, Any], name: str) -> MultiHeadDispatch:
        with below(name):
            heads = build_multi_head_attention(config)
        self._note(name, heads)
        return heads

    def _feedforward(self, config: xFormerBlockConfig) -> nn.Module:
        """The feedforward in its wrappers; after it the final norm, where this is the last of pre-norm layers.

        The final norm of reversible layers stands apart: it is of the mean of both streams.
        """
        with below("feedforward_config"):
            part: nn.Module = build_part(FEEDFORWARD_REGISTRY, config.feedforward_config)
        self._note("feedforward_config", part)
        wrapped = self._wrapped(part, config)
        if config.residual_norm_style == ResidualNormStyle.Pre and self.layer_position.is_last():
            if config.reversible:
                self.final_norm = get_normalization_layer(config.normalization)(config.dim_model)
                return wrapped
            return PostNorm(config.dim_model, wrapped, config.normalization, config.use_triton)
        return wrapped

    def _wrapped(self, sublayer: nn.Module, config: xFormerBlockConfig) -> nn.Module:
        more = (config.normalization, config.use_triton)
        if config.residual_norm_style == ResidualNormStyle.Pre:
            normed = PreNorm(config.dim_model, sublayer, *more)
            return Branch(normed) if config.reversible else Residual(normed)
        inner = Branch(sublayer) if config.reversible else Residual(sublayer, self._scale)
        return PostNorm(config.dim_model, inner, *more)

    def steps(self) -> list[tuple[nn.Module, Step]]:
        """The wrapped sublayers in order, and how each is called."""
        return [(self.wrap_att, self._attend), (self.wrap_ff, self._feed)]

    def check(self, given: Given) -> None:
        """Refuse side inputs that the block has no use for.

        Raises:
            CallError: naming them.
        """

    def finish(self, x: Tensor) -> Tensor:
        """What comes after the last sublayer."""
        y: Tensor = x if self.final_norm is None else self.final_norm(x)
        return y

    def _attend(self, x: Tensor, given: Given) -> Tensor:
        more = mask_arguments(given.get("att_mask"), given.get("padding"), given.get("positions"))
        return self.wrap_att(inputs=[x, x, x], **more)  # type: ignore[no-any-return]

    def _feed(self, x: Tensor, given: Given) -> Tensor:
        padding = given.get("padding") if self.feedforward.takes_padding else None
        return self.wrap_ff(inputs=[x], **({} if padding is None else {"padding": padding}))  # type: ignore[no-any-return]

    def embed(self, x: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Inputs as features, with their padding and positions; positions count the real tokens."""
        if self.patch_emb is not None:
            if padding is not None:
                raise CallError(
                    "a patch embedding joins tokens: it takes no padding mask (input_mask, key_padding_mask)"
                )
            x = self.patch_emb(x)
        positions = None if padding is None else (padding.long().cumsum(1) - 1).clamp(min=0)
        part = self.pose_encoding
        if part is None:
            return _features(x, self.dim_model), padding, positions
        placed = isinstance(part, PlacedEmbedding)
        y = part(x, positions) if placed else part(x)
        if isinstance(part, PlacedEmbedding) and part.class_tokens:
            moved = behind_class_tokens({"positions": positions, "valid": padding}, part.class_tokens)
            positions, padding = moved["positions"], moved["valid"]
        projector = getattr(self, "embedding_projector", None)
        return (y if projector is None else projector(y)), padding, positions


def innermost(module: nn.Module) -> Any:
    """The part inside residual and norm wrappers."""
    while isinstance(module, (Residual, Branch, PreNorm, PostNorm)):
        if isinstance(module, Branch):
            module = module.branch
        else:
            module = module.layer if isinstance(module, Residual) else module.sublayer
    return module


def run_blocks(
    blocks: Sequence[Block], x: Tensor, padding: Tensor | None, given: Given
) -> tuple[Tensor, Tensor | None]:
    """Blocks in order; those that are reversible, which all are or none, as sequences between patch embeddings.

    Args:
        blocks: of one side of a model.
        x: the input of the first.
        padding: bool, which tokens are real.
        given: side inputs by name, None where there is none.

    Returns:
        the output, and its padding.
    """
    for block in blocks:
        block.check(given)
    for run in _runs(blocks):
        x, padding, positions = run[0].embed(x, padding)
        own = {**given, "padding": padding, "positions": positions}
        steps = [step for block in run for step in block.steps()]
        if run[0].reversible:
            x = run_reversible(steps, x, own)
        else:
            for _, step in steps:
                x = step(x, own)
        x = run[-1].finish(x)
    return x, padding


def _runs(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Blocks by one, or reversible ones together up to where patches are embedded."""
    run: list[Block] = []
    for block in blocks:
        if run and not (block.reversible and block.patch_emb is None):
            yield run
            run = []
        run.append(block)
    yield run


def padding_of(x: Tensor, mask: Tensor | None, name: str) -> Tensor | None:
    """A caller's mask over the positions of `x`, as bool."""
    if mask is None:
        return None
    if x.dim() == 4:
        raise CallError(f"images have no padding: {name} cannot be given with them")
    return read_padding(mask, x.shape[0], x.shape[1], name)


def mask_arguments(att_mask: AttMask | None, padding: Tensor | None, positions: Tensor | None) -> dict[str, Any]:
    """The keyword arguments of a wrapped attention that are there."""
    given = {"att_mask": att_mask, "key_padding_mask": padding, "positions": positions}
    return {name: value for name, value in given.items() if value is not None}


def _features(x: Tensor, dim: int) -> Tensor:
    if not torch.is_floating_point(x) or x.dim() != 3 or x.shape[-1] != dim:
        raise ShapeError(
            f"without a position embedding the input is features of shape [batch, length, {dim}], "
            f"not {x.dtype} {list(x.shape)}; position_encoding_config={{'name': 'vocab', ...}} reads token ids"
        )
    return x
