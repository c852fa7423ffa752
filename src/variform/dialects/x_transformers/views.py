"""What models around `attn_layers` have in common: the stack that they hold, and views of themselves for one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Self

from torch import Tensor, nn

from variform.core.spec import Spec
from variform.dialects.x_transformers.attention_layers import AttentionLayers
from variform.dialects.x_transformers.causality import layers_with
from variform.dialects.x_transformers.changes import Changes, layers_changed
from variform.dialects.x_transformers.errors import InputError
from variform.dialects.x_transformers.placed import embedding_placed
from variform.dialects.x_transformers.reorder import Repeats, layers_in_order
from variform.dialects.x_transformers.rotations import Angles, layers_turned
from variform.errors import ConfigError
from variform.stack.decodable import refuse_undecodable
from variform.stack.model import Transformer
from variform.stack.tapped import Change, changed, replaced, tapped


class AroundLayers(nn.Module):
    """A model of the core, `native`, which holds the very stack that was passed in, `attn_layers`."""

    native: Transformer
    attn_layers: AttentionLayers
    embeds: ClassVar[bool] = True
    """Whether it has vectors of tokens, and no features of the caller's."""
    for_one_call: bool = False
    """Whether it is a view whose answers no later call can go on from."""

    def _hold_native(self, native: Transformer, layers: AttentionLayers) -> None:
        self.native = native
        # Not registered: its parameters are the native model's, and must not be listed twice.
        self.__dict__["attn_layers"] = layers

    @property
    def spec(self) -> Spec:
        """The full description of the model."""
        return self.native.spec

    @property
    def unit_offset(self) -> bool:
        """Whether upstream's checkpoints of this model store the gains of norms less one."""
        return self.attn_layers.unit_offset

    @property
    def can_cache_kv(self) -> bool:
        """Whether inputs can be read one after another with cached keys and values."""
        try:
            refuse_undecodable(self.native)
        except ConfigError:
            return False
        return self.native.causal

    def reordered(self, order: Sequence[int] | None, repeat_blocks: Repeats | None = None) -> Self:
        """A view of this model, of the same modules, in which the sublayers run in another order."""
        return self._with(layers_in_order(self.attn_layers, order, repeat_blocks))

    def with_causality(self, causal: bool) -> Self:
        """A view of this model, of the same modules, whose self-attention looks back alone, or not."""
        layers = layers_with(self.attn_layers, causal)
        return self if layers is self.attn_layers else self._with(layers, for_one_call=True)

    def with_angles(self, rotary: Angles | None, polar: Angles | None) -> Self:
        """A view of this model, of the same modules, in which self-attention goes by given angles."""
        return self._with(layers_turned(self.attn_layers, rotary, polar), for_one_call=True)

    def with_positions(self, features: Tensor, added: Tensor | None, rows: int) -> tuple[Self, Tensor | None]:
        """A view of this model, of the same modules, whose absolute positions are given, and what else is to be added.

        Args:
            features: [L, emb_dim] or [B, L, emb_dim].
            added: [B, L, emb_dim] features that are added to the tokens' anyway.
            rows: B.

        Raises:
            InputError: this model has no vectors of tokens.
        """
        if not self.embeds:
            raise InputError(
                "pos is integers: features of positions are added to vectors of tokens, which are not here"
            )
        view = self._with(self.attn_layers, for_one_call=True)
        placed = embedding_placed(view.native.embedding, features)
        if placed is None:
            whole = features.expand(rows, *features.shape[-2:])
            return view, whole if added is None else whole + added
        return changed(view, native=changed(view.native, embedding=placed)), added

    def with_changes(self, blocks: Changes | None, tokens: Change | None = None) -> Self:
        """A view of this model, of the same modules, in which features are changed on their way.

        Args:
            blocks: what is done to the inputs of blocks.
            tokens: what is done to the vectors of tokens, which are the input of block 1.

        Raises:
            InputError: blocks that there are not; two functions for the vectors of tokens, or one where there are none.
        """
        if not self.embeds:
            if tokens is not None:
                raise InputError("transform_token_embeds is for vectors of tokens, and this model has none")
        elif callable(blocks):
            tokens = tokens or partial(blocks, 1)
        elif blocks is not None:
            if tokens is not None and 1 in blocks:
                raise InputError("transform_token_embeds and block 1 of transform_block_inputs are the same; give one")
            tokens = tokens or blocks.get(1)
            blocks = {number: change for number, change in blocks.items() if number != 1}
        view = self._with(layers_changed(self.attn_layers, blocks), for_one_call=True)
        return view if tokens is None else changed(view, native=tapped(view.native, tokens))

    def _with(self, layers: AttentionLayers, for_one_call: bool = False) -> Self:
        """A view of this model around a view of its stack."""
        view = changed(self, native=replaced(self.native, self.attn_layers.native, layers.native))
        view.__dict__.update(attn_layers=layers, for_one_call=for_one_call or self.for_one_call)
        return view
