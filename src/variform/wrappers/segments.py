"""Texts longer than a model, read segment by segment with memories (Transformer-XL)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.errors import ConfigError, Problem, ShapeError
from variform.generate.readers import evaluating
from variform.generate.samplers import Filter, draw
from variform.parts.memories import Memories
from variform.stack.model import Transformer
from variform.stack.remembering import decodes_behind


class Segments(nn.Module):
    """Trains a causal model on texts cut into segments, each of which remembers those before, and continues them.

    Dai et al. 2019, arXiv:1901.02860. Positions begin anew in every segment; what is remembered stands before them.

    Shapes:
        x: [B, L] token ids -> the loss, a scalar

    Args:
        model: a causal model of tokens.
        length: tokens of a segment; the model's `max_seq_len` by default.
        memory: the most tokens that are remembered; as many as a segment has by default.
        shift: each layer remembers the one so many above it; see `Memories`.
        backward: how many segments gradients flow through, 1 for none but the present one.
        ignored: targets of this value do not count, and such inputs are read as `pad`.
        pad: what an ended row is filled up with.

    Raises:
        ConfigError: sizes that are none, or a model that sees the future.
    """

    def __init__(
        self,
        model: Transformer,
        length: int | None = None,
        memory: int | None = None,
        shift: int = 0,
        backward: int = 1,
        ignored: int = -100,
        pad: int = 0,
    ) -> None:
        super().__init__()
        size = length or model.max_seq_len
        problems = []
        if size is None:
            problems.append(Problem("length", "the model has no max_seq_len: give the tokens of a segment"))
        for name, value, least in (("length", length, 1), ("memory", memory, 0), ("backward", backward, 1)):
            if value is not None and value < least:
                problems.append(Problem(name, f"must be at least {least}", value))
        if not model.causal:
            problems.append(Problem("model", "the next token cannot be learned by a model that sees it"))
        if problems:
            raise ConfigError(problems)
        assert size is not None
        self.model = model
        self.length = size
        self.memory = size if memory is None else memory
        self.shift = shift
        self.backward_segments = backward
        self.ignored = ignored
        self.pad = pad

    def begin(self) -> Memories:
        """Nothing to remember yet."""
        return Memories(self.memory, self.shift)

    def cut(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor, float, bool]]:
        """Inputs, targets and weight of each segment of a text, and whether what it leaves behind is a constant.

        Shapes:
            x: [B, L] -> [B, <= length] twice
        """
        if x.dim() != 2 or x.shape[1] < 2:
            raise ShapeError(f"rows of at least two tokens are needed, [batch, length]; got {list(x.shape)}")
        inputs, targets = x[:, :-1], x[:, 1:]
        inputs = inputs.masked_fill(inputs == self.ignored, self.pad)
        pieces = zip(torch.split(inputs, self.length, 1), torch.split(targets, self.length, 1), strict=True)
        for place, (read, wanted) in enumerate(pieces):
            constant = (place + 1) % self.backward_segments == 0
            yield read, wanted, read.shape[1] / inputs.shape[1], constant

    def forward(self, x: Tensor, memories: Memories | None = None, forget: bool = False, **streams: Any) -> Tensor:
        """The mean loss over the text.

        Args:
            x: token ids.
            memories: of what came before the text.
            forget: every segment begins without memories.
            **streams: of the model, that mean the same for all tokens (`context`, `context_mask`, `condition`).
        """
        memories = self.begin() if memories is None else memories
        total = x.new_zeros((), dtype=torch.float32)
        for read, wanted, weight, constant in self.cut(x):
            logits, left = self.model(read, memories=self.begin() if forget else memories, **streams)
            memories = left.detached() if constant else left
            total = total + weight * self.loss_of_rows(logits, wanted).mean()
        return total

    def loss_of_rows(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of each row over its targets that count, 0 where there are none.

        Shapes:
            logits: [B, L, V]; targets: [B, L] -> [B]
        """
        each = F.cross_entropy(logits.transpose(1, 2), targets.long(), ignore_index=self.ignored, reduction="none")
        counted = targets != self.ignored
        return each.sum(1) / counted.sum(1).clamp(min=1)

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor | Sequence[Tensor],
        new_tokens: int,
        *,
        eos: int | None = None,
        greedy: bool = False,
        filters: Sequence[Filter] = (),
        generator: torch.Generator | None = None,
        memories: Memories | None = None,
        use_cache: bool = True,
        **streams: Any,
    ) -> Tensor:
        """Continue prompts of any length, to any length; returns the new tokens alone.

        Shapes:
            prompt: [L] or [B, L], or a list of [L_i] -> [N] or [B, N], N <= new_tokens

        Args:
            prompt: token ids; rows of unequal length are continued as each is alone.
            new_tokens: how many to add; fewer when all rows have ended.
            eos: ends a row, which is then filled up with `pad`; one inside the prompt does not count.
            greedy: take the most probable token.
            filters: samplers, functions of logits [B, V].
            generator: draws from this generator.
            memories: of what came before the prompt.
            use_cache: keep a decode state within each segment, where the model can; else it is read again for each
                token.
            **streams: of the model, that mean the same for all tokens.
        """
        if not isinstance(prompt, Tensor):
            if memories is not None:
                raise ShapeError("memories belong to rows of one length: give the rows one by one")
            options: dict[str, Any] = {"eos": eos, "greedy": greedy, "filters": filters, "generator": generator}
            again = partial(self.generate, new_tokens=new_tokens, use_cache=use_cache, **options)
            return by_length(again, prompt, new_tokens, eos, self.pad, streams)
        text = prompt.unsqueeze(0) if prompt.dim() == 1 else prompt
        if text.dim() != 2 or not text.shape[1] or text.is_floating_point() or new_tokens < 1:
            raise ShapeError(f"at least one token id to begin with and one to add are needed, got {list(prompt.shape)}")
        memories = self.begin() if memories is None else memories
        use_cache = use_cache and not decodes_behind(self.model)
        *read, rest = torch.split(text, self.length, 1)
        with evaluating(self.model):
            for segment in read:
                _, memories = self.model(segment, memories=memories, **streams)
            made = self._continued(rest, memories, use_cache, streams, greedy, filters, generator)
            tokens = self._until_ended(made, text, new_tokens, eos)
        return tokens[0] if prompt.dim() == 1 else tokens

    def _until_ended(self, made: Iterator[Tensor], text: Tensor, new_tokens: int, eos: int | None) -> Tensor:
        ended = torch.zeros_like(text[:, 0], dtype=torch.bool)
        tokens = []
        for token in made:
            tokens.append(token.masked_fill(ended, self.pad))
            if eos is not None:
                ended = ended | (token == eos)
            if len(tokens) == new_tokens or bool(ended.all()):
                break
        return torch.stack(tokens, 1)

    def _continued(
        self,
        segment: Tensor,
        memories: Memories,
        use_cache: bool,
        streams: dict[str, Any],
        greedy: bool,
        filters: Sequence[Filter],
        generator: torch.Generator | None,
    ) -> Iterator[Tensor]:
        """Token after token, without end; a full segment becomes a memory."""
        new, state = segment, None
        while True:
            if not use_cache:
                logits, left = self.model(segment, memories=memories, **streams)
            elif state is None:
                kept = {name: x for name, x in streams.items() if name in ("context", "context_mask")}
                state = self.model.init_state(segment.shape[0], self.length, ahead=memories.length, **kept)
                streams_each = {name: x for name, x in streams.items() if name not in kept}
                logits, state = self.model(new, memories=memories, state=state, **streams_each)
            else:
                logits, state = self.model(new, state=state, **streams_each)
            token = draw(logits[:, -1], filters, greedy, generator)
            yield token
            new = token.unsqueeze(1)
            if segment.shape[1] == self.length:
                if use_cache:
                    _, left = self.model(segment, memories=memories, **streams)
                segment, memories, state = new, left, None
            else:
                segment = torch.cat((segment, new), 1)


