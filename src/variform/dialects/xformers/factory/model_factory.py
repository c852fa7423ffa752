"""Whole models: stacks of encoder and decoder blocks."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import Any

from torch import Tensor, nn

from variform.core.spec import Spec
from variform.dialects.xformers.components import ResidualNormStyle
from variform.dialects.xformers.components.attention.masking import AttMask, both
from variform.dialects.xformers.components.residual import DeepNormCoefficients, get_deepnorm_coefficients
from variform.dialects.xformers.errors import CallError, Wrong, below, config_error
from variform.dialects.xformers.factory.block import padding_of, run_blocks
from variform.dialects.xformers.factory.block_configs import (
    LayerPosition,
    xFormerBlockConfig,
    xFormerDecoderConfig,
    xFormerEncoderConfig,
)
from variform.dialects.xformers.factory.block_factory import xFormerDecoderBlock, xFormerEncoderBlock
from variform.dialects.xformers.factory.legacy import as_upstream
from variform.dialects.xformers.factory.model_config import (
    Stacks,
    each_stack,
    read_stacks,
    unknown_settings,
    xFormerConfig,
    xFormerStackConfig,
)
from variform.dialects.xformers.factory.native import decoder_spec, encoder_spec
from variform.dialects.xformers.factory.weight_init import initialise, xFormerWeightInit
from variform.stack.encoder_decoder import EncoderDecoder

Coefficients = tuple[DeepNormCoefficients | None, DeepNormCoefficients | None]


class xFormer(nn.Module):
    """An encoder, a decoder, or an encoder whose output the decoder attends to.

    Shapes:
        src: what the encoder's position embedding takes, [B, S] token ids say, or [B, S, dim_model]
        tgt: likewise for the decoder -> [B, St, dim_model]; without a decoder [B, S, dim_model]

    Args:
        stack_configs: the configurations of the stacks, as `xFormerConfig` takes them.
        tie_embedding_weights: encoder and decoder share their position embedding, token vectors included.
        weight_init: the scheme of the initial weights.

    Attributes:
        dropped: settings that had no use, by path.
    """

    def __init__(
        self,
        stack_configs: Any,
        tie_embedding_weights: bool = False,
        weight_init: xFormerWeightInit | str = xFormerWeightInit.ViT,
        **unknown: Any,
    ) -> None:
        super().__init__()
        stacks, problems = read_stacks(stack_configs)
        problems += unknown_settings(unknown)
        if problems:
            raise config_error(problems)
        self.dropped: tuple[str, ...] = ()
        kinds = (xFormerEncoderConfig, xFormerDecoderConfig)
        chosen = [[item for item in each_stack(stacks) if isinstance(item[1], kind)] for kind in kinds]
        coefficients = _deepnorm(stacks, *(sum(stack.num_layers for _, stack in side) for side in chosen))
        self.encoders = nn.ModuleList(self._blocks(xFormerEncoderBlock, chosen[0], coefficients[0]))
        self.decoders = nn.ModuleList(self._blocks(xFormerDecoderBlock, chosen[1], coefficients[1]))
        self.tied = tie_embedding_weights
        if tie_embedding_weights:
            self._tie()
        for blocks, side in zip((self.encoders, self.decoders), coefficients, strict=True):
            for block in blocks:
                initialise(block, xFormerWeightInit(weight_init), 1.0 if side is None else side.beta)

    @classmethod
    def from_config(cls, config: xFormerConfig) -> xFormer:
        """Build from a configuration."""
        return cls(config.stack_configs, config.tie_embedding_weights, config.weight_init)

    def _blocks(
        self, block: Any, stacks: Sequence[tuple[str, xFormerBlockConfig]], deepnorm: DeepNormCoefficients | None
    ) -> list[Any]:
        """One module a layer, each with weights of its own."""
        built: list[Any] = []
        total = sum(stack.num_layers for _, stack in stacks)
        for path, stack in stacks:
            for layer in range(stack.num_layers):
                place = LayerPosition(first=not built, last=len(built) == total - 1)
                with below(path):
                    own = _without_patches(stack) if layer else stack
                    built.append(block(own, place, None if deepnorm is None else deepnorm.alpha))
                if stack is not stacks[0][1] or len(built) == 1:
                    self._note(f"{path}.{key}" for key in built[-1].dropped)
        return built

    def _note(self, paths: Any) -> None:
        self.dropped = tuple(dict.fromkeys((*self.dropped, *paths)))

    def _tie(self) -> None:
        """Let the encoder use the decoder's position embedding."""
        sides = [side[0] if len(side) else None for side in (self.encoders, self.decoders)]
        if any(block is not None and block.reversible for block in sides):
            message = "layers that are reversible have embeddings of their own"
            raise config_error([Wrong("tie_embedding_weights", message, True, like=AssertionError)])
        parts: list[Any] = [getattr(block, "pose_encoding", None) for block in sides]
        if parts[0] is None or parts[1] is None:
            message = "an encoder and a decoder with position embeddings are needed"
            raise config_error([Wrong("tie_embedding_weights", message, True, like=AssertionError)])
        shapes = [{name: tuple(tensor.shape) for name, tensor in part.state_dict().items()} for part in parts]
        if type(parts[0]) is not type(parts[1]) or shapes[0] != shapes[1]:
            message = f"the position embeddings differ: {shapes[0]} and {shapes[1]}"
            raise config_error([Wrong("tie_embedding_weights", message, True)])
        self.encoders[0].pose_encoding = parts[1]

    def forward(
        self,
        src: Tensor,
        tgt: Tensor | None = None,
        encoder_input_mask: Tensor | None = None,
        decoder_input_mask: Tensor | None = None,
        *,
        encoder_att_mask: AttMask | None = None,
        decoder_att_mask: AttMask | None = None,
        cross_att_mask: AttMask | None = None,
        encoder_key_padding_mask: Tensor | None = None,
        decoder_key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Run the model.

        Args:
            src: the encoder's input. Without an encoder, the memory that the decoder attends to, or its input.
            tgt: the decoder's input; `src` by default.
            encoder_input_mask: [B, S], which source tokens are real, for the encoder and for the attention to it.
            decoder_input_mask: [B, St], which target tokens are real.
            encoder_att_mask: what may attend to what in the encoder.
            decoder_att_mask: what may attend to what within the target.
            cross_att_mask: which target position may attend to which source position.
            encoder_key_padding_mask: another name of `encoder_input_mask`; both together must allow a token.
            decoder_key_padding_mask: another name of `decoder_input_mask`; both together must allow a token.

        Raises:
            CallError: an input or mask for a side the model does not have, or one an attention cannot honour.
        """
        source = _padding(src, encoder_input_mask, encoder_key_padding_mask, "encoder")
        if not len(self.decoders):
            _refuse(
                "decoder",
                tgt=tgt,
                decoder_input_mask=decoder_input_mask,
                decoder_att_mask=decoder_att_mask,
                cross_att_mask=cross_att_mask,
                decoder_key_padding_mask=decoder_key_padding_mask,
            )
            return self._encode(src, source, encoder_att_mask)[0]
        target = src if tgt is None else tgt
        padding = _padding(target, decoder_input_mask, decoder_key_padding_mask, "decoder")
        memory: Tensor | None = None
        if len(self.encoders):
            memory, source = self._encode(src, source, encoder_att_mask)
        else:
            _refuse("encoder", encoder_att_mask=encoder_att_mask)
            memory = None if tgt is None else src
        given = {
            "memory": memory,
            "memory_padding": source,
            "att_mask": decoder_att_mask,
            "cross_mask": cross_att_mask,
        }
        blocks: Any = self.decoders
        return run_blocks(blocks, target, padding, given)[0]

    def _encode(self, x: Tensor, padding: Tensor | None, att_mask: AttMask | None) -> tuple[Tensor, Tensor | None]:
        blocks: Any = self.encoders
        return run_blocks(blocks, x, padding, {"att_mask": att_mask})

    def rebuild_as_upstream(self, names: Container[str]) -> None:
        """Give the model the structure that upstream built, for checkpoints that were trained in it.

        Args:
            names: the weights of the checkpoint; without that of a final norm, the norm goes.
        """
        for side in ("encoders", "decoders"):
            blocks: Any = getattr(self, side)
            for index, block in enumerate(blocks):
                as_upstream(block, f"{side}.{index}.", names)

    @property
    def spec(self) -> Spec:
        """The native model that computes the same: `vf.build(model.spec)`, `vf.describe(model)`.

        Raises:
            ConfigError: a part that was registered here alone.
        """
        encoders: Any = list(self.encoders)
        decoders: Any = list(self.decoders)
        if not decoders:
            return encoder_spec(encoders)
        if not encoders:
            return decoder_spec(decoders)
        return EncoderDecoder.spec(
            encoder=encoder_spec(encoders, self.tied),
            decoder=decoder_spec(decoders, self.tied),
            dim=encoders[0].dim_model,
        )


def _deepnorm(stacks: Stacks, encoder_layers: int, decoder_layers: int) -> Coefficients:
    first = next(each_stack(stacks))[1]
    if first.residual_norm_style != ResidualNormStyle.DeepNorm:
        return None, None
    return get_deepnorm_coefficients(encoder_layers, decoder_layers)


def _padding(x: Tensor, first: Tensor | None, second: Tensor | None, side: str) -> Tensor | None:
    return both(padding_of(x, first, f"{side}_input_mask"), padding_of(x, second, f"{side}_key_padding_mask"))


def _without_patches(stack: xFormerBlockConfig) -> xFormerBlockConfig:
    """A stack's configuration for its blocks after the first: patches are embedded once."""
    if getattr(stack, "patch_embedding_config", None) is None:
        return stack
    rest: Any = copy.copy(stack)
    rest.patch_embedding_config = None
    return rest  # type: ignore[no-any-return]


def _refuse(side: str, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise CallError(f"{name} was given, and this model has no {side}")


__all__ = ["xFormer", "xFormerConfig", "xFormerStackConfig", "xFormerWeightInit"]
