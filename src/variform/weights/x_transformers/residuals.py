"""Residuals and scaled branches of x-transformers' checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from variform.errors import ConfigError
from variform.parts.residual.gated_multi import GatedMultiResidual
from variform.parts.residual.gru import GRUResidual
from variform.parts.residual.hyper import HyperConnection
from variform.parts.residual.mean_split import MeanSplitResidual
from variform.parts.residual.orthogonal import OrthogonalResidual
from variform.parts.residual.scaled import ScaledResidual, ScaledStreamResidual
from variform.parts.stream_ops.branch import ScaledBranch
from variform.weights.entries import Entry, affine, plain
from variform.weights.x_transformers.pieces import no_counterpart


def residual_entries(residual: nn.Module | None, prefix: str) -> Iterator[Entry]:
    """The entries of what joins a branch."""
    if isinstance(residual, (ScaledStreamResidual, GRUResidual, OrthogonalResidual)) and residual.scale is not None:
        yield plain(f"{prefix}residual_scale", residual.scale)
    if isinstance(residual, GRUResidual):
        for name, linear in (("ih", residual.of_branch), ("hh", residual.of_stream)):
            yield plain(f"{prefix}gru.weight_{name}", linear.weight)
            yield plain(f"{prefix}gru.bias_{name}", linear.bias)
    elif isinstance(residual, MeanSplitResidual):
        factors = (("alpha", residual.alpha, residual.alpha_map), ("beta", residual.beta, residual.beta_map))
        for name, start, weight in factors:
            if weight is None:
                yield plain(prefix + name, start)
            else:
                yield plain(f"{prefix}to_{name}.weight", weight)
                yield plain(f"{prefix}to_{name}.bias", start)
    elif isinstance(residual, HyperConnection):
        yield from _hyper(residual, prefix)
    elif isinstance(residual, GatedMultiResidual):
        yield plain(f"{prefix}read_gain", residual.gain)
        yield plain(f"{prefix}static_read_logit", residual.reading)
        yield plain(f"{prefix}static_write_logit", residual.writing)
        yield plain(f"{prefix}dynamic_gate_scale", residual.scale)
        yield plain(f"{prefix}to_bottleneck.weight", residual.down.weight)
        yield plain(f"{prefix}to_read_gate.weight", residual.reading_map.weight)
        yield plain(f"{prefix}to_write_gate.weight", residual.writing_map.weight)
    elif residual is not None and not isinstance(residual, (ScaledResidual, ScaledStreamResidual, OrthogonalResidual)):
        raise no_counterpart(residual)


def _hyper(residual: HyperConnection, prefix: str) -> Iterator[Entry]:
    if not residual.legacy:
        raise ConfigError(
            "x-transformers' hyper connections mix by a matrix of ones whatever their weights say, and these do not",
            hint="legacy=True is that function, for its checkpoints",
        )
    yield plain(f"{prefix}norm.weight", residual.gain)
    yield plain(f"{prefix}static_alpha", residual.mixing)
    yield plain(f"{prefix}dynamic_alpha_fn", residual.mixing_map)
    yield plain(f"{prefix}dynamic_alpha_scale", residual.mixing_scale)
    yield plain(f"{prefix}static_beta", residual.writing)
    yield plain(f"{prefix}dynamic_beta_fn", residual.writing_map)
    yield plain(f"{prefix}dynamic_beta_scale", residual.writing_scale)


def branch_entries(part: ScaledBranch, prefix: str, offset: float) -> Iterator[Entry]:
    """The entry of a learned factor on a branch, `offset` less than it."""
    if part.gain is not None:
        yield affine(f"{prefix}gamma", part.gain, offset=offset)
