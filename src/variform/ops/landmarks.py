"""Landmarks chosen among queries: those most unlike one another, cluster means, or a random few.

All of them work on ranks: `count` [B] says how many tokens of a row are real, they come first. Rows and heads do not
influence one another. Which tokens are chosen has no gradient; the landmarks made of them have.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kmeans", "orthogonal", "pick", "spread"]


def spread(count: Tensor, wanted: Tensor, most: int, size: int, random: bool) -> Tensor:
    """Ranks `[B, most]`, of which the first `wanted` of each row count: evenly spread, or drawn without repetition.

    Args:
        count: `[B]`, real tokens of each row.
        wanted: `[B]`, how many of them to take; at most `count` and `most`.
        size: tokens of a row, padding included.
        random: draw from torch's generator.
    """
    if not random:
        steps = torch.arange(most, device=count.device)
        return (steps * count[:, None] // wanted.clamp(min=1)[:, None]).clamp(max=size - 1)
    noise = torch.rand(count.shape[0], size, device=count.device)
    padding = torch.arange(size, device=count.device) >= count[:, None]
    return noise.masked_fill(padding, 2.0).argsort(1)[:, :most]


def pick(x: Tensor, ranks: Tensor) -> Tensor:
    """`[B, H, L, D]` at ranks `[B, n]` or `[B, H, n]`: `[B, H, n, D]`."""
    ranks = ranks[:, None] if ranks.dim() == 2 else ranks
    return x.gather(2, ranks[..., None].expand(-1, x.shape[1], -1, x.shape[3]))


def orthogonal(x: Tensor, among: int, real: Tensor) -> Tensor:
    """Ranks `[B, H, among]`, chosen one by one: first the first token, then that whose largest |cosine| to those
    chosen already is the smallest.

    Shapes:
        x: `[B, H, L, D]`; real: bool `[B, L]`
    """
    wide = x.detach().to(torch.float32 if x.dtype.itemsize < 4 else x.dtype)
    unit = torch.nn.functional.normalize(wide, dim=-1)
    steps = torch.arange(x.shape[2], device=x.device)
    chosen = [steps.new_zeros(x.shape[:2])]
    worst = unit.new_zeros(x.shape[:3]).masked_fill(~real[:, None], 8.0)
    for _ in range(among - 1):
        newest = unit.gather(2, chosen[-1][..., None, None].expand(-1, -1, 1, x.shape[3]))
        worst = torch.maximum(worst, (unit * newest).sum(-1).abs())
        worst = worst.masked_fill(steps == chosen[-1][..., None], 4.0)
        chosen.append(worst.argmin(-1))
    return torch.stack(chosen, -1)


def kmeans(x: Tensor, start: Tensor, real: Tensor, rounds: int, spherical: bool) -> Tensor:
    """Cluster means `[B, H, n, D]` of the real tokens after some rounds of Lloyd's method; a cluster that loses all its
    tokens stays where it was.

    Args:
        start: ranks `[B, n]` of the first means.
        real: bool `[B, L]`.
        spherical: clusters of directions, with means of length 1.
    """
    x = torch.nn.functional.normalize(x, dim=-1) if spherical else x
    means = pick(x, start)
    clusters = torch.arange(start.shape[1], device=x.device)
    for _ in range(rounds):
        closeness = x.detach() @ means.detach().transpose(-1, -2)
        if not spherical:
            closeness = closeness - 0.5 * means.detach().square().sum(-1)[..., None, :]
        member = closeness.argmax(-1, keepdim=True) == clusters
        member = (member & real[:, None, :, None]).to(x.dtype).transpose(-1, -2)
        size = member.sum(-1, keepdim=True)
        means = torch.where(size > 0, member @ x / size.clamp(min=1), means)
        means = torch.nn.functional.normalize(means, dim=-1) if spherical else means
    return means
