"""`vf.describe`: what a model takes, gives and costs, part by part, before a byte is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from variform.core.codec import as_spec
from variform.core.resolve import resolve
from variform.core.spec import Spec
from variform.errors import ConfigError, did_you_mean
from variform.inspect.fake import FakeModel
from variform.inspect.rows import Row, make_rows
from variform.inspect.symbols import Sizes
from variform.inspect.table import description_text
from variform.inspect.trace import Node
from variform.ops.attention.meter import standing_in
from variform.stack.decodable import undecodable

if TYPE_CHECKING:
    from variform.inspect.costs import Costs, Line

GIB = 1 << 30

OPTIMIZERS: dict[str, int] = {"none": 0, "sgd": 0, "momentum": 1, "lion": 1, "rmsprop": 1, "adam": 2, "adamw": 2}
"""Values that an optimizer keeps for each parameter."""


@dataclass(frozen=True)
class Memory:
    """An estimate in bytes: what must be held at once. Temporaries of single operations come on top."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    state: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.state


@dataclass(frozen=True)
class Description:
    """What a model takes, gives and costs at one batch and length.

    Args:
        spec: the resolved spec.
        batch: rows.
        length: tokens a row; None where the model's input has no such size.
        device: the device type that attention is chosen for.
        dtype: of parameters and activations.
        rows: one a part, parents first; the first is the whole.
        activation_bytes_per_row: how much `activation_bytes` grows with one more row of the batch.
        state_reason: why there is no decode state, or empty.
    """

    spec: Spec
    batch: int
    length: int | None
    device: str
    dtype: torch.dtype
    rows: tuple[Row, ...]
    activation_bytes_per_row: int
    state_reason: str = ""

    @property
    def params(self) -> int:
        """Parameters, shared ones counted once."""
        return self.rows[0].params

    @property
    def flops(self) -> int:
        """Operations of one forward pass; attention counts the pairs its mask visits, a multiply-add counts 2."""
        return self.rows[0].flops

    @property
    def flops_dense(self) -> int:
        """The same with attention over the full square, as most counters report it."""
        return self.rows[0].flops_dense

    @property
    def flops_backward(self) -> int:
        """Operations of one backward pass, without what checkpointing or a fused attention computes again."""
        return self.rows[0].flops_backward

    @property
    def activation_bytes(self) -> int:
        """What one forward pass in training keeps for the backward pass, parameters excluded."""
        return self.rows[0].activation_bytes

    @property
    def state_bytes(self) -> int | None:
        """Decode state of the whole batch; None, with `state_reason`, where the model cannot decode."""
        return self.rows[0].state_bytes

    def memory_training(self, optimizer: str = "adamw", batch: int | None = None) -> Memory:
        """Parameters, gradients, optimizer state and activations of a training step, all in `dtype`.

        Args:
            optimizer: by name; it says how many values are kept for each parameter.
            batch: rows; those of the description by default.
        """
        check_optimizer(optimizer)
        weights = self.params * self.dtype.itemsize
        more = (self.batch if batch is None else batch) - self.batch
        activations = self.activation_bytes + more * self.activation_bytes_per_row
        return Memory(weights, weights, OPTIMIZERS[optimizer] * weights, activations)

    def memory_decoding(self) -> Memory:
        """Parameters and decode state.

        Raises:
            ConfigError: the model cannot decode.
        """
        if self.state_bytes is None:
            raise ConfigError(f"this model cannot decode: {self.state_reason}")
        return Memory(self.params * self.dtype.itemsize, 0, 0, 0, self.state_bytes)

    def fits(self, gib: float, optimizer: str = "adamw") -> bool:
        """Whether a training step at this batch fits into `gib` GiB."""
        return self.memory_training(optimizer).total <= gib * GIB

    def largest_batch(self, gib: float, optimizer: str = "adamw") -> int:
        """The most rows with which a training step fits into `gib` GiB; 0 when not one does."""
        fixed = self.memory_training(optimizer, batch=0).total
        room = int(gib * GIB) - fixed
        return max(0, room // self.activation_bytes_per_row) if self.activation_bytes_per_row else int(room >= 0)

    @cached_property
    def costs(self) -> Costs:
        """The same as formulas in the names of sizes, with the numbers at these sizes; see `vf.costs`."""
        from variform.inspect.costing import costs_of  # it describes models too

        return costs_of(self)

    @property
    def lines(self) -> tuple[Line, ...]:
        """The lines of a program, each with its cost; none for other models."""
        return self.costs.lines

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "batch": self.batch,
            "length": self.length,
            "device": self.device,
            "dtype": str(self.dtype).removeprefix("torch."),
            "params": self.params,
            "flops": self.flops,
            "flops_dense": self.flops_dense,
            "flops_backward": self.flops_backward,
            "activation_bytes": self.activation_bytes,
            "activation_bytes_per_row": self.activation_bytes_per_row,
            "state_bytes": self.state_bytes,
            "state_reason": self.state_reason,
            "memory_training": {**asdict(self.memory_training()), "total": self.memory_training().total},
            "rows": [{**asdict(row), "inputs": list(row.inputs), "outputs": list(row.outputs)} for row in self.rows],
        }

    def __str__(self) -> str:
        return description_text(self)