def by_length(
    generate: Callable[..., Tensor],
    prompts: Sequence[Tensor],
    new_tokens: int,
    eos: int | None,
    pad: int,
    streams: Mapping[str, Any],
) -> Tensor:
    """Rows of one length together, one length after another: where segments begin depends on it.

    Args:
        generate: continues rows of one length: `generate(rows, **streams)`, [B, L] to [B, N].
        prompts: [L_i] each.
        new_tokens: the most that are added.
        eos: ends a row.
        pad: what an ended row is filled up with.
        streams: of the model, by row.

    Raises:
        ShapeError: there are no prompts.
    """
    if not prompts:
        raise ShapeError("the prompt is empty: at least one token is needed to start from")
    lengths = [len(row) for row in prompts]
    found: dict[int, Tensor] = {}
    for length in sorted(set(lengths)):
        places = [place for place, own in enumerate(lengths) if own == length]
        rows = torch.stack([prompts[place] for place in places])
        tokens = generate(rows, **{name: x[places] if isinstance(x, Tensor) else x for name, x in streams.items()})
        found.update(zip(places, F.pad(tokens, (0, new_tokens - tokens.shape[1]), value=pad), strict=True))
    whole = torch.stack([found[place] for place in range(len(prompts))])
    if eos is None:
        return whole
    open_at = (whole == eos).cumsum(1) == 0
    return whole[:, : max(1, int((open_at.sum(1) + 1).clamp(max=new_tokens).max()))]
