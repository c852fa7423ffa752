"""`UniversalPretrainWrapper`: training on what random networks write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.autoregressive_wrapper import AutoregressiveWrapper
from variform.dialects.x_transformers.decoding import in_upstream_terms
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.learned import causal_net
from variform.dialects.x_transformers.table import REQUIRED, Table, problems_of, raise_any, table_of
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.wrappers.synthetic import RandomWriter, SyntheticPretraining, random_rows

GENERATOR: Table = table_of(
    {
        "dim": (REQUIRED, (int,)),
        "num_tokens": (REQUIRED, (int,)),
        "max_seq_len": (512, (int,)),
        "hidden_size": (None, (int,)),
        "use_gru": (False, (bool,)),
        "network_klass": (None, (object,)),
    }
)
WRAPPER: Table = table_of(
    {
        "data_generator": (None, (nn.Module,)),
        "buffer_size": (None, (int,)),
        "num_reset": (20, (int,)),
        "batch_size": (32, (int,)),
        "seq_len": (512, (int,)),
        "seed_length": (8, (int,)),
        "reset_turing_machine_every": (0, (int,)),
        "keep_buffer_on_cpu": (False, (bool,)),
    }
)


def random_sequences(
    num_tokens: int,
    seq_len: int,
    num_samples_random: int,
    num_samples_constant: int,
    shuffle: bool = True,
    device: torch.device | None = None,
) -> Tensor:
    """Rows of random tokens, and rows that repeat one random token.

    Args:
        num_tokens: tokens are below.
        seq_len: of a row.
        num_samples_random: rows of the first kind.
        num_samples_constant: rows of the second kind.
        shuffle: in random order; otherwise the random ones first.
        device: where they are made.
    """
    if num_samples_random < 0 or num_samples_constant < 0 or not num_samples_random + num_samples_constant:
        raise InputError("at least one row of either kind is needed")
    if shuffle:
        return random_rows(num_tokens, seq_len, num_samples_random, num_samples_constant, device)
    both = ((num_samples_random, 0), (0, num_samples_constant))
    return torch.cat([random_rows(num_tokens, seq_len, *counts, device) for counts in both])


class SyntheticDataGenerator(nn.Module):
    """A recurrent network with random weights that writes sequences; see `variform.wrappers.synthetic.RandomWriter`.

    Shapes:
        input: [B, L] token ids, hiddens or None -> logits [B, L, num_tokens], hiddens

    Args:
        dim: features of a token.
        num_tokens: number of different tokens.
        max_seq_len: `generate` returns at most so many.
        hidden_size: features of the state; `dim` by default.
        use_gru: a GRU in the place of an LSTM.
        network_klass: from (dim, hidden_size) to another network.
        **keywords: none; unknown ones are refused.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        max_seq_len: int = 512,
        hidden_size: int | None = None,
        use_gru: bool = False,
        network_klass: Callable[[int, int], nn.Module] | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {"dim": dim, "num_tokens": num_tokens, "max_seq_len": max_seq_len}
        given |= {"hidden_size": hidden_size, "use_gru": use_gru, "network_klass": network_klass, **keywords}
        raise_any(problems_of(type(self).__name__, GENERATOR, given, GENERATOR))
        if network_klass is not None and use_gru:
            raise KeywordError("has no effect with a network_klass", path="use_gru", value=use_gru)
        with in_upstream_terms():
            self.inner = RandomWriter(dim, num_tokens, max_seq_len, hidden_size, use_gru, network_klass)
        self.max_seq_len = max_seq_len

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Where upstream's checkpoints have what."""
        return {"": self.inner}

    def reset_(self) -> None:
        """Another random network."""
        self.inner.redraw()

    def forward(self, input: Tensor, hiddens: Any = None) -> tuple[Tensor, Any]:
        """The logits of the next tokens, and the state."""
        found: tuple[Tensor, Any] = self.inner(input, hiddens)
        return found

    def generate(
        self, length: int, seed: Tensor | None = None, condition: Tensor | None = None, temperature: float = 1e-4
    ) -> Tensor:
        """Write on after a seed [B, s] and a condition [B, n]; the last `max_seq_len` tokens of all."""
        if temperature <= 0:
            raise KeywordError("must be positive", path="temperature", value=temperature)
        with in_upstream_terms():
            return self.inner.generate(length, seed=seed, condition=condition, temperature=temperature)


