"""What stands around the attention of x-transformers' checkpoints: gates, norms and factors of heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from variform.parts.attention.across_layers import ScoreResidual, ValueResidual
from variform.parts.attention.around import AroundAttention
from variform.parts.attention.delta import DeltaAttention
from variform.parts.attention.distance import DistanceAttention
from variform.parts.attention.gated import GatedAttention, HeadScaleAttention
from variform.parts.attention.hybrid import HybridAttention
from variform.parts.attention.limited import EndsTogether, LimitedAttention
from variform.parts.attention.prefix import PrefixAttention
from variform.parts.attention.rotated import RotatedAttention
from variform.parts.attention.values import LaserAttention, NormedValues, OrthogonalValues
from variform.parts.kinds import Attention, Projection
from variform.parts.mixer.folded import FoldedMixer
from variform.parts.mixer.gru import GatedRecurrentUnit
from variform.parts.norm.norms import RMSNorm
from variform.parts.projection.maps import LinearProjection, LowRankProjection
from variform.weights.entries import Entry, plain, reordered
from variform.weights.x_transformers.pieces import linear_entries, no_counterpart


@dataclass(frozen=True)
class Heads:
    """The heads of an attention: for each of ours the upstream head that it is, and the features of a value."""

    order: Sequence[int]
    key_heads: int
    dim_value: int


def innermost(attention: Attention) -> Attention:
    """The attention that others stand around."""
    while isinstance(attention, AroundAttention):
        attention = attention.attention
    return attention


def value_times(attention: Attention) -> int:
    """How many times the features of a value a head gives."""
    times = 1
    while isinstance(attention, AroundAttention):
        times *= len(attention.over) if isinstance(attention, OrthogonalValues) else 1
        attention = attention.attention
    return times


def around_entries(attention: Attention, prefix: str, heads: Heads) -> Iterator[Entry]:
    """The entries of all that stands around the innermost attention."""
    while isinstance(attention, AroundAttention):
        found = _ENTRIES.get(type(attention))
        if found is None and not isinstance(attention, RotatedAttention):
            raise no_counterpart(attention)
        if found is not None:
            yield from found(attention, prefix, heads)
        attention = attention.attention


def _gated(part: GatedAttention, prefix: str, heads: Heads) -> Iterator[Entry]:
    gate, size = part.input_gate, heads.dim_value
    if isinstance(gate, LinearProjection) and gate.offset is not None:
        if part.output_gate is not None or not part.input_per_head or part.silu:
            raise no_counterpart(part)
        yield reordered(f"{prefix}to_v_head_gate.weight", gate.out.weight, heads.order, 0)
        yield reordered(f"{prefix}to_v_head_gate.bias", gate.offset, heads.order, 0)
        return
    if gate is not None:
        yield from _map(gate, f"{prefix}to_v_gate.", Cut(None, 1), Cut(heads.order, 1 if part.input_per_head else size))
    if part.output_gate is not None:
        outputs = Cut(heads.order, 1 if part.output_per_head else size)
        yield from _map(part.output_gate, f"{prefix}to_output_gate.", Cut(heads.order, size), outputs)


@dataclass(frozen=True)
class Cut:
    """How one side of a map is cut into heads: their order, None for features that are not, and the size of each.

    Of `times` sizes that a head has here, upstream has those of all heads one behind the other.
    """

    order: Sequence[int] | None
    size: int
    times: int = 1

    def rows(self, count: int) -> Tensor:
        """For each feature here its place upstream."""
        if self.order is None:
            return torch.arange(count)
        behind = torch.arange(self.times).unsqueeze(1) * (len(self.order) * self.size)
        return (torch.tensor(list(self.order))[:, None, None] * self.size + behind + torch.arange(self.size)).flatten()


def _map(part: Projection, key: str, inputs: Cut, outputs: Cut) -> Iterator[Entry]:
    """The entries of a gate's map."""
    if isinstance(part, LinearProjection):
        yield permuted(f"{key}weight", part.out.weight, outputs, inputs)
    elif isinstance(part, LowRankProjection):
        inner = Cut(None, 1)
        yield permuted(f"{key}down.weight", part.down.weight, inner, inputs)
        yield permuted(f"{key}up.weight", part.out.weight, outputs, inner)
    else:
        raise no_counterpart(part)


