"""The verb `export`: a model as a file that needs no variform."""

from __future__ import annotations

import argparse
from pathlib import Path

from variform.cli.configs import load
from variform.cli.output import show
from variform.errors import ConfigError


def export_model(options: argparse.Namespace) -> None:
    """Write the model to OUT, by its ending.

    Raises:
        ConfigError: another ending, a part without a standalone form, weights that are not the model's.
    """
    out = Path(options.out)
    if out.suffix in (".onnx", ".pt2"):
        return _export_graph(options, out)
    if out.suffix != ".py":
        raise ConfigError(f"a model is exported to a file that ends in .py, .onnx or .pt2, not {out.name!r}")
    if options.length is not None:
        raise ConfigError("a standalone file is for every length", path="--length")
    if options.weights is not None and len(options.weights) != 2:
        raise ConfigError("give the file of saved weights, and one for them by OUT's names", path="--weights")
    from variform.export import convert_weights, to_file

    spec = load(options.config, options.overrides)
    written = [to_file(spec, out)]
    if options.weights is not None:
        written.append(convert_weights(spec, *options.weights))
    lines = len(written[0].read_text(encoding="utf-8").splitlines())
    data = {"file": str(out), "lines": lines, "weights": str(written[1]) if len(written) > 1 else None}
    show("\n".join(f"written: {path}" for path in written), data, options.json)


def _export_graph(options: argparse.Namespace, out: Path) -> None:
    """Write a graph of the model with the weights that are given, or fresh ones."""
    from variform.cli.configs import load_with_length
    from variform.core.build import build
    from variform.export import to_graph
    from variform.weights import load_weights

    if options.weights is not None and len(options.weights) != 1:
        raise ConfigError("a graph holds its weights: give the file of saved ones alone", path="--weights")
    spec, trained_at = load_with_length(options.config, options.overrides)
    model = build(spec)
    if options.weights is not None:
        load_weights(model, options.weights[0])
    written = to_graph(model, out, length=options.length or trained_at)
    data = {"file": str(written), "bytes": written.stat().st_size, "weights": (options.weights or [None])[0]}
    show(f"written: {written}", data, options.json)
