"""Weights that learn while a text is read: each row has its own copy, changed by gradient steps between segments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from variform.errors import ConfigError, Problem

Weights = dict[str, dict[str, Tensor]]
"""Module -> parameter -> [B, ...], one copy a row."""


class FastWeights:
    """Test-time training (Tandon et al. 2025, arXiv:2512.23675): chosen modules take gradient steps on what was read.

    W <- W - lr (g + decay W) for the weights W of a target, with the gradient g of a row's loss by the weights of a
    source, which mostly is the target itself. With a graph the steps are differentiable, so that an outer loss learns
    where to begin.

    Args:
        modules: by name; their parameters are the beginning.
        pairs: (source, target) names; both modules have parameters of the same shapes.
        lr: of plain steps.
        decay: of the weights.
        muon_lr: of steps along an orthogonalised gradient, for parameters that are matrices; None for plain steps.
        muon_steps: of the iteration that orthogonalises.

    Raises:
        ConfigError: a source and a target that do not match.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        pairs: Sequence[tuple[str, str]],
        lr: float = 1e-3,
        decay: float = 0.01,
        muon_lr: float | None = None,
        muon_steps: int = 5,
    ) -> None:
        self.modules = dict(modules)
        self.pairs = tuple(pairs)
        self.lr = lr
        self.decay = decay
        self.muon_lr = muon_lr
        self.muon_steps = muon_steps
        problems = []
        for source, target in self.pairs:
            shapes = [[tuple(p.shape) for p in self.modules[name].parameters()] for name in (source, target)]
            if shapes[0] != shapes[1]:
                message = f"{source!r} and {target!r} must have parameters of the same shapes"
                problems.append(Problem(target, message, shapes[1], f"the source has {shapes[0]}"))
            elif not shapes[0]:
                problems.append(Problem(source, "a module without parameters cannot learn"))
        if problems:
            raise ConfigError(problems)

    def begin(self, batch: int) -> Weights:
        """A copy of the parameters for each row; gradients reach the parameters."""
        return {
            name: {key: p.unsqueeze(0).expand(batch, *p.shape).clone() for key, p in module.named_parameters()}
            for name, module in self.modules.items()
        }

    @contextmanager
    def used(self, weights: Weights) -> Iterator[None]:
        """Within, the modules run row by row, each with its own weights."""
        with ExitStack() as ends:
            if torch.is_grad_enabled():  # steps are differentiated, which fused kernels of attention are not twice
                ends.enter_context(sdpa_kernel(SDPBackend.MATH))
            for name, module in self.modules.items():
                module.__dict__["forward"] = _RowByRow(module, weights[name])
                ends.callback(module.__dict__.pop, "forward")
            yield

    def stepped(self, weights: Weights, losses: Tensor, graph: bool) -> Weights:
        """The weights after a step.

        Shapes:
            losses: [B]

        Args:
            weights: those that the losses are of.
            losses: of each row.
            graph: whether the step is to be differentiated.
        """
        flat = [w for source, _ in self.pairs for w in weights[source].values()]
        options: Any = {"create_graph": graph, "retain_graph": graph, "allow_unused": True}
        gradients: Iterator[Tensor | None] = iter(torch.autograd.grad(losses.sum(), flat, **options))
        new = dict(weights)
        for source, target in self.pairs:
            changed = {}
            for (key, weight), _ in zip(new[target].items(), weights[source], strict=True):
                gradient = next(gradients)
                changed[key] = weight if gradient is None else self._moved(weight, gradient)
            new[target] = changed
        return new if graph else constants(new)

    def _moved(self, weight: Tensor, gradient: Tensor) -> Tensor:
        lr = self.lr
        if self.muon_lr is not None and gradient.dim() > 2:
            lr, gradient = self.muon_lr, orthogonalised(gradient, self.muon_steps)
        return weight - lr * gradient - lr * self.decay * weight


def constants(weights: Weights) -> Weights:
    """The same as leaves of a new graph."""
    return {name: {key: w.detach().requires_grad_() for key, w in own.items()} for name, own in weights.items()}


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices with singular values near 1 and the singular vectors of those given.

    A quintic Newton-Schulz iteration X <- a X + (b A + c A^2) X, A = X X^T, on X / ||X|| (the Muon optimiser of Jordan
    et al. 2024; Liu et al. 2025, arXiv:2502.16982).

    Shapes:
        matrices: [.., I, J] -> the same
    """
    tall: bool = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    y: Tensor = x.mT if tall else x
    return y


class _RowByRow:
    """Stands for a module's `forward`: calls the module once a row, with the row's weights."""

    def __init__(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self.module = module
        self.weights = weights

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        batch = next(iter(self.weights.values())).shape[0]
        own = self.module.__dict__.pop("forward")
        try:
            rows = [
                functional_call(
                    self.module,
                    {key: w[row] for key, w in self.weights.items()},
                    _row(args, row, batch),
                    _row(keywords, row, batch),
                )
                for row in range(batch)
            ]
        finally:
            self.module.__dict__["forward"] = own
        joined: Callable[..., Any] = torch.cat if args else torch.stack  # without inputs there is no axis of rows yet
        return pytree.tree_map(lambda *ts: joined(ts) if isinstance(ts[0], Tensor) else ts[0], *rows)


def _row(tree: Any, row: int, batch: int) -> Any:
    return pytree.tree_map(lambda t: t[row : row + 1] if isinstance(t, Tensor) and _has_rows(t, batch) else t, tree)


def _has_rows(tensor: Tensor, batch: int) -> bool:
    return tensor.dim() > 1 and tensor.shape[0] == batch
