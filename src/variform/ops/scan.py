"""Linear recurrences over a sequence, and the selective one of Mamba."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from variform.ops.shapes import root

__all__ = ["linear_scan", "naive_selective_scan", "selective_scan", "short_convolution"]


def linear_scan(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t for every t, with h_{-1} = initial.

    About 2 sqrt(L) steps over sqrt(L) chunks at once, without a division, so that a may be 0. Only `a` and the result
    are kept for the backward pass, which is a recurrence of the same form from the end.

    Shapes: a, b `[B, L, ...]`, initial `[B, ...]` -> `[B, L, ...]`
    """
    if torch.compiler.is_compiling():
        return _chunked(a, b, initial)
    out: Tensor = _Scan.apply(a, b, initial)  # type: ignore[no-untyped-call]
    return out


class _Scan(torch.autograd.Function):
    """The recurrence with its own gradient."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
        h = _chunked(a, b, initial)
        ctx.save_for_backward(a, h, initial)
        return h

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, h, initial = ctx.saved_tensors
        later = torch.cat((a[:, 1:], torch.zeros_like(a[:, :1])), 1)
        whole = linear_scan(later.flip(1), gradient.flip(1), torch.zeros_like(initial)).flip(1)
        before = torch.cat((initial[:, None], h[:, :-1]), 1)
        return whole * before, whole, whole[:, 0] * a[:, 0]


def _chunked(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
    length = a.shape[1]
    size = max(1, root(length))
    count = -(-length // size)
    if count * size != length:
        spare = [0, 0] * (a.dim() - 2) + [0, count * size - length]
        a, b = F.pad(a, spare), F.pad(b, spare)
    a, b = a.view(a.shape[0], count, size, *a.shape[2:]), b.view(b.shape[0], count, size, *b.shape[2:])
    within, factor = [b[:, :, 0]], [a[:, :, 0]]
    for step in range(1, size):
        within.append(torch.addcmul(b[:, :, step], a[:, :, step], within[-1]))
        factor.append(factor[-1] * a[:, :, step])
    starts = [initial]
    for chunk in range(count - 1):
        starts.append(torch.addcmul(within[-1][:, chunk], factor[-1][:, chunk], starts[-1]))
    first = torch.stack(starts, 1)
    whole = torch.stack([torch.addcmul(h, p, first) for h, p in zip(within, factor, strict=True)], 2)
    return whole.flatten(1, 2)[:, :length]


def selective_scan(
    u: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    initial: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t, y_t = h_t C_t: Mamba's selective state space (arXiv:2312.00752).

    A token with dt = 0 leaves the state as it is. Computed in float32 at least.

    Args:
        u: inputs.
        dt: step sizes, >= 0.
        a: the matrix A, a diagonal one for each feature.
        b, c: B and C of each token.
        initial: the state before the first token; zeros by default.
        starts: True where the state before is forgotten.

    Shapes: u, dt `[B, L, D]`, a `[D, N]`, b, c `[B, L, N]`, initial `[B, D, N]`, starts `[B, L]`
        -> y `[B, L, D]` and the last state `[B, D, N]`
    """
    dtype = u.dtype
    if dtype.itemsize < 4:
        u, dt, a, b, c = (t.float() for t in (u, dt, a, b, c))
    gates = (dt[..., None] * a).exp()
    if starts is not None:
        gates = gates.masked_fill(starts[..., None, None], 0)
    if initial is None:
        initial = torch.zeros_like(gates[:, 0])
    h = linear_scan(gates, (dt * u)[..., None] * b[:, :, None], initial.to(gates.dtype))
    return (h @ c[..., None])[..., 0].to(dtype), h[:, -1]


def naive_selective_scan(
    u: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    initial: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` token by token; the oracle."""
    h = u.new_zeros(u.shape[0], *a.shape) if initial is None else initial
    out = []
    for t in range(u.shape[1]):
        if starts is not None:
            h = torch.where(starts[:, t, None, None], 0, h)
        h = (dt[:, t, :, None] * a).exp() * h + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
        out.append((h * c[:, t, None]).sum(-1))
    return torch.stack(out, 1), h


def short_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None = None, starts: Tensor | None = None
) -> Tensor:
    """A causal depthwise convolution over few tokens: y_t = sum_k weight_k x_{t - K + 1 + k} + bias.

    Args:
        x: features.
        weight: K taps a feature, the newest token's last.
        bias: an offset.
        before: the K - 1 tokens before, zeros by default.
        starts: True where a document begins, which sees nothing before it.

    Shapes: x `[B, L, D]`, weight `[D, K]`, before `[B, K - 1, D]`, starts `[B, L]` -> `[B, L, D]`
    """
    taps, length = weight.shape[1], x.shape[1]
    whole = F.pad(x, (0, 0, taps - 1, 0)) if before is None else torch.cat((before.to(x.dtype), x), 1)
    runs = None if starts is None else starts.long().cumsum(1)
    held = None if runs is None else F.pad(runs, (taps - 1, 0))
    y = x * weight[:, -1] if bias is None else torch.addcmul(bias, x, weight[:, -1])
    for tap in range(taps - 1):
        old = whole[:, tap : tap + length]
        if runs is not None and held is not None:
            old = old.masked_fill((held[:, tap : tap + length] != runs)[..., None], 0)
        y = torch.addcmul(y, old, weight[:, tap])
    return y
