"""Models: embedding, stacks and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT
from variform.core.registry import register
from variform.errors import ConfigError, ShapeError, VariformError
from variform.ops.masks import Mask
from variform.parts.beside import Beside
from variform.parts.embedding.summed import SummedEmbedding
from variform.parts.kinds import Embedding, Head, Model, Rotation, Stack, State, call, holds_state
from variform.parts.memories import Memories
from variform.parts.mixer.multi_head import without_padding
from variform.parts.watch import Watch
from variform.stack.decodable import refuse_undecodable
from variform.stack.encoder_decoder import EncoderDecoder
from variform.stack.execute import ModuleList
from variform.stack.inputs import (
    UNCHECKED,
    as_mask,
    check_beside,
    check_inputs,
    check_kept,
    check_state_sizes,
    check_streams,
    check_two_way,
    misfit,
    streams_read,
)
from variform.stack.placing import place_tokens, plan_tokens
from variform.stack.remembering import check_taken, recall_of, remembered
from variform.stack.state import new_state, signature, turned

__all__ = ["EncoderDecoder", "Transformer", "losses_by_name"]

Size = Annotated[int, Field(gt=0)]


@register("transformer")
class Transformer(Model):
    """Embedding, stacks of layers, head: decoders, encoders, vision and hybrid models alike.

    The scalar fields are facts that everything below inherits.

    Shapes:
        inputs: what the embedding takes, [B, L] token ids or [B, C, H, W] images
        returns: what the head gives, [B, L, vocab_size] or [B, classes]; with a state, (that, new state); with
            `losses`, (that, the losses by name)

    Args:
        embedding: from raw inputs to [B, L, dim].
        stacks: run in order.
        head: from [B, L, dim] to the output; None returns the hidden states.
        dim: features of the residual stream.
        heads: number of attention heads.
        causal: position i depends on positions <= i only.
        max_seq_len: longest sequence; longer inputs are an error. None for no limit.
        vocab_size: number of different tokens.
        dim_context: features of the `context` stream.
        dim_condition: features of the `condition` stream.
        init_std: standard deviation of initial weights; torch's defaults when None.
    """

    def __init__(
        self,
        embedding: Embedding | None,
        stacks: Sequence[Stack],
        head: Head | None = None,
        dim: Size = INHERIT,
        heads: Size | None = INHERIT,
        causal: bool = False,
        max_seq_len: Size | None = None,
        vocab_size: Size | None = INHERIT,
        dim_context: Size | None = INHERIT,
        dim_condition: Size | None = INHERIT,
        init_std: Annotated[float, Field(gt=0)] | None = INHERIT,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.dim_context = dim_context
        self.dim_condition = dim_condition
        self.embedding = embedding
        self.stacks = ModuleList(stacks)
        self.head = head
        self.causal = causal
        self.max_seq_len = max_seq_len
        self.reads_below = streams_read(self)

    def forward(
        self,
        inputs: Tensor,
        *,
        positions: Tensor | None = None,
        valid: Tensor | None = None,
        segments: Tensor | None = None,
        mask: Mask | Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Mask | Tensor | None = None,
        context_positions: Tensor | None = None,
        condition: Tensor | None = None,
        injected: Tensor | None = None,
        prefix: Tensor | None = None,
        prefix_valid: Tensor | None = None,
        numbers: Tensor | None = None,
        memories: Memories | None = None,
        further_ids: Mapping[str, Tensor] | None = None,
        embedding_options: Mapping[str, Any] | None = None,
        added: Tensor | None = None,
        bias: Tensor | None = None,
        beside: Mapping[Any, Beside] | None = None,
        two_way: Tensor | None = None,
        passes: int | None = None,
        exit: float | None = None,
        state: State | None = None,
        watch: Watch | None = None,
        hidden: bool = False,
        losses: bool = False,
    ) -> Any:
        """Run the model.

        Args:
            inputs: token ids, images, or features where there is no embedding.
            positions: [L] or [B, L] integers; by default 0, 1, ... over the valid tokens of each row and segment.
            valid: [B, L] bool, False at padding; padding on either side changes no real token.
            segments: [B, L] integers; tokens see only their own segment (packed documents).
            mask: what may attend to what: a mask, or a bool tensor, True = may attend.
            context: [B, Lc, dim_context] for cross attention.
            context_mask: [B, Lc] bool, False at padding of the context.
            context_positions: [Lc] or [B, Lc] integers, where the context's tokens stand, for attentions that go by it.
            condition: [B, dim_condition] for adaptive parts, or [B, L, dim_condition] for each token its own (L counts
                the prefix).
            injected: [B, L, dim] or [B, 1, dim], added to what every branch reads; L counts a prefix.
            prefix: [B, P, dim] features that stand before the tokens (an embedding `prefixed` takes them); they do not
                count against max_seq_len, `positions` and `valid` are of the tokens alone, a mask is over all.
            prefix_valid: [B, P] bool, False at padding of the prefix.
            numbers: [B, L] floats, at the tokens that stand for numbers (an embedding `numbers` reads them).
            memories: `Memories(limit=n)`, or what the call before returned, of texts in segments (Transformer-XL,
                arXiv:1901.02860): attentions read the last n tokens of earlier segments too. The result is then
                (output, memories), which are constants for the next call when `.detached()`; with a state, whose first
                call takes them, (output, new state).
            further_ids: {name: [B, L]} integers, for an embedding that adds theirs (`summed`).
            embedding_options: keywords for a module of the user's that stands as the embedding.
            added: [B, L, dim] features that such an embedding adds.
            bias: [L, L], [H, L, L] or [B, H, L, L] floats, added to the scores of self-attention; L counts what stands
                in front, as with a mask. With a decode state [.., L, Lk], of the new tokens and all keys so far.
            beside: for a mixer of this model, further keys and values, and what is added to that of its own.
            two_way: [B] integers, how many tokens at the beginning of each row see one another both ways, in attentions
                `prefix`; what stands in front counts, and given positions say below which one they lie. With a decode
                state they lie in the first call.
            passes: how often stacks run that run several times (`recycled`, `looped`), for this call.
            exit: the probability at which a looped stack lets a token out, for this call.
            state: decode state of `init_state` or the call before; the result is then (output, new state).
            watch: told of what enters and leaves the parts.
            hidden: return the hidden states in place of the head's output.
            losses: return (output, losses): the further losses of parts that have them (`load_balance` and `router_z`
                of experts) by name, [n] each, one a use in the order of the layers; none in models without such parts.

        Raises:
            ShapeError: a size, dtype or length that does not fit, or a stream that no part of the model reads.
        """
        given = {
            "valid": valid,
            "segments": segments,
            "mask": as_mask(mask),
            "context": context,
            "context_mask": context_mask,
            "context_positions": context_positions,
            "condition": condition,
            "injected": injected,
            "prefix": prefix,
            "prefix_valid": prefix_valid,
            "numbers": numbers,
        }
        rare: dict[str, Any] = {
            "further_ids": further_ids,
            "embedding_options": embedding_options,
            "added": added,
            "bias": bias,
            "passes": passes,
            "exit": exit,
            "two_way": two_way,
            "beside": beside,
        }
        rare = {name: value for name, value in rare.items() if value is not None}
        streams: dict[str, Any] = {"positions": positions, **given}
        self._refuse_unread({**streams, **rare})
        if watch is not None:
            rare["watch"] = watch
        check_inputs(inputs, self.embedding is not None, self.dim, self.max_seq_len)
        batch, length, tokens = inputs.shape[0], inputs.shape[1], inputs.dim() != 4
        if tokens:
            check_streams(streams, batch, length, inputs.device, self.max_seq_len)
        streams.update(rare)
        if two_way is not None:
            ahead = 0 if prefix is None else prefix.shape[1]
            check_two_way(two_way, batch, ahead + length, state, None if positions is None else ahead + positions)
        if beside is not None:
            check_beside(beside, self)
        recall = None if memories is None else recall_of(memories, self, streams, batch, state)
        planned = None
        if state is None:
            after = place_tokens(streams, length, tokens, recall)
        else:
            planned, after = plan_tokens(self, streams, (batch, length), tokens, recall, state)
        if losses:
            if state is not None:
                raise ShapeError("losses belong to whole sequences: they are not told while decoding with a state")
            if recall is not None:
                raise ShapeError("losses are not told of segments with memories")
            streams["losses"] = ()
        try:
            x, branches = self._run(inputs, streams, after, state)
            out = x if self.head is None or hidden else self.head(x, streams)
        except RuntimeError as error:
            named = (("the input", inputs), *streams.items())
            wrong = None if isinstance(error, VariformError) else misfit(error, self, named)
            if wrong is None:
                raise
            raise wrong from error
        if memories is not None and state is None:
            return out, remembered(memories, streams["memories"])
        if planned is None or state is None:
            return (out, losses_by_name(streams["losses"])) if losses else out
        return out, {**planned.state, **turned(state), "parts": branches}

    def _run(
        self, inputs: Tensor, streams: dict[str, Any], after: Mapping[str, Any], state: State | None
    ) -> tuple[Tensor, State]:
        """Embed, then run the stacks with the streams that hold `after` the embedding."""
        new: dict[str, Any] = {}
        if inputs.dim() == 3:
            inputs = without_padding(inputs, streams["valid"])
        x = inputs if self.embedding is None else self.embedding(inputs, streams)
        streams.update(after)
        if isinstance(x, tuple):
            x, published = x
            streams.update(published)
        elif inputs.dim() == 4:  # only now it is known how many tokens an image is
            given = {name: value for name, value in streams.items() if name not in UNCHECKED}
            check_streams(given, x.shape[0], x.shape[1], x.device, None)
        if state is not None:
            streams["state"] = state["parts"]
        for place, stack in enumerate(self.stacks.in_order()):
            x = call(stack, x, streams, f"stacks.{place}", new)  # type: ignore[arg-type]
            branches = new.pop("state", None)
            if new:
                streams.update(new)
            new = {} if branches is None else {"state": branches}
        streams.pop("state", None)
        if streams.get("memories") is not None and state is not None:
            check_taken(streams["memories"])
        return x, new.get("state", {})

    def init_state(
        self, batch: int, max_len: int | None = None, *, bucket: int = 0, ahead: int = 0, **streams: Any
    ) -> State:
        """Empty decode state.

        Args:
            batch: rows.
            max_len: capacity in tokens; the model's `max_seq_len` by default.
            bucket: round the attended length up to a multiple of it (for compiled steps); 0 is exact.
            ahead: how many tokens or features stand in front of those: the `memories` of the first call, or its
                `prefix`; they do not count against `max_len`.
            **streams: what stays the same while decoding: `context`, which is read here and not given again (nor are
                `context_positions`), and
                `context_mask` and a `condition` of each row, which are given here or in each call; `passes`, how often
                stacks run that run several times, with every token.

        Raises:
            ConfigError: the model, or a part of it, cannot decode; a size that is none, or another stream.
        """
        capacity = self.max_seq_len if max_len is None else max_len
        if capacity is None:
            raise ConfigError("the model has no max_seq_len: give max_len, the most tokens a row will hold")
        check_state_sizes(batch, capacity, bucket, ahead)
        if self.max_seq_len is not None and capacity > self.max_seq_len:
            raise ConfigError(f"max_len = {capacity} exceeds the model's max_seq_len = {self.max_seq_len}")
        capacity += ahead
        refuse_undecodable(self)
        for part in self.modules() if ahead else ():
            if isinstance(part, Rotation):
                part.reach(ahead)
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        check_kept(streams, batch, device)
        self._refuse_unread(streams)
        parts: State = {}
        for place, stack in enumerate(self.stacks.in_order()):
            if holds_state(stack):
                parts[f"stacks.{place}"] = stack.init_state(batch, capacity, streams)  # type: ignore[operator]
        state = new_state(batch, capacity, device, parts, bucket)
        own = {"condition": streams["condition"]} if streams.get("condition") is not None else {}
        return {**state, **own, "context_mask": streams.get("context_mask"), "made_for": signature(self)}

    def example_inputs(self, batch: int, length: int | None = None) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Arguments of the sizes asked for; a context of the same length and a condition where a part reads one."""
        length = length or self.max_seq_len
        if self.embedding is not None:
            inputs = self.embedding.example_inputs(batch, length)
        elif length is None:
            raise ConfigError("the model has no max_seq_len: give length, the number of tokens")
        else:
            inputs = torch.zeros(batch, length, self.dim)
        sides: dict[str, Any] = {}
        described = self.__dict__.get("_spec")  # parts below may say what the model does not
        if "context" in self.reads_below:
            size = self.dim_context or (described and described.first("dim_context")) or self.dim
            sides["context"] = torch.zeros(batch, length or 1, size)
        if "further_ids" in self.reads_below:
            names = [name for part in self.modules() if isinstance(part, SummedEmbedding) for name in part.names]
            sides["further_ids"] = {name: torch.zeros_like(inputs) for name in names}
        if "condition" in self.reads_below:
            size = self.dim_condition or (described and described.first("dim_condition")) or self.dim
            sides["condition"] = torch.zeros(batch, size)
        return (inputs,), sides

    @property
    def vocab_size(self) -> int | None:
        """The number of different tokens it reads, where it reads tokens."""
        size: int | None = getattr(self.embedding, "vocab_size", None)
        return size

    def _refuse_unread(self, given: Mapping[str, Any]) -> None:
        for name, value in given.items():
            if value is not None and name not in self.reads_below:
                known = ", ".join(sorted(self.reads_below - {"state", "cache", "losses"})) or "none"
                raise ShapeError(f"{name} was given, and no part of this model reads it; it reads: {known}")


def losses_by_name(told: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The losses that parts have published, in order, as one tensor a name."""
    return {name: torch.stack([loss for own, loss in told if own == name]) for name, _ in told}
