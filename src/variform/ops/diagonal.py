"""Diagonal state spaces with fixed steps: a convolution and a recurrence in one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["diagonal_kernel", "diagonal_state_space", "naive_diagonal_state_space"]

CHUNK = 32
"""Tokens that reach each other through the kernel; older ones through the state."""


def diagonal_state_space(
    u: Tensor, decay: Tensor, weight: Tensor, state: Tensor | None = None, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """h_t = exp(decay) h_{t-1} + u_t, y_t = 2 Re(weight h_t) summed over N complex numbers a feature (S4D).

    Complex numbers are pairs of real ones in the last axis but one. Chunks of tokens convolve among themselves with
    the kernel 2 Re(weight exp(decay l)), and hand a state on.

    Args:
        u: inputs.
        decay: the step times the diagonal of A, with negative real parts.
        weight: C times the factor of the inputs.
        state: h before the first token; zeros by default.
        chunk: the longest chunk.

    Shapes: u `[B, L, D]`, decay and weight `[D, 2, N]`, state `[B, D, 2, N]`
        -> y `[B, L, D]` and the last state `[B, D, 2, N]`
    """
    batch, length, dim = u.shape
    size = min(chunk, length)
    count = -(-length // size)
    spare = count * size - length
    powers = _powers(decay, size + 1)  # [D, size + 1, 2, N]
    kernel = _real_product(powers[:, :size], weight[:, None]).sum(-1)
    tokens = F.pad(u, (0, 0, 0, spare)).view(batch * count, size, dim).permute(2, 1, 0)
    within = _toeplitz(2 * kernel) @ tokens
    h = torch.zeros(batch, *weight.shape, dtype=u.dtype, device=u.device) if state is None else state
    held = [h]
    if count > 1:
        sums = powers[:, :size].flip(1).flatten(2).transpose(1, 2) @ tokens
        chunks = sums.view(dim, 2, -1, batch, count).permute(3, 4, 0, 1, 2)
        for place in range(count - 1):
            h = _product(powers[:, size], h) + chunks[:, place]
            held.append(h)
    read = _product(powers[:, 1:], weight[:, None])
    read = torch.stack((read[..., 0, :], -read[..., 1, :]), -2).flatten(2)
    before = torch.stack(held, 1).permute(2, 3, 4, 0, 1).reshape(dim, -1, batch * count)
    y = within + 2 * (read @ before)
    out = y.permute(2, 1, 0).reshape(batch, count * size, dim)[:, :length]
    rest = size - spare
    newest = u[:, length - rest :].permute(2, 0, 1) @ powers[:, :rest].flip(1).flatten(2)
    return out, _product(powers[:, rest], h) + newest.transpose(0, 1).reshape(h.shape)


def diagonal_kernel(decay: Tensor, weight: Tensor, length: int) -> Tensor:
    """The kernel of the convolution, 2 Re(weight exp(decay l)), `[length, D]`."""
    return 2 * _real_product(_powers(decay, length), weight[:, None]).sum(-1).transpose(0, 1)


def naive_diagonal_state_space(
    u: Tensor, decay: Tensor, weight: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`diagonal_state_space` token by token with complex numbers; the oracle."""
    factor, read = torch.complex(decay[:, 0], decay[:, 1]).exp(), torch.complex(weight[:, 0], weight[:, 1])
    h = torch.zeros(u.shape[0], *read.shape, dtype=read.dtype)
    if state is not None:
        h = torch.complex(state[:, :, 0], state[:, :, 1])
    out = []
    for t in range(u.shape[1]):
        h = factor * h + u[:, t, :, None]
        out.append(2 * (read * h).sum(-1).real)
    return torch.stack(out, 1), torch.stack((h.real, h.imag), -2)


def _powers(decay: Tensor, count: int) -> Tensor:
    """exp(decay l) for l = 0 .. count - 1, `[D, count, 2, N]`."""
    steps = torch.arange(count, device=decay.device, dtype=decay.dtype)[:, None]
    size, turn = (decay[:, None, 0] * steps).exp(), decay[:, None, 1] * steps
    return torch.stack((size * turn.cos(), size * turn.sin()), -2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A product of complex numbers."""
    a_re, a_im, b_re, b_im = a[..., 0, :], a[..., 1, :], b[..., 0, :], b[..., 1, :]
    return torch.stack((a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re), -2)


def _real_product(a: Tensor, b: Tensor) -> Tensor:
    """The real part of a product."""
    return a[..., 0, :] * b[..., 0, :] - a[..., 1, :] * b[..., 1, :]


def _toeplitz(kernel: Tensor) -> Tensor:
    """[D, size] to the lower triangular [D, size, size] with kernel_{t - s} in row t and column s."""
    steps = torch.arange(kernel.shape[1], device=kernel.device)
    lag = steps[:, None] - steps
    return kernel[:, lag.clamp(min=0)].masked_fill(lag < 0, 0)
