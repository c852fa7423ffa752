"""An encoder with a decoder that reads it."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import ConfigError, ShapeError, did_you_mean
from variform.ops.drop_tokens import drop_tokens
from variform.parts.kinds import Model, State

Size = Annotated[int, Field(gt=0)]
_DECODER_STREAMS = (
    *("positions", "segments", "mask", "condition", "injected", "prefix", "prefix_valid", "hidden"),
    *("further_ids", "embedding_options", "added", "bias", "passes", "exit"),
)


@register("encoder_decoder")
class EncoderDecoder(Model):
    """An encoder whose hidden states are the decoder's `context` (Vaswani et al. 2017, arXiv:1706.03762).

    Shapes:
        source: the encoder's inputs; target: the decoder's inputs, [B, L] -> [B, L, vocab_size]

    Args:
        encoder: a model without a head, or whose head is not used.
        decoder: a model with cross attention.
        dim: features, for both.
        heads: number of attention heads, for both.
        vocab_size: number of different tokens, for both.
        init_std: standard deviation of initial weights, for both.
        context_dropout: part of the encoder's hidden states that the decoder does not see, drawn for each row, in
            training (Perceiver AR, Hawthorne et al. 2022, arXiv:2202.07765).
    """

    def __init__(
        self,
        encoder: Model,
        decoder: Model,
        dim: Size | None = INHERIT,
        heads: Size | None = INHERIT,
        vocab_size: Size | None = INHERIT,
        init_std: Annotated[float, Field(gt=0)] | None = INHERIT,
        context_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.context_dropout = context_dropout

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """The decoder's context has the encoder's features."""
        return {"dim_context": facts.get("dim")} if slot == "decoder" and facts.get("dim") else {}

    @classmethod
    def steps(cls, slot: str) -> bool:
        """The encoder reads its whole input at once."""
        return slot != "encoder"

    def example_inputs(self, batch: int, length: int | None = None) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """A source and a target of `length` tokens, or as many as each side takes."""
        (source, *_), _ = self.encoder.example_inputs(batch, _at_most(length, self.encoder))
        (target, *_), _ = self.decoder.example_inputs(batch, _at_most(length, self.decoder))
        return (source, target), {}

    def example_state(self, batch: int, max_len: int | None = None) -> State:
        """Decode state that has read a source as long as the target may become."""
        (source, _), _ = self.example_inputs(batch, max_len)
        return self.init_state(batch, max_len, source=source)

    def forward(
        self,
        source: Tensor | None,
        target: Tensor,
        *,
        source_valid: Tensor | None = None,
        source_condition: Tensor | None = None,
        valid: Tensor | None = None,
        state: State | None = None,
        losses: bool = False,
        **streams: Any,
    ) -> Any:
        """Encode `source`, decode `target`; with a state, `source` may be None (it was encoded by `init_state`).

        Args:
            source: the encoder's inputs.
            target: the decoder's inputs.
            source_valid: [B, Ls] bool, False at padding of the source.
            source_condition: of the encoder's adaptive parts, [B, C] or [B, Ls, C].
            valid: [B, L] bool, False at padding of the target.
            state: decode state; the result is then (output, new state).
            losses: return (output, losses); see `Transformer.forward`. The encoder's come first.
            **streams: further streams of the decoder (`positions`, `mask`, `segments`).

        Raises:
            ShapeError: a size, dtype or length that does not fit; a stream that is not known or not read; a source
                beside a state, which has read one.
        """
        for name in streams:
            if name not in _DECODER_STREAMS:
                raise ShapeError(f"an encoder-decoder takes no {name!r}; {did_you_mean(name, _DECODER_STREAMS)}")
        if state is not None:
            self._check_state(state, source, source_valid, source_condition)
            if losses:
                raise ShapeError("losses belong to whole sequences: they are not told while decoding with a state")
            out, new = self.decoder(target, valid=valid, state=state["decoder"], **streams)
            return out, {"decoder": new}
        if not losses:
            context, seen = self.dropped(self.encode(source, source_valid, source_condition), source_valid)
            return self.decoder(target, valid=valid, context=context, context_mask=seen, **streams)
        context, first = self.encoder(
            _needed(source), **_sides(source_valid, source_condition), hidden=True, losses=True
        )
        context, seen = self.dropped(context, source_valid)
        more = {"context": context, "context_mask": seen, **streams}
        out, second = self.decoder(target, valid=valid, losses=True, **more)
        return out, {name: torch.cat([t[name] for t in (first, second) if name in t]) for name in {**first, **second}}

    @property
    def max_seq_len(self) -> int | None:
        """The longest target."""
        longest: int | None = getattr(self.decoder, "max_seq_len", None)
        return longest

    @property
    def vocab_size(self) -> int | None:
        """The number of different target tokens."""
        size: int | None = getattr(self.decoder, "vocab_size", None)
        return size

    def encode(self, source: Tensor | None, valid: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """The encoder's hidden states, [B, Ls, dim]."""
        context: Tensor = self.encoder(_needed(source), **_sides(valid, condition), hidden=True)
        return context

    def init_state(
        self,
        batch: int,
        max_len: int | None = None,
        *,
        bucket: int = 0,
        ahead: int = 0,
        source: Tensor | None = None,
        source_valid: Tensor | None = None,
        source_condition: Tensor | None = None,
        condition: Tensor | None = None,
        passes: int | None = None,
        **streams: Any,
    ) -> State:
        """Decode state that has read `source`; it keeps a `condition` and `passes` as `Transformer.init_state` does."""
        if streams:
            taken = "source, source_valid, source_condition, condition and passes"
            raise ConfigError(f"an encoder-decoder's state takes {taken}, not {', '.join(streams)}")
        context = self.encode(source, source_valid, source_condition)
        more: dict[str, Any] = {} if source_valid is None else {"context_mask": source_valid}
        if condition is not None:
            more["condition"] = condition
        if passes is not None:
            more["passes"] = passes
        if ahead:
            more["ahead"] = ahead
        return {"decoder": self.decoder.init_state(batch, max_len, bucket=bucket, context=context, **more)}

    def dropped(self, context: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the decoder sees of a context: in training, a part of its tokens that is drawn for each row.

        Shapes:
            context: [B, L, dim], valid: [B, L] -> [B, N, dim], [B, N]; N = max(1, floor(L (1 - context_dropout)))
        """
        if not self.training or not self.context_dropout:
            return context, valid
        return drop_tokens(context, valid, self.context_dropout)

    @staticmethod
    def _check_state(state: Any, source: Any, source_valid: Any, source_condition: Any) -> None:
        if not isinstance(state, dict) or "decoder" not in state:
            raise ShapeError("this is no decode state of an encoder-decoder; make one with init_state")
        given = {"source": source, "source_valid": source_valid, "source_condition": source_condition}
        for name, value in given.items():
            if value is not None:
                raise ShapeError(f"the decode state has read the source already: give {name}=None")


def _sides(valid: Tensor | None, condition: Tensor | None) -> dict[str, Any]:
    """The encoder's side inputs."""
    return {"valid": valid} if condition is None else {"valid": valid, "condition": condition}


def _needed(source: Tensor | None) -> Tensor:
    if source is None:
        raise ShapeError("a source is needed, unless a decode state that has read it is given")
    return source


def _at_most(length: int | None, model: Model) -> int | None:
    limit: int | None = getattr(model, "max_seq_len", None)
    return length if length is None or limit is None else min(length, limit)
