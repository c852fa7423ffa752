"""Encoder and decoder blocks built from their configurations."""

from __future__ import annotations

from torch import Tensor, nn

from variform.core.spec import Spec
from variform.dialects.xformers.components.attention.masking import AttMask, both, read_padding
from variform.dialects.xformers.components.multi_head_dispatch import MultiHeadDispatch
from variform.dialects.xformers.components.simplicial_embedding import SimplicialEmbedding
from variform.dialects.xformers.errors import CallError, ConfigTypeError
from variform.dialects.xformers.factory.block import Block, innermost, mask_arguments, padding_of, run_blocks
from variform.dialects.xformers.factory.block_configs import (
    LayerPosition,
    xFormerDecoderConfig,
    xFormerEncoderConfig,
)
from variform.dialects.xformers.factory.reversing import Given, Step
from variform.dialects.xformers.utils import same_tensor


class xFormerEncoderBlock(Block):
    """Self-attention and a feedforward, each with its residual and norm.

    Shapes:
        query: [B, S, dim_model], or what the position embedding takes, [B, S] token ids say -> [B, S, dim_model]

    Args:
        config: the configuration.
        layer_position: where the block stands among the encoder's; the configuration's own by default.
        residual_scale: DeepNorm's alpha; from `num_layers` by default.
    """

    def __init__(
        self,
        config: xFormerEncoderConfig,
        layer_position: LayerPosition | None = None,
        residual_scale: float | None = None,
    ) -> None:
        if not isinstance(config, xFormerEncoderConfig):
            raise ConfigTypeError("an encoder block is built from an xFormerEncoderConfig", value=config)
        super().__init__(config, layer_position, residual_scale)
        mha = self._heads(config.multi_head_config, "multi_head_config")
        self.causal = getattr(mha.attention, "causal", False)
        self.wrap_att = self._wrapped(mha, config)
        self.wrap_ff = self._feedforward(config)
        self._describe_parts()
        self.simplicial_embedding: SimplicialEmbedding | None = None
        if config.simplicial_embeddings is not None and self.layer_position.is_last():
            self.simplicial_embedding = SimplicialEmbedding(**config.simplicial_embeddings)

    @classmethod
    def from_config(cls, config: xFormerEncoderConfig) -> xFormerEncoderBlock:
        """Build from a configuration."""
        return cls(config)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        att_mask: AttMask | None = None,
        key_padding_mask: Tensor | None = None,
        input_mask: Tensor | None = None,
    ) -> Tensor:
        """Transform a sequence.

        Args:
            query: the sequence.
            key: the query again, or nothing: a block attends to its own input.
            value: likewise.
            att_mask: what may attend to what; see `read_att_mask`.
            key_padding_mask: [B, S], which tokens are real; see `read_padding`. Padding changes no real token.
            input_mask: another name of `key_padding_mask`; both together must allow a token.
        """
        for name, given in (("key", key), ("value", value)):
            if given is not None and not same_tensor(given, query):
                raise CallError(
                    f"the second and third argument are {name}s, which in self-attention are the query itself; "
                    "masks are given by keyword: att_mask=, key_padding_mask=, input_mask="
                )
        padding = both(
            padding_of(query, key_padding_mask, "key_padding_mask"), padding_of(query, input_mask, "input_mask")
        )
        return run_blocks([self], query, padding, {"att_mask": att_mask})[0]

    def finish(self, x: Tensor) -> Tensor:
        """The final norm, and simplicial embeddings."""
        x = super().finish(x)
        return x if self.simplicial_embedding is None else self.simplicial_embedding(x)

    @property
    def spec(self) -> Spec:
        """The native model of this one block.

        Raises:
            ConfigError: a part without a native equivalent.
        """
        from variform.dialects.xformers.factory.native import encoder_spec

        return encoder_spec([self])