class UniversalPretrainWrapper(nn.Module):
    """Trains a model on what random networks write; see `variform.wrappers.synthetic.SyntheticPretraining`.

    Shapes:
        the loss, a scalar; there is no input

    Args:
        model: a causal `TransformerWrapper`.
        data_generator: writes sequences; a `SyntheticDataGenerator` by default.
        buffer_size: rows of the buffer; 20 batches by default.
        num_reset: how many rows begin anew in each call, an even number.
        batch_size: rows of a call.
        seq_len: tokens of a row.
        seed_length: tokens of a seed.
        reset_turing_machine_every: after how many calls the generator is drawn anew; 0 for never.
        keep_buffer_on_cpu: the buffer stays where it is made, and is not saved.
        **keywords: none; unknown ones are refused.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    model: TransformerWrapper
    ar_wrapped: AutoregressiveWrapper

    def __init__(
        self,
        model: nn.Module,
        data_generator: nn.Module | None = None,
        buffer_size: int | None = None,
        num_reset: int = 20,
        batch_size: int = 32,
        seq_len: int = 512,
        seed_length: int = 8,
        reset_turing_machine_every: int = 0,
        keep_buffer_on_cpu: bool = False,
        **keywords: Any,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {
            "data_generator": data_generator,
            "buffer_size": buffer_size,
            "num_reset": num_reset,
            "batch_size": batch_size,
            "seq_len": seq_len,
            "seed_length": seed_length,
            "reset_turing_machine_every": reset_turing_machine_every,
            "keep_buffer_on_cpu": keep_buffer_on_cpu,
            **keywords,
        }
        raise_any(problems_of(type(self).__name__, WRAPPER, given, WRAPPER))
        net = causal_net(model, path="model")
        if net.native.max_seq_len is not None and seq_len > net.native.max_seq_len:
            message = f"the absolute positions end at {net.native.max_seq_len}"
            raise KeywordError(message, path="seq_len", value=seq_len)
        if batch_size < 1:
            raise KeywordError("must be positive", path="batch_size", value=batch_size)
        rows = 20 * batch_size if buffer_size is None else buffer_size
        if rows <= batch_size:
            message = f"must be greater than the batch size of {batch_size}"
            raise KeywordError(message, path="buffer_size", value=buffer_size)
        if num_reset % 2 or not 0 <= num_reset <= rows:
            raise KeywordError(f"an even number up to {rows} is needed", path="num_reset", value=num_reset)
        writer = data_generator or SyntheticDataGenerator(net.native.dim, net.num_tokens, seq_len)
        # Not registered: their parameters are the objective's, and must not be listed twice.
        self.__dict__["model"], self.__dict__["ar_wrapped"] = net, AutoregressiveWrapper(net)
        with in_upstream_terms():
            sizes = (seq_len, batch_size, rows, num_reset, seed_length, reset_turing_machine_every)
            self.objective = SyntheticPretraining(net.native, writer, *sizes)
        self.keep_buffer_on_cpu = keep_buffer_on_cpu
        if keep_buffer_on_cpu:
            kept = self.objective.buffer
            del self.objective.buffer
            self.objective.__dict__["buffer"] = kept

    @property
    def data_generator(self) -> nn.Module:
        """What writes sequences."""
        return self.objective.writer

    @property
    def synth_data_buffer(self) -> Tensor:
        """The rows that are trained on, [buffer_size, seq_len]."""
        return self.objective.buffer

    @property
    def step(self) -> Tensor:
        """How often it was called."""
        return self.objective.step

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.step.device

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module | Tensor]:
        """Where upstream's checkpoints have what; the model stands there twice."""
        held: dict[str, nn.Module | Tensor] = {
            "model.": self.model,
            "ar_wrapped.net.": self.model,
            "data_generator.": self.data_generator,
            "step": self.step,
        }
        return held if self.keep_buffer_on_cpu else {**held, "synth_data_buffer": self.synth_data_buffer}

    def get_rand_sequences_from_buffer(self, size: int | None = None) -> Tensor:
        """Some rows of the buffer, a batch by default."""
        count = self.objective.batch if size is None else size
        return self.synth_data_buffer[self.objective.draw(count)]

    def forward(self) -> Tensor:
        """Enrich the buffer; the loss of rows that are drawn from it."""
        self.objective.enrich()
        loss: Tensor = self.ar_wrapped(self.get_rand_sequences_from_buffer().to(self.device))
        return loss
