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
    if out.suffix != ".py":
        raise ConfigError(f"a model is exported to a file that ends in .py, not {out.name!r}")
    from variform.export import convert_weights, to_file

    spec = load(options.config, options.overrides)
    written = [to_file(spec, out)]
    if options.weights is not None:
        written.append(convert_weights(spec, *options.weights))
    lines = len(written[0].read_text(encoding="utf-8").splitlines())
    data = {"file": str(out), "lines": lines, "weights": str(written[1]) if len(written) > 1 else None}
    show("\n".join(f"written: {path}" for path in written), data, options.json)
