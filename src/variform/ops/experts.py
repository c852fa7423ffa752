"""Sending tokens to experts and back, in one process or over a group of them; and the losses of routers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from variform.ops.attention.meter import is_metered

Run = Callable[[int, Tensor], Tensor]
"""Runs an expert, by its number, on tokens [1, n, D]."""


def router_logits(x: Tensor, weight: Tensor, jitter: float = 0.0) -> Tensor:
    """The scores of all experts for each token, in float32 at least (Fedus et al. 2021, arXiv:2101.03961, 2.4).

    Args:
        x: [..., D].
        weight: [E, D].
        jitter: features are multiplied with noise in [1 - jitter, 1 + jitter].
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(wide)
        if jitter:
            x = x * torch.empty_like(x).uniform_(1 - jitter, 1 + jitter)
        return F.linear(x, weight.to(wide))


STEP = 8
"""Tokens of an expert are filled up to a multiple of it where no gradient is wanted; see `_piece`."""


def visit(
    x: Tensor, index: Tensor, weight: Tensor, experts: int, run: Run, group: Any = None, most: int | None = None
) -> Tensor:
    """The weighted sum of what the chosen experts make of each token: y_t = sum_j weight_tj expert_{index_tj}(x_t).

    Each expert runs on its own tokens alone. Only within compiled code, whose sizes may not depend on data, every
    expert runs on every token.

    Args:
        x: [T, D].
        index: [T, k], the chosen experts; `experts` stands for none.
        weight: [T, k].
        experts: how many there are.
        run: runs one of them.
        group: the processes that the experts are spread over; None for experts that are all here.
        most: the most tokens that an expert can get, where that is less than T. Where only a cost is measured, tokens
            are taken to be spread evenly up to it.
    """
    choices = index.shape[1]
    if torch.compiler.is_compiling():
        if group is not None:
            raise NotImplementedError("experts that are spread over processes do not run in compiled code")
        return _everywhere(x, index, weight, experts, run)
    flat = index.flatten()
    order = flat.argsort(stable=True)
    if isinstance(x, FakeTensor) or x.is_meta:  # how many visit whom depends on data; in all it is known
        counts = [min(share, flat.numel() if most is None else most) for share in shares(flat.numel(), experts)]
    else:
        counts = torch.bincount(flat, minlength=experts)[:experts].tolist()
    order = order[: sum(counts)]
    out = run_sorted(x[order // choices], counts, run, group)
    placed = out.new_zeros(flat.numel(), out.shape[-1]).index_copy(0, order, out)
    return (placed.view(-1, choices, out.shape[-1]) * weight.to(out.dtype).unsqueeze(-1)).sum(1)


def shares(total: int, parts: int) -> list[int]:
    """A total in nearly equal parts."""
    return [(total + place) // parts for place in range(parts)]


def _everywhere(x: Tensor, index: Tensor, weight: Tensor, experts: int, run: Run) -> Tensor:
    y: Tensor | None = None
    for number in range(experts):
        chosen = index == number
        share = (weight * chosen).sum(1).to(x.dtype).unsqueeze(-1)
        out = run(number, x.unsqueeze(0)).squeeze(0)
        out = torch.where(chosen.any(1).unsqueeze(-1), out * share, 0)
        y = out if y is None else y + out
    assert y is not None
    return y


def run_sorted(x: Tensor, counts: Sequence[int], run: Run, group: Any = None) -> Tensor:
    """Each expert on its tokens; one without any runs on none, so that its weights have a gradient all the same.

    Args:
        x: [n, D], the tokens of the first expert, then those of the second, ...
        counts: tokens of each expert; n in all.
        run: runs an expert.
        group: the processes that the experts are spread over.
    """
    if group is not None:
        return _over_processes(x, counts, run, group)
    pieces = torch.split(x, list(counts))
    return torch.cat([_piece(run, number, piece) for number, piece in enumerate(pieces)])


def _piece(run: Run, number: int, x: Tensor) -> Tensor:
    """One expert on its tokens.

    Products of a few rows, or of a number of rows that is no multiple of 4, round differently on processors. So that
    a token's result does not depend, even in its last bit, on how many others visit the same expert, rows are filled
    up; where gradients are wanted that would cost memory, and is left out.
    """
    rows = x.shape[0]
    more = -rows % STEP
    if not more or torch.is_grad_enabled() or is_metered():
        return run(number, x.unsqueeze(0)).squeeze(0)
    return run(number, F.pad(x, (0, 0, 0, more)).unsqueeze(0)).squeeze(0)[:rows]


def _over_processes(x: Tensor, counts: Sequence[int], run: Run, group: Any) -> Tensor:
    """Tokens travel to the process of their expert, and what it made of them travels back (arXiv:2006.16668)."""
    import torch.distributed as dist

    world, rank = dist.get_world_size(group), dist.get_rank(group)
    own = len(counts) // world
    sent = torch.tensor(counts, dtype=torch.int64, device=x.device)
    came = torch.empty_like(sent)
    dist.all_to_all_single(came, sent, group=group)
    out_sizes, in_sizes = sent.view(world, own).sum(1).tolist(), came.view(world, own).sum(1).tolist()
    exchange: Any = _Exchange.apply  # torch declares no types for it
    here = exchange(x, out_sizes, in_sizes, group)
    whose = torch.arange(own, device=x.device).repeat(world).repeat_interleave(came)
    order = whose.argsort(stable=True)
    mine = came.view(world, own).sum(0).tolist()
    out = run_sorted(here[order], mine, lambda number, piece: run(rank * own + number, piece))
    returned: Tensor = exchange(out[order.argsort()], in_sizes, out_sizes, group)
    return returned


class _Exchange(torch.autograd.Function):
    """Rows go to the processes of a group, so many to each; gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], came: list[int], group: Any) -> Tensor:
        ctx.sizes = sent, came, group
        return _exchanged(x, sent, came, group)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None, None, None]:
        sent, came, group = ctx.sizes
        return _exchanged(grad[0], came, sent, group), None, None, None


def _exchanged(x: Tensor, sent: list[int], came: list[int], group: Any) -> Tensor:
    import torch.distributed as dist

    out = x.new_empty(sum(came), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), came, sent, group=group)
    return out


class Elsewhere(nn.Module):
    """Stands for an expert that another process has."""

    def forward(self, *_: Any) -> Tensor:
        """Never called."""
        raise RuntimeError("this expert belongs to another process")


# ---- losses ----


def load_balance(chance: Tensor, index: Tensor, valid: Tensor | None, group: Any = None) -> Tensor:
    """Switch's load-balancing loss (arXiv:2101.03961, eq. 4): E sum_i f_i P_i, which is 1 where all experts are alike.

    f_i is the share of visits that expert i gets, P_i its mean probability.

    Args:
        chance: [..., E], the router's probabilities.
        index: [..., k], the chosen experts; E stands for none.
        valid: [...] bool, False at padding.
        group: processes over which tokens are counted together; the mean of their losses is the loss of all tokens.
    """
    experts = chance.shape[-1]
    visits = (index.unsqueeze(-1) == torch.arange(experts, device=index.device)).flatten(0, -2).sum(0).to(chance.dtype)
    summed = (chance if valid is None else torch.where(valid.unsqueeze(-1), chance, 0)).flatten(0, -2).sum(0)
    tokens = _tokens(chance, valid)
    world = 1
    if group is not None:
        world = _sum_over(group, visits, tokens)
    return experts * world * (visits / visits.sum().clamp(min=1) * summed).sum() / tokens


def router_z(logits: Tensor, valid: Tensor | None, group: Any = None) -> Tensor:
    """The router z-loss (Zoph et al. 2022, arXiv:2202.08906, eq. 5): the mean of logsumexp(logits)^2.

    Args:
        logits: [..., E].
        valid: [...] bool, False at padding.
        group: as in `load_balance`.
    """
    square = logits.logsumexp(-1).square()
    tokens = _tokens(logits, valid)
    world = 1 if group is None else _sum_over(group, tokens)
    return world * (square if valid is None else torch.where(valid, square, 0)).sum() / tokens


def _tokens(x: Tensor, valid: Tensor | None) -> Tensor:
    count = x.new_full((), x[..., 0].numel()) if valid is None else valid.sum().to(x.dtype)
    return count.clamp(min=1)


def _sum_over(group: Any, *counts: Tensor) -> int:
    import torch.distributed as dist

    for count in counts:
        dist.all_reduce(count, group=group)
    return int(dist.get_world_size(group))