def describe(
    source: Any,
    batch: int = 1,
    length: int | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    decode_len: int | None = None,
    **facts: Any,
) -> Description:
    """What a model takes, gives and costs, part by part. Nothing is allocated.

    Parameters, shapes and decode state are exact. The model is run in training on stand-in tensors of the sizes asked
    for; equal layers are run once.

    Args:
        source: a spec, a mapping, a config file, a preset's result, or a built model.
        batch: rows.
        length: tokens a row; the longest the model takes by default.
        device: the device type that attention is chosen for; for others than "cpu", attention is taken to keep
            q, k, v and its result wherever a fused implementation computes it.
        dtype: of parameters and floating-point inputs.
        decode_len: tokens a row that the decode state holds; `length` by default.
        **facts: what the surroundings provide, when a part is described alone (`dim=64, heads=4`).

    Raises:
        ConfigError: the spec is wrong, or a size is missing.
        ShapeError: the model does not take these sizes.
        BackendError: an attention backend asked for by name does not serve a call on this device.
    """
    resolved = resolve(as_spec(source), **facts)
    model = FakeModel(resolved, dtype)
    if device == "cpu":
        return describe_model(model, resolved, batch, length, decode_len=decode_len)
    with standing_in(device):
        return describe_model(model, resolved, batch, length, device=device, decode_len=decode_len)


def describe_model(
    model: FakeModel,
    resolved: Spec,
    batch: int,
    length: int | None,
    *,
    device: str = "cpu",
    decode_len: int | None = None,
) -> Description:
    """The description of a model that was built from stand-ins; see `describe`."""
    check_sizes(batch=batch, length=length, decode_len=decode_len)
    length = length or model.longest
    first = model.trace(batch, length)
    wider = model.trace(batch + 1, length)
    runs, sizes = _further_run(model, batch, length, [first, wider])
    state, reason = _state(model, resolved, batch, decode_len or length)
    rows, _ = make_rows(model.tree, runs, sizes, state)
    grown = wider.figures.activation_bytes - first.figures.activation_bytes
    return Description(resolved, batch, length, device, model.dtype, tuple(rows), grown, reason)


def _further_run(model: FakeModel, batch: int, length: int | None, runs: list[Node]) -> tuple[list[Node], Sizes]:
    """A run at another length, which tells what depends on it; lengths that the model refuses are passed over."""
    if length is not None:
        halved = [length // 2] if length % 2 == 0 else []
        for other in (*halved, length - 2, length + 2, length - 1, length + 1):
            if other < 1:
                continue
            try:
                third = model.trace(batch + 2, other)
            except (ValueError, RuntimeError, IndexError):
                continue
            return [*runs, third], Sizes((batch, batch + 1, batch + 2), (length, length, other))
    return runs, Sizes((batch, batch + 1), None)


def _state(model: FakeModel, resolved: Spec, batch: int, max_len: int | None) -> tuple[Mapping[str, int] | None, str]:
    problems = undecodable(resolved)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return None, f"{problems[0].path}: {problems[0].message}{more}".removeprefix(": ")
    try:
        return model.state(batch, max_len), ""
    except ConfigError as error:
        return None, str(error)


def check_optimizer(name: str) -> None:
    """Refuse an optimizer that is not known."""
    if name not in OPTIMIZERS:
        raise ConfigError(f"unknown optimizer {name!r}", hint=did_you_mean(name, OPTIMIZERS))


def check_sizes(**sizes: Any) -> None:
    """Refuse sizes that are no positive integers; None stands for a default."""
    for name, size in sizes.items():
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ConfigError(f"{name} must be a positive integer", value=size)


__all__ = ["OPTIMIZERS", "Description", "Memory", "check_optimizer", "check_sizes", "describe", "describe_model"]
