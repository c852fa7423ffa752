"""What was measured, as a picture: time and memory over length, each part against softmax attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from variform.bench.attention import BASELINE, Row, Setting
from variform.errors import ConfigError

STYLES = ("-", "--", "-.", ":")


def plot(rows: Sequence[Row], setting: Setting, file: str | Path) -> Path:
    """Draw two panels side by side, time and peak memory, both axes logarithmic, names at the lines' ends.

    Args:
        rows: what was measured.
        setting: at what.
        file: where; its ending says the format (.svg, .png, .pdf).

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a plot needs matplotlib", hint="pip install 'variform[plot]'") from None
    figure = Figure(figsize=(15, 0.12 * len(rows) + 6), layout="constrained")
    panels = figure.subplots(1, 2)
    _panel(panels[0], rows, "milliseconds", lambda one: None if one.seconds is None else 1e3 * one.seconds)
    _panel(panels[1], rows, "peak MiB", lambda one: None if one.peak_bytes is None else one.peak_bytes / 2**20)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small", frameon=False)
    what = "forward and backward" if setting.backward else "forward"
    form = "causal, " if setting.causal else ""
    figure.suptitle(f"{form}{what}: batch {setting.batch}, {setting.dim} features, {setting.heads} heads")
    path = Path(file)
    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "variform"}
    ):  # text stays text, and equal data equal files
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _panel(axes: Any, rows: Sequence[Row], label: str, value: Any) -> None:
    for index, row in enumerate(rows):
        points = [(one.length, value(one)) for one in row.measured]
        points = [(length, y) for length, y in points if y is not None]
        if not points:
            continue
        name = row.name.rpartition("/")[2]
        base = name == BASELINE
        crossed = "" if row.crossover is None else f", faster from {row.crossover}"
        axes.plot(
            *zip(*points, strict=True),
            label=name if base else f"{name}{crossed}",
            color="black" if base else f"C{index % 10}",
            linestyle="-" if base else STYLES[index // 10 % len(STYLES)],
            linewidth=2.5 if base else 1.2,
            marker="o",
            markersize=3,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths = [one.length for one in rows[0].measured]
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("tokens")
    axes.set_ylabel(label)
    axes.grid(True, which="major", alpha=0.3)
