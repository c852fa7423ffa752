"""Torch's recurrences as mixers that know padding and decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from variform.core.part import Can, Facts
from variform.errors import ConfigError
from variform.ops.align import align, restore
from variform.parts.grid import refuse_unable
from variform.parts.kinds import Mixer, Output, State, Streams

KINDS: tuple[type[nn.RNNBase], ...] = (nn.GRU, nn.LSTM, nn.RNN)
"""What stands behind this part: these very classes, since one derived from them may do anything."""

_RUNS: dict[str, Callable[..., Any]] = {
    "GRU": torch.gru,
    "LSTM": torch.lstm,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}
"""The functions of torch, by what its modules call their mode."""


class _Held(nn.Module):
    """The weights of a recurrence by torch's names, and what it is; torch's compiler takes no module of torch's own.

    Args:
        module: what is copied.
    """

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.bias, self.dropout = module.mode, module.bias, module.dropout
        self.num_layers, self.bidirectional = module.num_layers, module.bidirectional
        self.hidden_size, self.proj_size = module.hidden_size, module.proj_size
        for name, weight in module.named_parameters():
            self.register_parameter(name, nn.Parameter(weight.detach().clone(), weight.requires_grad))

    @property
    def weights(self) -> list[Tensor]:
        """As torch's functions take them: layer by layer, each direction's together."""
        return list(self._parameters.values())  # type: ignore[arg-type]


class TorchRecurrence(Mixer):
    """A `torch.nn.GRU`, `LSTM` or `RNN` of any number of layers, which is copied, so that each place has its own.

    In one direction it is causal by construction, and its decode state is one vector a row and layer (an LSTM's two);
    in both directions it serves layers that are not causal. Padding on either side changes nothing. A description that
    holds a module cannot be written to a file.

    Shapes:
        x: [B, L, input_size] -> [B, L, size], hidden_size or proj_size of each direction

    Args:
        module: the recurrence, made with `batch_first=True`.

    Raises:
        ConfigError: `module` is none of torch's, or runs over the batch.
    """

    name: ClassVar[str] = "torch_recurrence"
    can: ClassVar[Can] = Can(attention_mask=False, packed=False, cross=False)
    reads: ClassVar[frozenset[str]] = frozenset({"valid"})
    stateful: ClassVar[bool] = True

    def __init__(self, module: Any) -> None:
        super().__init__()
        if type(module) not in KINDS or not module.batch_first:
            message = f"a torch.nn.GRU, LSTM or RNN with batch_first=True is needed, not {module}"
            raise ConfigError(message, path="module")
        self.module = _Held(module)
        self.kept = ("h", "c") if isinstance(module, nn.LSTM) else ("h",)

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """In both directions a token depends on later ones."""
        forward = not args["module"].bidirectional
        return Can(forward, True, False, False, False, True, forward)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Run over the sequence; with a state, on from where it ended."""
        refuse_unable(self, streams)
        valid, state = streams.get("valid"), streams.get("state")
        if valid is None:
            y, after = self._run(x, state)
            return y if state is None else (y, {"state": after})
        x, aligned = align(x, valid)
        if state is None and not self.module.bidirectional:  # what follows the real tokens changes none of them
            return restore(self._run(x, None)[0], aligned)
        if x.shape[1] == 1:
            y, after = self._run(x, state)
        else:
            y, after = self._run_packed(x, aligned.counts, state)
        y = restore(y, aligned)
        if state is None:
            return y
        some = (aligned.counts > 0)[:, None, None]  # a row without a token stays where it was
        return y, {"state": {name: torch.where(some, after[name], state[name].to(x.dtype)) for name in self.kept}}

    def _run(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        module = self.module
        begun = self._begun(x, self.init_state(x.shape[0], 0, {}) if state is None else state)
        options = (module.bias, module.num_layers, module.dropout, self.training, module.bidirectional, True)
        y, *last = _RUNS[module.mode](x, begun if len(begun) > 1 else begun[0], module.weights, *options)
        return y, self._after(last)

    def _run_packed(self, x: Tensor, counts: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Rows of unlike numbers of tokens, which stand first; one token of a row without any is read in vain.

        Shapes:
            x: [B, L, input_size]; counts: [B]
        """
        module = self.module
        packed = pack_padded_sequence(x, counts.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        begun = self._begun(x, self.init_state(x.shape[0], 0, {}) if state is None else state)
        by_length, back = packed.sorted_indices, packed.unsorted_indices
        assert by_length is not None  # as lengths are told unsorted
        assert back is not None
        begun = tuple(one.index_select(1, by_length) for one in begun)
        options = (module.bias, module.num_layers, module.dropout, self.training, module.bidirectional)
        out, *last = _RUNS[module.mode](
            packed.data, packed.batch_sizes, begun if len(begun) > 1 else begun[0], module.weights, *options
        )
        y, _ = pad_packed_sequence(packed._replace(data=out), batch_first=True, total_length=x.shape[1])
        return y, self._after([one.index_select(1, back) for one in last])

    def _begun(self, x: Tensor, state: State) -> tuple[Tensor, ...]:
        """A state, as torch takes it: layers first."""
        return tuple(state[name].to(x.dtype).transpose(0, 1).contiguous() for name in self.kept)

    def _after(self, last: Any) -> State:
        """A state, as it is kept: rows first."""
        return dict(zip(self.kept, (one.transpose(0, 1) for one in last), strict=True))

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """Zeros, [B, layers of all directions, size] each."""
        module = self.module
        layers = module.num_layers * (1 + module.bidirectional)
        like: Tensor = next(module.parameters())
        sizes = {"h": module.proj_size or module.hidden_size, "c": module.hidden_size}
        return {name: like.new_zeros(batch, layers, sizes[name]) for name in self.kept}
