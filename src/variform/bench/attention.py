"""Every registered attention and mixer at growing lengths: time, memory, and where it overtakes softmax attention."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from variform.core.build import build
from variform.core.fields import fields_of
from variform.core.part import Part
from variform.core.registry import parts
from variform.core.spec import Spec
from variform.errors import ConfigError, ShapeError, did_you_mean
from variform.inspect.measure import medians, peak_bytes
from variform.parts.mixer.multi_head import MultiHead
from variform.testing.filling import minimal

BASELINE = "softmax"
LENGTHS = (512, 1024, 2048, 4096, 8192)
WINDOW = 129
BLOCK = 128


def _blocks(length: int) -> tuple[str, ...]:
    """A layout of blocks near the diagonal and of a first block that sees all and is seen by all."""
    count = -(-length // BLOCK)
    near = [["1" if abs(i - j) <= 1 or not i * j else "0" for j in range(count)] for i in range(count)]
    return tuple("".join(row) for row in near)


SETTINGS: Mapping[str, Callable[[int], Mapping[str, Any]]] = {
    "blocksparse": lambda length: {"layout": _blocks(length), "block": BLOCK},
    "linformer": lambda length: {"projected": min(256, length)},
    "local": lambda length: {"window": WINDOW},
    "longformer": lambda length: {"window": WINDOW},
}
"""Fields whose smallest value would say nothing about speed, by length; every other is at its default."""


@dataclass(frozen=True)
class Measured:
    """One part at one length.

    Args:
        length: tokens; the nearest square below where a part takes squares alone, or its own nearest length.
        seconds: median of forward and backward (or forward alone).
        peak_bytes: the most that the allocator held beyond parameters and input.
        ratio: its time / that of softmax attention at this length.
        why_not: why it was not measured; then the figures are None.
    """

    length: int
    seconds: float | None = None
    peak_bytes: int | None = None
    ratio: float | None = None
    why_not: str = ""


@dataclass(frozen=True)
class Row:
    """One part at all lengths.

    Args:
        name: `kind/name`.
        measured: one entry a length.
        crossover: the length from which it is faster than softmax attention, between two measured ones by
            interpolation of the logarithms; None where it is not, up to the longest.
    """

    name: str
    measured: tuple[Measured, ...]
    crossover: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """What all parts are measured at.

    Args:
        batch: rows.
        dim: features.
        heads: heads.
        causal: ask for causality; parts without it are left out.
        backward: measure forward and backward.
        dtype: of weights and input.
        device: where.
        rounds: rounds that count.
        limit: seconds that one run may take; a longer length is then left out for the part.
        memory: bytes that one run may take, by the part's own cost.
    """

    batch: int = 1
    dim: int = 256
    heads: int = 4
    causal: bool = False
    backward: bool = True
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rounds: int = 3
    limit: float = 20.0
    memory: int = 6 * 2**30

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**vars(self), "dtype": str(self.dtype).removeprefix("torch."), "device": str(self.device)}


def bench_attention(
    only: Sequence[str] | None = None,
    lengths: Sequence[int] = LENGTHS,
    setting: Setting | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Measure attentions and mixers as layers of a model would run them, projections included.

    Args:
        only: registered names, `name` or `kind/name`; all attentions and self-mixing mixers by default. Softmax
            attention is always measured, as the baseline.
        lengths: tokens.
        setting: sizes and limits.
        note: told of progress.

    Raises:
        ConfigError: an unknown name, or a part that has no form for the setting.
    """
    setting = setting or Setting()
    chosen_parts = chosen(only, setting)
    found: dict[str, list[Measured]] = {name: [] for name in chosen_parts}
    for length in sorted(lengths):
        note(f"length {length}")
        for name, one in _at_length(chosen_parts, found, length, setting).items():
            found[name].append(one)
    return [Row(name, tuple(rows), _crossover(rows)) for name, rows in found.items()]


def chosen(only: Sequence[str] | None, setting: Setting) -> dict[str, type[Part]]:
    """The parts to measure by `kind/name`, softmax attention first."""
    known = {f"{kind}/{name}": part for kind in ("attention", "mixer") for (_, name), part in parts(kind).items()}
    usable = {label: part for label, part in known.items() if _mixes_itself(part)}
    wanted = list(usable)
    if only is not None:
        wanted = [_full_name(name, usable) for name in only]
    found = {}
    for label in dict.fromkeys([f"attention/{BASELINE}", *wanted]):
        if setting.causal and not usable[label].can.causal:
            if only is not None:
                raise ConfigError(f"{label} has no causal form", path="--causal")
            continue
        found[label] = usable[label]
    return found


def _full_name(name: str, usable: Mapping[str, type[Part]]) -> str:
    found = [label for label in usable if name in (label, label.rpartition("/")[2])]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{name!r} is ambiguous", hint=f"write {' or '.join(found)}")
    short = [label.rpartition("/")[2] for label in usable]
    raise ConfigError(f"there is no attention or mixer {name!r}", hint=did_you_mean(name, [*short, *usable]))