class xFormerDecoderBlock(Block):
    """Self-attention, attention to the encoder's output and a feedforward, each with its residual and norm.

    Shapes:
        target: [B, S, dim_model], or what the position embedding takes -> [B, S, dim_model]
        memory: [B, Sm, dim_model]

    Args:
        config: the configuration.
        layer_position: where the block stands among the decoder's; the configuration's own by default.
        residual_scale: DeepNorm's alpha; from `num_layers` by default.
    """

    def __init__(
        self,
        config: xFormerDecoderConfig,
        layer_position: LayerPosition | None = None,
        residual_scale: float | None = None,
    ) -> None:
        if not isinstance(config, xFormerDecoderConfig):
            raise ConfigTypeError("a decoder block is built from an xFormerDecoderConfig", value=config)
        super().__init__(config, layer_position, residual_scale)
        mha = self._heads(config.multi_head_config_masked, "multi_head_config_masked")
        self.causal_attention = getattr(mha.attention, "causal", False)
        self.wrap_att = self._wrapped(mha, config)
        self.wrap_cross: nn.Module | None = None
        if config.multi_head_config_cross is not None:
            cross = self._heads(config.multi_head_config_cross, "multi_head_config_cross")
            self.wrap_cross = self._wrapped(cross, config)
        self.wrap_ff = self._feedforward(config)
        self._describe_parts()

    @property
    def cross_mha(self) -> MultiHeadDispatch | None:
        """The multi-head attention to the memory, inside its wrappers."""
        return None if self.wrap_cross is None else innermost(self.wrap_cross)

    @classmethod
    def from_config(cls, config: xFormerDecoderConfig) -> xFormerDecoderBlock:
        """Build from a configuration."""
        return cls(config)

    def forward(
        self,
        target: Tensor,
        memory: Tensor | None = None,
        encoder_att_mask: AttMask | None = None,
        decoder_att_mask: AttMask | None = None,
        input_mask: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Transform a target, looking at a memory.

        Args:
            target: the sequence.
            memory: the encoder's output; needed unless the block has no cross attention.
            encoder_att_mask: which target position may attend to which of the memory.
            decoder_att_mask: what may attend to what within the target.
            input_mask: [B, S], which target tokens are real; see `read_padding`.
            key_padding_mask: another name of `input_mask`; both together must allow a token.
            memory_mask: [B, Sm], which tokens of the memory are real.
        """
        padding = both(
            padding_of(target, key_padding_mask, "key_padding_mask"), padding_of(target, input_mask, "input_mask")
        )
        if memory_mask is not None and memory is not None:
            memory_mask = read_padding(memory_mask, memory.shape[0], memory.shape[1], "memory_mask")
        given = {
            "memory": memory,
            "memory_padding": memory_mask,
            "att_mask": decoder_att_mask,
            "cross_mask": encoder_att_mask,
        }
        return run_blocks([self], target, padding, given)[0]

    def steps(self) -> list[tuple[nn.Module, Step]]:
        """The wrapped sublayers in order, that to the memory second."""
        attend, feed = super().steps()
        return [attend, feed] if self.wrap_cross is None else [attend, (self.wrap_cross, self._look), feed]

    def check(self, given: Given) -> None:
        """A memory is there, or none and nothing about one."""
        if self.wrap_cross is not None and given["memory"] is None:
            raise CallError("this decoder block attends to a memory: pass the encoder's output")
        if self.wrap_cross is None and any(
            given[name] is not None for name in ("memory", "memory_padding", "cross_mask")
        ):
            raise CallError("this decoder block has no cross attention: it takes no memory and no mask for one")

    def _look(self, x: Tensor, given: Given) -> Tensor:
        assert self.wrap_cross is not None
        memory, more = given["memory"], mask_arguments(given["cross_mask"], given["memory_padding"], None)
        return self.wrap_cross(inputs=[x, memory, memory], **more)  # type: ignore[no-any-return]

    @property
    def spec(self) -> Spec:
        """The native model of this one block; the memory is its stream `context`.

        Raises:
            ConfigError: a part without a native equivalent.
        """
        from variform.dialects.xformers.factory.native import decoder_spec

        return decoder_spec([self])
