"""Models as graphs: programs of `torch.export` and ONNX files, with batch and length left open."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from variform.core.build import build
from variform.errors import BackendError, ConfigError, did_you_mean
from variform.parts.kinds import Model
from variform.stack.program import ProgramModel

__all__ = ["Graph", "to_exported", "to_graph", "to_onnx"]

_LARGEST = 2**30
"""Weights beyond this many bytes stand in a file beside the ONNX file, which can hold 2 GiB at most."""


@dataclass(frozen=True)
class Graph:
    """What was exported.

    Args:
        program: the program, which takes the inputs in order: `graph.program.module()(ids)`.
        inputs: the names of its inputs.
        outputs: the names of its outputs.
    """

    program: torch.export.ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def to_exported(
    model: Any, batch: int = 2, length: int | None = None, streams: Sequence[str] = (), dynamic: bool = True
) -> Graph:
    """A model as a program of `torch.export`, in evaluation mode; what it gives is a tuple of tensors.

    Args:
        model: a model, or what `build` takes.
        batch: rows of the example that is traced.
        length: tokens a row of the example; the longest the model takes by default. Any other may be given later.
        streams: side inputs of the graph, as tensors: "positions" and "segments" [B, L], "valid" [B, L] (bool),
            "mask" [B, 1, L, L] (bool).
        dynamic: leave batch and length open; otherwise the graph is for this batch and length alone.

    Raises:
        ConfigError: the model has no such inputs, or its sizes cannot stay open.
    """
    flat, tensors, axes = _prepare(model, batch, length, streams, dynamic)
    shapes = tuple(dict.fromkeys(open_axes, torch.export.Dim.DYNAMIC) for open_axes in axes)
    with _evaluating(flat), _refusing():
        outputs = flat.output_names(tensors)
        program = torch.export.export(flat, tensors, dynamic_shapes=(shapes,) if dynamic else None)
    return Graph(program, flat.names, outputs)


def to_onnx(
    model: Any,
    path: str | Path,
    batch: int = 2,
    length: int | None = None,
    streams: Sequence[str] = (),
    dynamic: bool = True,
) -> Path:
    """Write a model as an ONNX file, in evaluation mode; needs the extra `onnx`.

    Inputs and outputs have their names, open axes are called `batch` and `length`. More than 1 GiB of weights stands
    in a second file, `PATH.data`.

    Args:
        model: a model, or what `build` takes.
        path: where; ends in .onnx.
        batch: as for `to_exported`, as are all others.
        length: tokens a row of the example.
        streams: side inputs of the graph.
        dynamic: leave batch and length open.

    Raises:
        ConfigError: another ending, no such inputs, or sizes that cannot stay open.
        BackendError: the packages for ONNX are missing.
    """
    target = _target(path, ".onnx")
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise BackendError('ONNX files need more packages: pip install "variform[onnx]"') from None
    flat, tensors, axes = _prepare(model, batch, length, streams, dynamic)
    size = sum(p.numel() * p.element_size() for p in flat.parameters())
    with _evaluating(flat), _refusing(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own internals
        torch.onnx.export(
            flat,
            tensors,
            str(target),
            dynamic_shapes=(tuple(axes),) if dynamic else None,
            input_names=list(flat.names),
            output_names=list(flat.output_names(tensors)),
            dynamo=True,
            external_data=size > _LARGEST,
            verbose=False,
        )
    return target


def to_graph(
    model: Any,
    path: str | Path,
    batch: int = 2,
    length: int | None = None,
    streams: Sequence[str] = (),
    dynamic: bool = True,
) -> Path:
    """Write a model as the kind of graph that the path ends in: .onnx, or .pt2 for `torch.export.load`.

    Args:
        model: a model, or what `build` takes.
        path: where.
        batch: as for `to_exported`, as are all others.
        length: tokens a row of the example.
        streams: side inputs of the graph.
        dynamic: leave batch and length open.
    """
    if Path(path).suffix == ".onnx":
        return to_onnx(model, path, batch, length, streams, dynamic)
    target = _target(path, ".pt2", ".onnx")
    graph = to_exported(model, batch, length, streams, dynamic)
    torch.export.save(graph.program, target)
    return target


class _Flat(nn.Module):
    """A model with its inputs as a flat list of tensors, and its outputs as a tuple.

    Args:
        model: the model.
        positional: how many inputs are positional arguments; -1 for a program, which takes one dict.
        names: of the inputs, in order.
    """

    def __init__(self, model: Model, positional: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.positional = positional
        self.names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the model."""
        out = self.result(tensors)
        if isinstance(out, dict):
            return tuple(out.values())
        return out if isinstance(out, tuple) else (out,)

    def result(self, tensors: Sequence[Tensor]) -> Any:
        """What the model itself gives."""
        if self.positional < 0:
            return self.model(dict(zip(self.names, tensors, strict=True)))
        named = zip(self.names[self.positional :], tensors[self.positional :], strict=True)
        return self.model(*tensors[: self.positional], **dict(named))

    def output_names(self, tensors: Sequence[Tensor]) -> tuple[str, ...]:
        """Those of a program, or numbered ones."""
        with torch.no_grad():
            out = self.result(tensors)
        if isinstance(out, dict):
            # A graph has one name space, and a program may write a stream anew.
            return tuple(f"{name}_out" if name in self.names else name for name in out)
        return tuple(f"output_{i}" for i in range(len(out))) if isinstance(out, tuple) else ("output",)


