"""Training on what random networks write, before any text: structure without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.errors import ConfigError
from variform.parts.linear import Linear
from variform.wrappers.rollouts import checked_model


class Writes(Protocol):
    """What writes sequences from others."""

    def generate(self, length: int, *, seed: Tensor, condition: Tensor) -> Tensor:
        """[B, length] token ids, after the seed [B, s] and the condition [B, n]."""


def random_rows(vocab_size: int, length: int, noise: int, constant: int, device: torch.device | None = None) -> Tensor:
    """Rows of random tokens, and rows that repeat one random token, in random order: [noise + constant, length]."""
    rows = torch.randint(0, vocab_size, (noise, length), device=device)
    same = torch.randint(0, vocab_size, (constant, 1), device=device).expand(-1, length)
    rows = torch.cat((rows, same))
    return rows[torch.randperm(len(rows), device=device)]


class RandomWriter(nn.Module):
    """A recurrent network with random weights that writes token after token; it does not learn.

    Shapes:
        ids: [B, L], hiddens or None -> logits [B, L, V], hiddens

    Args:
        dim: features of a token.
        vocab_size: number of different tokens.
        longest: `generate` returns at most so many tokens.
        hidden: features of the network's state; `dim` by default.
        gru: a GRU in the place of an LSTM.
        network: from (dim, hidden) to another network, whose answer is (outputs, hiddens), batch first.
    """

    def __init__(
        self,
        dim: int,
        vocab_size: int,
        longest: int = 512,
        hidden: int | None = None,
        gru: bool = False,
        network: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        for name, size in (
            ("dim", dim),
            ("vocab_size", vocab_size),
            ("longest", longest),
            ("hidden", 1 if hidden is None else hidden),
        ):
            if size < 1:
                raise ConfigError("must be positive", path=name, value=size)
        size = hidden or dim
        self.longest = longest
        self.embed = nn.Embedding(vocab_size, dim)
        if network is not None:
            self.net = network(dim, size)
        else:
            self.net = nn.GRU(dim, size, batch_first=True) if gru else nn.LSTM(dim, size, batch_first=True)
        self.to_logits = Linear(size, vocab_size, bias=False)
        self._scale()
        self.requires_grad_(False)

    @torch.no_grad()
    def redraw(self) -> None:
        """Another random network."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        self._scale()

    @torch.no_grad()
    def _scale(self) -> None:
        """The weights of maps by a number that is drawn from [0, 1.1]."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight *= torch.rand(()) * 1.1

    def forward(self, ids: Tensor, hiddens: Any = None) -> tuple[Tensor, Any]:
        """The logits of the next tokens, and the state."""
        out, hiddens = self.net(self.embed(ids), hiddens)
        return self.to_logits(out), hiddens

    @torch.no_grad()
    def generate(
        self, length: int, *, seed: Tensor | None = None, condition: Tensor | None = None, temperature: float = 1e-4
    ) -> Tensor:
        """Write on, and return the last `longest` tokens of all.

        Args:
            length: how many tokens to add.
            seed: [B, s], what is read first.
            condition: [B, n], what is read then.
            temperature: of the draws; hardly any chance by default.
        """
        read = [ids for ids in (seed, condition) if ids is not None]
        if not read:
            raise ConfigError("one of seed and condition is needed", path="seed")
        ids = new = torch.cat(read, -1)
        hiddens = None
        for _ in range(length):
            logits, hiddens = self(new, hiddens)
            new = torch.multinomial((logits[:, -1] / temperature).softmax(-1), 1)
            ids = torch.cat((ids, new), -1)
        return ids[:, -self.longest :]


class SyntheticPretraining(nn.Module):
    """Trains a model on what random networks have written (universal pre-training, Bloem 2025, arXiv:2506.20057).

    A buffer has rows of noise and constant rows at first. In each call some rows are read by the writer, after a seed
    that is cut out of others, and what it writes takes their place, so that the buffer becomes richer; some rows begin
    anew; the loss is that of the next tokens on rows drawn from the buffer.

    Shapes:
        the loss, a scalar; there is no input

    Args:
        model: a causal model of the core.
        writer: writes sequences; a `RandomWriter` of the model's sizes by default.
        length: tokens of a row.
        batch: rows of a call.
        rows: of the buffer; 20 batches by default.
        anew: how many rows begin anew in each call, an even number.
        seed_length: tokens of a seed.
        redraw_every: after how many calls the writer is drawn anew; 0 for never.

    Raises:
        ConfigError: another model, or values that do not fit.
    """

    buffer: Tensor
    step: Tensor

    def __init__(
        self,
        model: nn.Module,
        writer: nn.Module | None = None,
        length: int = 512,
        batch: int = 32,
        rows: int | None = None,
        anew: int = 20,
        seed_length: int = 8,
        redraw_every: int = 0,
    ) -> None:
        super().__init__()
        self.model = checked_model(model)
        rows = 20 * batch if rows is None else rows
        if rows <= batch:
            raise ConfigError(f"must be greater than a batch of {batch}", path="rows", value=rows)
        if anew % 2 or not 0 <= anew <= rows:
            raise ConfigError(f"an even number up to {rows} is needed", path="anew", value=anew)
        if not 0 < seed_length < length:
            raise ConfigError(
                f"must lie between 0 and the {length} tokens of a row", path="seed_length", value=seed_length
            )
        assert self.model.vocab_size is not None
        self.vocab_size = self.model.vocab_size
        self.writer = writer or RandomWriter(self.model.dim, self.vocab_size, length)
        self.length = length
        self.batch = batch
        self.anew = anew
        self.seed_length = seed_length
        self.redraw_every = redraw_every
        self.register_buffer("buffer", random_rows(self.vocab_size, length, rows - rows // 2, rows // 2))
        self.register_buffer("step", torch.tensor(0))

    def draw(self, count: int) -> Tensor:
        """Places of different rows of the buffer."""
        return torch.randperm(len(self.buffer), device=self.buffer.device)[:count]

    @torch.no_grad()
    def enrich(self) -> None:
        """Let the writer go on from some rows, and others begin anew."""
        device = self.step.device
        places = self.draw(self.batch)
        begins = torch.randint(0, self.length - self.seed_length, (self.batch, 1), device=self.buffer.device)
        cut = begins + torch.arange(self.seed_length, device=self.buffer.device)
        seeds = self.buffer[self.draw(self.batch)].gather(1, cut)
        written = self.writer.generate(  # type: ignore[operator]
            self.length, condition=self.buffer[places].to(device), seed=seeds.to(device)
        )
        self.step += 1
        if self.redraw_every and int(self.step) % self.redraw_every == 0:
            redraw = getattr(self.writer, "redraw", None) or getattr(self.writer, "reset_", None)
            if redraw is None:
                message = "the writer has no redraw(): it stays the same"
                raise ConfigError(message, path="redraw_every", value=self.redraw_every)
            redraw()
        if self.anew:
            half = self.anew // 2
            self.buffer[self.draw(self.anew)] = random_rows(
                self.vocab_size, self.length, half, half, self.buffer.device
            )
        self.buffer[places] = written.to(self.buffer.device)

    def forward(self) -> Tensor:
        """The loss."""
        self.enrich()
        ids = self.buffer[self.draw(self.batch)].to(self.step.device)
        return self.loss(ids)

    def loss(self, ids: Tensor) -> Tensor:
        """The mean cross entropy of the next tokens."""
        logits: Tensor = self.model(ids)
        return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:])
