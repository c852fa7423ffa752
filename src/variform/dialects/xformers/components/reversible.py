"""Reversible blocks and sequences of them: what is kept for the backward pass does not grow with the depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.xformers.components.branches import Call, run_in_turn
from variform.dialects.xformers.components.residual import RequiresWrappedInputs
from variform.dialects.xformers.errors import CallError, Wrong, config_error
from variform.ops.reversible import Draws


class Deterministic(nn.Module):
    """A module that can draw the same random numbers again.

    Args:
        net: the module.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self._draws: Draws | None = None

    def record_rng(self, *args: Tensor) -> None:
        """Note the state of the random number generators, that of the arguments' device included."""
        self._draws = Draws(args[0].device if args else torch.device("cpu"))
        self._draws.note()

    def forward(self, *args: Tensor, record_rng: bool = False, set_rng: bool = False, **kwargs: Any) -> Tensor:
        """Run the module.

        Args:
            *args: its inputs.
            record_rng: note the state of the generators first.
            set_rng: draw what was drawn after the last note; the generators are put back afterwards.
            **kwargs: further arguments of the module.

        Raises:
            CallError: `set_rng` before anything was noted.
        """
        if record_rng:
            self.record_rng(*args)
        if not set_rng:
            return self._run(args, kwargs)
        if self._draws is None:
            raise CallError("set_rng needs a call with record_rng before it")
        with self._draws.aside():
            self._draws.again(0)
            return self._run(args, kwargs)

    def _run(self, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Tensor:
        out: Tensor
        if isinstance(self.net, RequiresWrappedInputs):
            out = self.net(inputs=list(args), **kwargs)
        else:
            out = self.net(*args, **kwargs)
        return out


class ReversibleBlock(nn.Module):
    """y1 = x1 + f(x2), y2 = x2 + g(y1), for x = [x1, x2] and y = [y1, y2] along `split_dim`.

    RevNet's block (Gomez et al. 2017, arXiv:1707.04585). The backward pass computes x from y; gradients are those of
    the formula, dropout included.

    Shapes:
        x: any, of even size along `split_dim` -> the same

    Args:
        f: from x2 to what is added to x1, of its shape.
        g: from y1 to what is added to x2.
        split_dim: the axis that holds both halves.
    """

    def __init__(self, f: nn.Module, g: nn.Module, split_dim: int = -1) -> None:
        super().__init__()
        self.f = Deterministic(f)
        self.g = Deterministic(g)
        self.split_dim = split_dim

    def forward(self, x: Tensor, f_args: Mapping[str, Any] = {}, g_args: Mapping[str, Any] = {}) -> Tensor:
        """Run the block.

        Args:
            x: both halves.
            f_args: further arguments of f; tensors among them get their gradients.
            g_args: likewise of g.
        """
        return _run([self], x, f_args, g_args)


class ReversibleSequence(nn.Module):
    """Reversible blocks in order; whatever the depth, the result alone is kept for the backward pass.

    Shapes:
        x: any, of even size along the blocks' `split_dim` -> the same

    Args:
        blocks: pairs (f, g), lists of modules say, or blocks, which must split along one axis.

    Raises:
        ConfigError: neither, or blocks that split along different axes; an `AssertionError` too.
    """

    def __init__(self, blocks: Iterable[Any]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_block(index, block) for index, block in enumerate(blocks))
        if len({block.split_dim for block in self.blocks}) > 1:
            message = "the blocks of a sequence split along one axis"
            raise config_error([Wrong("blocks", message, [b.split_dim for b in self.blocks], like=AssertionError)])

    def forward(self, x: Tensor, arg_route: tuple[bool, bool] = (True, False), **kwargs: Any) -> Tensor:
        """Run the blocks.

        Args:
            x: both halves.
            arg_route: whether `kwargs` go to each f and to each g.
            **kwargs: further arguments of theirs; tensors among them get their gradients.

        Raises:
            CallError: arguments that go nowhere, or sizes that do not fit.
        """
        to_f, to_g = arg_route
        if kwargs and not (to_f or to_g):
            raise CallError(f"arg_route = {arg_route} gives {', '.join(kwargs)} to neither f nor g")
        return _run(list(self.blocks), x, kwargs if to_f else {}, kwargs if to_g else {})


def _block(index: int, block: Any) -> ReversibleBlock:
    if isinstance(block, ReversibleBlock):
        return block
    if isinstance(block, Iterable) and not isinstance(block, nn.Sequential):
        pair = list(block)
        if len(pair) == 2 and all(isinstance(module, nn.Module) for module in pair):
            return ReversibleBlock(*pair)
    raise config_error(
        [Wrong(f"blocks.{index}", "a pair (f, g) of modules, or a ReversibleBlock", block, like=TypeError)]
    )


def _run(blocks: Sequence[Any], x: Tensor, f_args: Mapping[str, Any], g_args: Mapping[str, Any]) -> Tensor:
    if not blocks:
        return x
    axis: int = blocks[0].split_dim
    if not -x.dim() <= axis < x.dim() or x.shape[axis] % 2:
        raise CallError(f"x {list(x.shape)} is no pair of halves along split_dim = {axis}")

    def call(net: Deterministic, name: str) -> Call:
        def run(half: Tensor, given: Any) -> Tensor:
            out: Tensor = net(half, **given[name])
            if out.shape != half.shape:
                raise CallError(f"{name} makes {list(out.shape)} of {list(half.shape)}: it must keep the shape")
            return out

        return run

    branches = [(net, call(net, name)) for block in blocks for name, net in (("f", block.f), ("g", block.g))]
    x1, x2 = x.chunk(2, dim=axis)
    return torch.cat(run_in_turn(branches, x1, x2, {"f": dict(f_args), "g": dict(g_args)}), dim=axis)