def _mixes_itself(part: type[Part]) -> bool:
    """A part of one sequence; `multi_head` is what holds the attentions."""
    return "context" not in part.reads and part is not MultiHead


def _layer(part: type[Part], length: int) -> Spec:
    given = SETTINGS[part.name](length) if part.name in SETTINGS else {}
    spec = minimal(part).replace(**given)
    return MultiHead.spec(attention=spec) if part.kind == "attention" else spec


def _at_length(
    measured_parts: Mapping[str, type[Part]], before: Mapping[str, list[Measured]], length: int, setting: Setting
) -> dict[str, Measured]:
    """All parts at one length, timed in turns."""
    runs: dict[str, Callable[[], Tensor]] = {}
    left_out: dict[str, Measured] = {}
    taken: dict[str, int] = {}
    for name, part in measured_parts.items():
        too_much = _too_much(before[name], length, setting)
        if too_much:
            left_out[name] = Measured(length, why_not=too_much)
            continue
        try:
            runs[name], taken[name] = _prepared(part, length, setting)
        except (ShapeError, ConfigError) as error:
            left_out[name] = Measured(length, why_not=str(error))
    peaks = {name: peak_bytes(run, setting.device) for name, run in runs.items()}
    seconds = medians(runs, setting.rounds, setting.device)
    base = seconds.get(f"attention/{BASELINE}")
    measured = {
        name: Measured(taken[name], seconds[name], peaks[name], None if base is None else seconds[name] / base)
        for name in runs
    }
    return {name: measured.get(name) or left_out[name] for name in measured_parts}


def _too_much(before: Sequence[Measured], length: int, setting: Setting) -> str:
    """Why this length is left out: what the part took at shorter ones, continued, passes a limit."""
    known = [one for one in before if one.seconds is not None and one.peak_bytes is not None]
    seconds = _continued([(one.length, one.seconds or 0.0) for one in known], length)
    held = _continued([(one.length, one.peak_bytes or 0) for one in known], length)
    if seconds > setting.limit:
        return f"one run would take about {seconds:.0f} s, more than {setting.limit:.0f}"
    if held > setting.memory:
        return f"one run would hold about {held / 2**30:.0f} GiB, more than {setting.memory / 2**30:.0f}"
    return ""


def _continued(known: Sequence[tuple[int, float]], length: int) -> float:
    """The figure at a further length, by the power of the last two, or the square."""
    if not known:
        return 0.0
    last, value = known[-1]
    power = 2.0
    if len(known) > 1 and known[-2][1] > 0 and value > 0 and known[-2][0] < last:
        power = math.log(value / known[-2][1]) / math.log(last / known[-2][0])
    return float(value * (length / last) ** power)


def _prepared(part: type[Part], length: int, setting: Setting) -> tuple[Callable[[], Tensor], int]:
    """A run of the layer, and the length it takes: the nearest one where it takes some lengths alone.

    Raises:
        ShapeError: it takes neither.
        ConfigError: it cannot be built.
    """
    layer = _layer(part, length)
    own = layer["attention"] if part.kind == "attention" else layer
    near = part.near_length({f.name: own.get(f.name) for f in fields_of(part)}, length)
    return _run_of(_layer(part, near), near, setting), near


def _run_of(spec: Spec, length: int, setting: Setting) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    module = build(spec, dim=setting.dim, heads=setting.heads, causal=setting.causal, max_seq_len=length)
    module = module.to(setting.device, setting.dtype).train(setting.backward)
    x = torch.randn(setting.batch, length, setting.dim, device=setting.device, dtype=setting.dtype)
    x.requires_grad_(setting.backward)
    with torch.no_grad():
        module(x, {})  # what it refuses, it refuses now
    return functools.partial(_step, module, x, setting.backward)


def _step(module: torch.nn.Module, x: Tensor, backward: bool) -> Tensor:
    with torch.set_grad_enabled(backward):
        out = module(x, {})
    y: Tensor = out[0] if isinstance(out, tuple) else out
    if backward:
        module.zero_grad(set_to_none=True)
        x.grad = None
        y.sum().backward()  # type: ignore[no-untyped-call]
    return y.detach()


def _crossover(rows: Sequence[Measured]) -> int | None:
    known = [(one.length, one.ratio) for one in rows if one.ratio is not None]
    faster = None
    for (length, ratio), earlier in zip(reversed(known), [*reversed(known[:-1]), None], strict=True):
        if ratio >= 1:
            break
        faster = length
        if earlier is not None and earlier[1] >= 1:
            share = math.log(earlier[1]) / (math.log(earlier[1]) - math.log(ratio))
            faster = round(math.exp(math.log(earlier[0]) + share * math.log(length / earlier[0])))
    return faster
