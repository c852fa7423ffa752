"""Reversible residual steps: the backward pass computes their inputs from their outputs, so that none is kept.

Two streams take turns: a step maps (a, b) to (b, a + s(b)); going back, b is there, and a = b' - s(b). Two steps f and
g are the block of RevNet, y1 = x1 + f(x2), y2 = x2 + g(y1) (Gomez et al. 2017, arXiv:1707.04585; Reformer, Kitaev et
al. 2020, arXiv:2001.04451).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from variform.errors import ShapeError

__all__ = ["Draws", "Step", "in_turn", "prepare", "reversible"]

Told = tuple[Tensor, ...]
"""What steps tell beside their branches, such as losses."""

Branch = Tensor | tuple[Tensor, Told]
Streams = tuple[Tensor, Tensor, Told]


class Draws:
    """The states of the random number generators before each step, so that the backward pass draws the same again.

    Args:
        device: where the steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.states: list[tuple[Tensor, ...]] = []

    def note(self) -> None:
        """A step begins; steps that draw nothing share one state."""
        state = (torch.get_rng_state(), *((self._generator().get_rng_state(self.device),) if self._apart else ()))
        last = self.states[-1] if self.states else None
        same = last is not None and all(map(torch.equal, last, state))
        self.states.append(last if same and last is not None else state)

    def again(self, index: int) -> None:
        """Set the generators to where they were before a step."""
        own, *others = self.states[index]
        torch.set_rng_state(own)
        for state in others:
            self._generator().set_rng_state(state, self.device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within the context the generators may be set; afterwards they are as they were."""
        devices = [self.device] if self._apart else []
        with torch.random.fork_rng(devices=devices, device_type=self.device.type if self._apart else "cuda"):
            yield

    @property
    def _apart(self) -> bool:
        return self.device.type not in ("cpu", "meta")

    def _generator(self) -> Any:
        return getattr(torch, self.device.type)


@dataclass(frozen=True)
class Step:
    """One residual branch s.

    Args:
        run: from the stream and the side inputs to the branch, or to (branch, tensors told beside it); to be called
            with gradients on or off.
        module: holds the parameters that `run` uses.
    """

    run: Callable[[Tensor, Sequence[Tensor]], Branch]
    module: nn.Module


Forward = Callable[[Tensor, Tensor, Sequence[Tensor], Draws | None], Streams]
"""All steps: (x1, x2, side inputs, draws) -> (y1, y2, told); `draws.note()`, if any, is called before each step."""


def reversible(
    steps: Sequence[Step], x1: Tensor, x2: Tensor, sides: Sequence[Tensor], forward: Forward | None = None
) -> Streams:
    """Run steps, keeping their results and `sides` alone for the backward pass.

    Gradients reach x1, x2, `sides` and the parameters of the steps' modules: all of them are inputs of one function of
    autograd. Dropout is drawn again as it was, and automatic casts are made again as they were.

    Args:
        steps: the branches in order.
        x1: the stream that the first step adds to.
        x2: the stream that the first step reads.
        sides: further tensors that steps read.
        forward: runs all steps, where they are more than their branches; by default they run one after another.

    Returns:
        both streams after the last step, and what all steps told, in order.

    Raises:
        ShapeError: parameters are sharded, or a module changes a buffer in place while it runs.
    """
    run = in_turn(steps) if forward is None else forward
    parameters = [
        p for module in _modules(steps) for p in module._parameters.values() if p is not None and p.requires_grad
    ]
    known = torch.is_grad_enabled() and not torch.compiler.is_exporting()
    if not known or not any(t.requires_grad for t in (x1, x2, *sides, *parameters)):
        return run(x1, x2, sides, None)
    if any(hasattr(p, "device_mesh") for p in parameters):
        raise ShapeError(
            "reversible layers need whole parameters, and these are sharded: train with DDP, or take the "
            "executor 'checkpoint'"
        )
    prepare()
    y1, y2, *told = _entry[0](tuple(steps), run, len(sides), x1, x2, *sides, *{id(p): p for p in parameters}.values())
    return y1, y2, tuple(told)


def in_turn(steps: Sequence[Step]) -> Forward:
    """The steps one after another."""

    def run(a: Tensor, b: Tensor, sides: Sequence[Tensor], draws: Draws | None) -> Streams:
        told: Told = ()
        for step in steps:
            if draws is not None:
                draws.note()
            branch, new = _parted(step.run(b, sides))
            a, b, told = b, a + branch, told + new
        return a, b, told

    return run


def _parted(out: Branch) -> tuple[Tensor, Told]:
    return out if isinstance(out, tuple) else (out, ())


def _modules(steps: Sequence[Step]) -> list[nn.Module]:
    return list({id(m): m for step in steps for m in step.module.modules()}.values())


class _Reversible(torch.autograd.Function):
    """All steps as one function; parameters are inputs, so that whoever waits for their gradients (DDP) gets them."""

    @staticmethod
    def forward(
        ctx: Any, steps: tuple[Step, ...], run: Forward, count: int, x1: Tensor, x2: Tensor, *more: Tensor
    ) -> tuple[Tensor, ...]:
        sides, ctx.parameters = more[:count], more[count:]
        ctx.steps, ctx.draws, ctx.casts = steps, _Watched(x1.device, steps), _casts(x1.device.type)
        ctx.versions = [p._version for p in ctx.parameters]
        with _casting(ctx.casts):
            y1, y2, told = run(x1, x2, sides, ctx.draws)
        ctx.draws.close()
        y1, y2 = y1.view_as(y1), y2.view_as(y2)  # a single step hands an input on
        ctx.save_for_backward(y1, y2, *sides)
        return y1, y2, *told

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g1: Tensor, g2: Tensor, *told: Tensor) -> tuple[Tensor | None, ...]:
        a, b, *sides = ctx.saved_tensors
        if [p._version for p in ctx.parameters] != ctx.versions:
            raise RuntimeError(
                "a parameter of a reversible layer was changed in place between the forward and the backward pass"
            )
        wanted = ctx.needs_input_grad[5:]
        leaves = [side.detach().requires_grad_() if need else side for side, need in zip(sides, wanted, strict=False)]
        sums = _Sums([*(s if need else None for s, need in zip(leaves, wanted, strict=False)), *ctx.parameters])
        with ctx.draws.aside(), _casting(ctx.casts):
            for index in range(len(ctx.steps) - 1, -1, -1):
                step = ctx.steps[index]
                x = a.detach().requires_grad_()
                aliases = _aliases(step.module, ctx.parameters)
                with ctx.draws.computing_again(index), torch.enable_grad(), aliases as own:
                    branch, new = _parted(step.run(x, leaves))
                used = [leaf for leaf, need in zip(leaves, wanted, strict=False) if need]
                told, mine = told[: len(told) - len(new)], told[len(told) - len(new) :]
                outs = [
                    (t, g) for t, g in ((branch, g2.to(branch.dtype)), *zip(new, mine, strict=True)) if t.requires_grad
                ]
                found: Sequence[Tensor | None] = (None,) * (1 + len(used) + len(own))
                if outs:
                    results, gradients = zip(*outs, strict=True)
                    found = torch.autograd.grad(results, [x, *used, *own.values()], gradients, allow_unused=True)
                sums.add(used, found[1:])
                sums.add([ctx.parameters[place] for place in own], found[1 + len(used) :])
                a, b = b - branch.detach(), a
                g1, g2 = g2, g1 if found[0] is None else g1 + found[0]
        return (None, None, None, g1, g2, *sums.totals())


_entry: list[Callable[..., Any]] = []


def prepare() -> None:
    """Tell torch's compiler to leave the steps to themselves; whoever builds reversible layers calls it.

    The compiler is loaded by that, which takes longer than importing this library.
    """
    if not _entry:
        reason = "reversible layers are compiled one by one"
        _entry.append(torch.compiler.disable(_Reversible.apply, recursive=False, reason=reason))  # type: ignore[no-untyped-call]


class _Sums:
    """Gradients of tensors, over all steps that use them."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        self.places = {id(tensor): place for place, tensor in enumerate(tensors) if tensor is not None}
        self.found: list[Tensor | None] = [None] * len(tensors)

    def add(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Add the gradients of some of the tensors; None is zero."""
        for tensor, gradient in zip(tensors, gradients, strict=False):
            place = self.places[id(tensor)]
            before = self.found[place]
            if gradient is not None:
                self.found[place] = gradient if before is None else before + gradient

    def totals(self) -> list[Tensor | None]:
        """The sums, None where nothing was added."""
        return self.found


@contextmanager
def _aliases(module: nn.Module, parameters: Sequence[Tensor]) -> Iterator[dict[int, Tensor]]:
    """Within the context the module uses other leaves over the same memory, given by the place of the parameter.

    Gradients are taken for them, so that hooks on the parameters themselves run once: when the sums arrive.
    """
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    made: dict[int, Tensor] = {}
    taken: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for inner in module.modules():
            own: dict[str, Any] = inner._parameters
            for name, parameter in own.items():
                place = places.get(id(parameter))
                if place is not None:
                    taken.append((own, name, parameter))
                    if place not in made:
                        made[place] = nn.Parameter(parameter.detach())
        for own, name, parameter in taken:
            own[name] = made[places[id(parameter)]]
        yield made
    finally:
        for own, name, parameter in taken:
            own[name] = parameter


class _Watched(Draws):
    """Also knows which buffers steps replaced (features that are drawn anew, say), to compute with the same again.

    Args:
        device: where the steps run.
        steps: in order.

    Raises:
        ShapeError: on `note` or `close`, if a module changed a buffer in place, so that what it was is lost.
    """

    def __init__(self, device: torch.device, steps: Sequence[Step]) -> None:
        super().__init__(device)
        self.owners = [[module for module in step.module.modules() if module._buffers] for step in steps]
        self.replaced: list[list[tuple[nn.Module, str, Tensor | None]]] = []
        self.before: list[tuple[nn.Module, dict[str, Tensor | None], list[int]]] | None = None

    def note(self) -> None:
        """A step begins, and the one before it is over."""
        self.close()
        owners = self.owners[len(self.states)]
        self.before = [(m, dict(m._buffers), [_version(b) for b in m._buffers.values()]) for m in owners]
        super().note()

    def close(self) -> None:
        """The last step is over."""
        if self.before is None:
            return
        found = []
        for module, buffers, versions in self.before:
            for (name, buffer), version in zip(buffers.items(), versions, strict=True):
                if _version(buffer) != version:
                    raise ShapeError(
                        f"{type(module).__name__} changes its buffer {name!r} in place while it runs, so that a "
                        "reversible layer cannot compute it again; the executor 'plain' runs it once"
                    )
                if module._buffers.get(name) is not buffer:
                    found.append((module, name, module._buffers.get(name)))
        self.replaced.append(found)

    @contextmanager
    def computing_again(self, index: int) -> Iterator[None]:
        """Generators and buffers as they were in a step; afterwards the buffers are those of now."""
        self.again(index)
        now = [(module, dict(module._buffers)) for module in self.owners[index]]
        for module, name, buffer in self.replaced[index]:
            module._buffers[name] = buffer
        try:
            yield
        finally:
            for module, buffers in now:
                module._buffers.update(buffers)


def _version(buffer: Tensor | None) -> int:
    return -1 if buffer is None else buffer._version


Casts = tuple[str, bool, torch.dtype | None]


def _casts(device: str) -> Casts:
    """Whether automatic casts are on for a device type, and to what."""
    if not torch.amp.is_autocast_available(device):
        return device, False, None
    return device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


@contextmanager
def _casting(casts: Casts) -> Iterator[None]:
    """The same automatic casts; without their cache, whose casts of parameters made here would carry no gradient."""
    device, enabled, dtype = casts
    if dtype is None:
        yield
        return
    with torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False):
        yield
