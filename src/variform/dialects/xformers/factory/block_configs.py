"""The configuration of a block: typed, checked whole when it is made, and never changed afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag, StrEnum
from typing import Annotated, Any

from pydantic import Field

from variform.dialects.xformers.components import NormalizationType, ResidualNormStyle
from variform.dialects.xformers.factory.reader import REQUIRED, PartConfig, Reader

Size = Annotated[int, Field(gt=0)]


class LayerPositionBitmask(IntFlag):
    """Where a layer stands among those of its kind."""

    First = 0b01
    Last = 0b10
    Default = 0b11


class LayerPosition:
    """Whether a layer is the first, the last, neither or both.

    Args:
        first: it is the first.
        last: it is the last.
    """

    def __init__(self, first: bool = True, last: bool = True) -> None:
        self.bitmask = LayerPositionBitmask.First * first | LayerPositionBitmask.Last * last

    def is_first(self) -> bool:
        """Whether no layer comes before."""
        return bool(self.bitmask & LayerPositionBitmask.First)

    def is_last(self) -> bool:
        """Whether no layer comes after."""
        return bool(self.bitmask & LayerPositionBitmask.Last)

    def mark_not_first(self) -> None:
        """A layer comes before."""
        self.bitmask &= ~LayerPositionBitmask.First

    def mark_not_last(self) -> None:
        """A layer comes after."""
        self.bitmask &= ~LayerPositionBitmask.Last


class BlockType(StrEnum):
    """What a block is."""

    Encoder = "encoder"
    Decoder = "decoder"


@dataclass(init=False)
class xFormerBlockConfig:
    """What encoder and decoder blocks have in common.

    Args:
        dim_model: features.
        feedforward_config: describes the feedforward; `dim_model` is filled in.
        position_encoding_config: describes the position embedding of the first layer; None for features as input.
        block_type: "encoder" or "decoder".
        residual_norm_style: "pre", "post" or "deepnorm".
        normalization: "layernorm" or "skip".
        reversible: the blocks keep nothing each for the backward pass (arXiv:1707.04585): two streams begin as the
            input, each sublayer in turn adds its branch of the one to the other, and the result is their mean.
        num_layers: how many blocks of this configuration follow one another.
        layer_position: where a block that is built on its own stands; first and last by default.
        use_triton: changes nothing; kernels are chosen by the library.

    Raises:
        ConfigError: with every mistake of the whole configuration and its path.
    """

    dim_model: int
    feedforward_config: PartConfig
    position_encoding_config: PartConfig | None
    block_type: BlockType
    residual_norm_style: ResidualNormStyle
    normalization: NormalizationType
    layer_position: LayerPosition
    use_triton: bool
    reversible: bool
    num_layers: int

    def _read(self, read: Reader, block_type: BlockType, given: dict[str, Any]) -> None:
        self.dim_model = read.value("dim_model", Size, given.pop("dim_model"))
        self.block_type = block_type
        kind = given.pop("block_type", block_type)
        if kind != block_type:
            read.wrong("block_type", f"this configures an {block_type.value}", value=kind, like=AssertionError)
        style = given.pop("residual_norm_style")
        self.residual_norm_style = read.value("residual_norm_style", ResidualNormStyle, style)
        self.normalization = read.value("normalization", NormalizationType, given.pop("normalization"))
        self.use_triton = read.value("use_triton", bool, given.pop("use_triton"))
        self.num_layers = read.value("num_layers", Size, given.pop("num_layers", 1))
        self.reversible = read.value("reversible", bool, given.pop("reversible", False))
        if self.reversible is True and self.residual_norm_style == ResidualNormStyle.DeepNorm:
            message = "reversible layers add to the stream, and DeepNorm scales it"
            read.wrong("reversible", message, hint="residual_norm_style 'pre' or 'post'", like=AssertionError)
        self.layer_position = read.value("layer_position", LayerPosition, given.pop("layer_position", LayerPosition()))
        self.feedforward_config = read.feedforward(given.pop("feedforward_config"), self.dim_model)
        self.position_encoding_config = read.position(given.pop("position_encoding_config"), self.dim_model)
        read.unknown(given, self.known_keys())

    @classmethod
    def known_keys(cls) -> tuple[str, ...]:
        """All keys of a configuration."""
        return tuple(name for base in reversed(cls.__mro__) for name in getattr(base, "__annotations__", {}))


@dataclass(init=False)
class xFormerEncoderConfig(xFormerBlockConfig):
    """The configuration of an encoder block; see `xFormerBlockConfig` for the other keys.

    Args:
        multi_head_config: describes the attention; `dim_model` is filled in.
        simplicial_embeddings: `L` and `temperature` of simplicial embeddings after the last layer.
        patch_embedding_config: describes a patch embedding in front of the first block; `out_channels` is filled in.
    """

    multi_head_config: PartConfig
    simplicial_embeddings: dict[str, Any] | None
    patch_embedding_config: dict[str, Any] | None

    def __init__(
        self,
        dim_model: int = REQUIRED,
        feedforward_config: Mapping[str, Any] = REQUIRED,
        multi_head_config: Mapping[str, Any] = REQUIRED,
        position_encoding_config: Mapping[str, Any] | None = None,
        residual_norm_style: ResidualNormStyle | str = ResidualNormStyle.Post,
        normalization: NormalizationType | str = NormalizationType.LayerNorm,
        use_triton: bool = True,
        simplicial_embeddings: Mapping[str, Any] | None = None,
        patch_embedding_config: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        read = Reader()
        more |= {
            "dim_model": dim_model,
            "feedforward_config": feedforward_config,
            "position_encoding_config": position_encoding_config,
            "residual_norm_style": residual_norm_style,
            "normalization": normalization,
            "use_triton": use_triton,
        }
        self._read(read, BlockType.Encoder, more)
        self.multi_head_config = read.heads("multi_head_config", multi_head_config, self.dim_model)
        self.simplicial_embeddings = read.simplicial(simplicial_embeddings, self.dim_model)
        self.patch_embedding_config = read.patches(patch_embedding_config, self.dim_model)
        read.finish()


@dataclass(init=False)
class xFormerDecoderConfig(xFormerBlockConfig):
    """The configuration of a decoder block; see `xFormerBlockConfig` for the other keys.

    Args:
        multi_head_config_masked: describes the attention to the target itself.
        multi_head_config_cross: describes the attention to the encoder's output; None for a block without it.
    """

    multi_head_config_masked: PartConfig
    multi_head_config_cross: PartConfig | None

    def __init__(
        self,
        dim_model: int = REQUIRED,
        feedforward_config: Mapping[str, Any] = REQUIRED,
        multi_head_config_masked: Mapping[str, Any] = REQUIRED,
        multi_head_config_cross: Mapping[str, Any] | None = REQUIRED,
        position_encoding_config: Mapping[str, Any] | None = None,
        residual_norm_style: ResidualNormStyle | str = ResidualNormStyle.Post,
        normalization: NormalizationType | str = NormalizationType.LayerNorm,
        use_triton: bool = True,
        **more: Any,
    ) -> None:
        read = Reader()
        more |= {
            "dim_model": dim_model,
            "feedforward_config": feedforward_config,
            "position_encoding_config": position_encoding_config,
            "residual_norm_style": residual_norm_style,
            "normalization": normalization,
            "use_triton": use_triton,
        }
        self._read(read, BlockType.Decoder, more)
        self.multi_head_config_masked = read.heads("multi_head_config_masked", multi_head_config_masked, self.dim_model)
        self.multi_head_config_cross = None
        if multi_head_config_cross is not None:
            self.multi_head_config_cross = read.heads(
                "multi_head_config_cross", multi_head_config_cross, self.dim_model, cross=True
            )
        read.finish()
