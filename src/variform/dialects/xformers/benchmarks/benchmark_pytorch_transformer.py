"""Trains an encoder of the dialect and PyTorch's on a dummy task: losses, then time and memory as two tables.

python -m variform.dialects.xformers.benchmarks.benchmark_pytorch_transformer
python -m variform.dialects.xformers.benchmarks.benchmark_pytorch_transformer --shapes 4x128x256 2x512x512 --steps 5

A shape is BATCHxLENGTHxEMB. Times are of all training steps, those of both models taken in turns, memory the most that
the allocator held during a step beyond weights and optimizer.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from variform.dialects.xformers.factory.model_factory import xFormer, xFormerConfig
from variform.errors import ConfigError
from variform.inspect.measure import medians, peak_bytes

HEADS = 8
LAYERS = 2
DROPOUT = 0.1
SHAPES = ((16, 128, 128), (2, 1024, 1024), (1, 1024, 2048))


class Results(NamedTuple):
    """What one model took.

    Args:
        seconds: of all steps.
        megabytes: the peak of a step.
        losses: one a step.
    """

    seconds: float
    megabytes: float
    losses: tuple[float, ...]


def xformers_model(emb: int, heads: int = HEADS, layers: int = LAYERS, dropout: float = DROPOUT) -> nn.Module:
    """The encoder of the dialect: norms after the sums, scaled dot-product attention, an MLP four times as wide."""
    stack = {
        "block_type": "encoder",
        "dim_model": emb,
        "num_layers": layers,
        "residual_norm_style": "post",
        "multi_head_config": {
            "num_heads": heads,
            "residual_dropout": dropout,
            "attention": {"name": "scaled_dot_product", "dropout": dropout, "causal": False},
        },
        "feedforward_config": {
            "name": "FusedMLP",
            "dropout": dropout,
            "activation": "gelu",
            "hidden_layer_multiplier": 4,
        },
    }
    return xFormer.from_config(xFormerConfig([stack]))


def pytorch_model(emb: int, heads: int = HEADS, layers: int = LAYERS, dropout: float = DROPOUT) -> nn.Module:
    """`torch.nn.TransformerEncoder` of the same size."""
    layer = nn.TransformerEncoderLayer(
        emb, heads, 4 * emb, dropout, activation=nn.functional.gelu, batch_first=True, norm_first=False
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    target: float,
    *,
    max_norm: float = 10.0,
    autocast: bool = False,
) -> Tensor:
    """One training step: the norm of the distance between the mean output and the target, clipped gradients."""
    optimizer.zero_grad(set_to_none=True)
    with _autocast(batch.device, autocast):
        loss: Tensor = torch.norm(torch.mean(model(batch), dim=-1) - target)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.detach()


def evaluate(model: nn.Module, batch: Tensor, target: float, autocast: bool = False) -> float:
    """The loss in eval mode."""
    model.eval()
    with torch.no_grad(), _autocast(batch.device, autocast):
        return float(torch.norm(torch.mean(model(batch), dim=-1) - target))


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    name: str,
    steps: int,
    batch: Callable[[], tuple[Tensor, float]],
    *,
    autocast: bool = False,
    report: Callable[[str], None] = print,
) -> list[float]:
    """Train; the loss of each step.

    Args:
        model: what is trained.
        optimizer: of its parameters.
        name: for the lines that are printed.
        steps: how many.
        batch: makes a batch and its target.
        autocast: compute in float16 on a GPU, bfloat16 on a CPU.
        report: what becomes of the lines.
    """
    model.train()
    losses = []
    for index in range(steps):
        losses.append(float(step(model, optimizer, *batch(), autocast=autocast)))
        report(f"{name} - step {index}: loss {losses[-1]:.4f}")
    return losses


def dummy_task(batch: int, length: int, emb: int, device: torch.device) -> Callable[[], tuple[Tensor, float]]:
    """Zeros whose answer is 0, or noise whose answer is 1."""
    generator = random.Random(0)
    noise = torch.Generator().manual_seed(0)

    def make() -> tuple[Tensor, float]:
        if generator.random() > 0.5:
            return torch.randn(batch, length, emb, generator=noise).to(device), 1.0
        return torch.zeros(batch, length, emb, device=device), 0.0

    return make


def compare(shape: tuple[int, int, int], steps: int, device: torch.device, autocast: bool = False) -> list[Results]:
    """Both models at one shape, the dialect's first."""
    found: dict[str, list[float]] = {}
    runs: dict[str, Callable[[], Any]] = {}
    steppers: dict[str, Callable[[], Any]] = {}
    for name, make in (("xformers", xformers_model), ("pytorch", pytorch_model)):
        torch.manual_seed(0)
        model = make(shape[2]).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        task = dummy_task(*shape, device)
        found[name] = train(model, optimizer, f"{name} {shape}", steps, task, autocast=autocast)
        batch, target = task()
        steppers[name] = _stepper(model, optimizer, batch, target, autocast)
        runs[name] = _repeated(steppers[name], steps)
    seconds = medians(runs, 1, device)
    return [
        Results(seconds[name], peak_bytes(steppers[name], device) / 2**20, tuple(losses))
        for name, losses in found.items()
    ]


def _stepper(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor, target: float, autocast: bool
) -> Callable[[], Tensor]:
    return lambda: step(model, optimizer, batch, target, autocast=autocast)


def _repeated(run: Callable[[], Any], times: int) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(times):
            run()

    return repeat


def _autocast(device: torch.device, enabled: bool) -> AbstractContextManager[Any]:
    if not enabled:
        return nullcontext()
    return torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16)


def table(title: str, units: str, shapes: Sequence[tuple[int, int, int]], rows: dict[str, list[str]]) -> str:
    """A table in the form of the documentation."""
    head = [f"Units: {units}", *(f"emb {emb} - heads {HEADS}" for _, _, emb in shapes)]
    body = [[name, *cells] for name, cells in rows.items()]
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
    shown = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in lines]
    return "\n".join([f"--- Transformer training benchmark - {title} ---", *shown])


def read_shape(text: str) -> tuple[int, int, int]:
    """BATCHxLENGTHxEMB as three numbers.

    Raises:
        ConfigError: another form, or a width that the heads do not divide.
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"a shape is written BATCHxLENGTHxEMB, 2x1024x1024 say, not {text!r}", path="--shapes")
    batch, length, emb = map(int, parts)
    if emb % HEADS:
        raise ConfigError(f"{HEADS} heads do not divide {emb} features", path="--shapes")
    return batch, length, emb


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=None, metavar="BxSxE", help="16x128x128 2x1024x1024 1x1024x2048")
    parser.add_argument("--steps", type=int, default=20, help="training steps (20)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--autocast", action="store_true", help="float16 on a GPU, bfloat16 on a CPU")
    options = parser.parse_args(arguments)
    try:
        shapes = SHAPES if options.shapes is None else tuple(map(read_shape, options.shapes))
    except ConfigError as error:
        parser.error(str(error))
    found = [compare(shape, options.steps, torch.device(options.device), options.autocast) for shape in shapes]
    names = ("xformers", "pytorch")
    times = {name: [f"{both[i].seconds:.1f}" for both in found] for i, name in enumerate(names)}
    peaks = {name: [f"{both[i].megabytes:.0f}" for both in found] for i, name in enumerate(names)}
    print(table("runtime", "s", shapes, times), table("memory use", "MB", shapes, peaks), sep="\n\n")


if __name__ == "__main__":
    main()