def permuted(key: str, weight: Tensor, outputs: Cut, inputs: Cut) -> Entry:
    """A weight whose rows and columns both stand in another order."""
    rows, columns = outputs.rows(weight.shape[0]), inputs.rows(weight.shape[1])
    back, across = rows.argsort(), columns.argsort()
    return Entry(
        key,
        (weight,),
        lambda t: (t.index_select(0, rows.to(t.device)).index_select(1, columns.to(t.device)),),
        lambda ps: ps[0].index_select(0, back.to(ps[0].device)).index_select(1, across.to(ps[0].device)),
    )


def _head_scale(part: HeadScaleAttention, prefix: str, heads: Heads) -> Iterator[Entry]:
    weight, order = part.scale_of_heads, torch.tensor(list(heads.order))
    back = order.argsort()
    yield Entry(
        f"{prefix}head_scale_params",
        (weight,),
        lambda t: (t.flatten().index_select(0, order.to(t.device)),),
        lambda ps: ps[0].index_select(0, back.to(ps[0].device)).view(1, -1, 1, 1),
    )


def _value_norm(part: NormedValues, prefix: str, heads: Heads) -> Iterator[Entry]:
    norm = part.norm
    if not isinstance(norm, RMSNorm) or norm.weight is None or norm.weight.dim() != 3 or norm.eps > 1e-12:
        raise no_counterpart(norm)
    if heads.key_heads != len(heads.order):  # upstream has as many gains as query heads, and fails
        raise no_counterpart(part)
    yield reordered(f"{prefix}value_rmsnorm.gamma", norm.weight, list(range(heads.key_heads)), 0, offset=1.0)


def _value_residual(part: ValueResidual, prefix: str, heads: Heads) -> Iterator[Entry]:
    if part.mix is None:
        return
    if heads.key_heads != len(heads.order):  # upstream has as many factors as query heads, and fails
        raise no_counterpart(part)
    yield from linear_entries(f"{prefix}to_value_residual_mix.0", part.mix)


def _hybrid(part: HybridAttention, prefix: str, heads: Heads) -> Iterator[Entry]:
    inner = part.mixer.mixer if isinstance(part.mixer, FoldedMixer) else part.mixer
    if isinstance(inner, GatedRecurrentUnit):
        tensors = {f"{name}_l0": param for name, param in inner.named_parameters()}
    else:  # a module of the user's, under its own names
        module = getattr(inner, "module", None)
        if not isinstance(module, nn.Module):
            raise no_counterpart(inner)
        tensors = module.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        yield plain(f"{prefix}hybrid_module.fn.{name}", tensor)
    for place, norm in enumerate((part.norm, part.mixer_norm)):
        if not isinstance(norm, RMSNorm) or norm.weight is None or norm.weight.dim() != 3 or norm.eps > 1e-12:
            raise no_counterpart(part)
        yield reordered(f"{prefix}hybrid_norms.{place}.gamma", norm.weight, heads.order, 0, offset=1.0)
    if isinstance(part.mix, LinearProjection) and part.mix.offset is None:
        yield reordered(f"{prefix}hybrid_mix.weight", part.mix.out.weight, heads.order, 0)
    elif part.mix is not None:
        raise no_counterpart(part.mix)


def _nothing(part: nn.Module, prefix: str, heads: Heads) -> Iterator[Entry]:
    return iter(())


_ENTRIES: dict[type, Callable[..., Iterator[Entry]]] = {
    GatedAttention: _gated,
    HeadScaleAttention: _head_scale,
    NormedValues: _value_norm,
    HybridAttention: _hybrid,
    LaserAttention: _nothing,
    DeltaAttention: _nothing,
    DistanceAttention: _nothing,
    OrthogonalValues: _nothing,
    ValueResidual: _value_residual,
    ScoreResidual: _nothing,
    PrefixAttention: _nothing,
    LimitedAttention: _nothing,
    EndsTogether: _nothing,
}