def _prepare(
    model: Any, batch: int, length: int | None, streams: Sequence[str], dynamic: bool
) -> tuple[_Flat, tuple[Tensor, ...], list[dict[int, str]]]:
    """The flat model, its example inputs, and which axes of each are open."""
    model = model if isinstance(model, nn.Module) else build(model)
    if not isinstance(model, Model):
        raise ConfigError("a whole model is exported, not a part of one", value=type(model).__name__)
    if batch < 2 and dynamic:
        raise ConfigError("an open batch is traced with at least 2 rows", path="batch", value=batch)
    if length is not None and length < 2 and dynamic:
        raise ConfigError("an open length is traced with at least 2 tokens", path="length", value=length)
    positional, names, tensors = _examples(model, batch, length, streams)
    tall = _examples(model, batch + 1, length, streams)[2]
    axes = [_differing(a, b, "batch") for a, b in zip(tensors, tall, strict=True)]
    tokens = length or _longest(tensors)
    if tokens > 2:
        short = _examples(model, batch, tokens - 1, streams)[2]
        for found, a, b in zip(axes, tensors, short, strict=True):
            found.update(_differing(a, b, "length"))
    return _Flat(model, positional, names), tensors, axes


def _examples(
    model: Model, batch: int, length: int | None, streams: Sequence[str]
) -> tuple[int, tuple[str, ...], tuple[Tensor, ...]]:
    arguments, named = model.example_inputs(batch, length)
    if isinstance(model, ProgramModel):
        if streams:
            raise ConfigError("a program has the inputs that it declares", path="streams", value=tuple(streams))
        return -1, tuple(arguments[0]), tuple(arguments[0].values())
    more = {name: _stream(name, arguments[-1]) for name in streams}
    first = ("inputs",) if len(arguments) == 1 else tuple(f"inputs_{i}" for i in range(len(arguments)))
    return len(arguments), (*first, *named, *more), (*arguments, *named.values(), *more.values())


def _stream(name: str, inputs: Tensor) -> Tensor:
    batch, length = inputs.shape[:2]
    examples = {
        "positions": torch.arange(length).repeat(batch, 1),
        "segments": torch.zeros(batch, length, dtype=torch.long),
        "valid": torch.ones(batch, length, dtype=torch.bool),
        "mask": torch.ones(batch, 1, length, length, dtype=torch.bool),
    }
    if name not in examples:
        hint = did_you_mean(name, examples)
        raise ConfigError("a graph has no such side input", path="streams", value=name, hint=hint)
    return examples[name]


def _longest(tensors: Sequence[Tensor]) -> int:
    return int(tensors[0].shape[1]) if tensors[0].dim() == 2 else 0


def _differing(a: Tensor, b: Tensor, name: str) -> dict[int, str]:
    return {axis: name for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n}


def _target(path: str | Path, *suffixes: str) -> Path:
    target = Path(path)
    if target.suffix not in suffixes:
        raise ConfigError(f"the file ends in {' or '.join(suffixes)}", path="path", value=str(path))
    return target


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode, each back in its own after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _refusing() -> Iterator[None]:
    """Sizes that cannot stay open, told in our own words."""
    try:
        yield
    except (torch._dynamo.exc.UserError, torch.onnx.errors.OnnxExporterError) as error:
        told = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"the model cannot be exported so: {told}", hint="dynamic=False fixes all sizes") from error
