"""The picture of a run's losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def plot_losses(rows: list[dict[str, float]], bigram: float, title: str, path: Path) -> None:
    """Draw the training and validation loss over the steps, with the bigram model's loss as a line.

    Args:
        rows: of the loss log.
        bigram: the validation loss of the bigram model.
        title: above the picture.
        path: a .png file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for name, label, style in (("train_loss", "training", "-"), ("val_loss", "validation", "o-")):
        steps = [row["step"] for row in rows if name in row]
        losses = [row[name] for row in rows if name in row]
        last = f": {losses[-1]:.3f}" if losses else ""
        axes.plot(steps, losses, style, label=label + last, markersize=4, linewidth=1 if style == "-" else 2)
    axes.axhline(bigram, color="grey", linestyle="--", label=f"bigram model, validation: {bigram:.3f}")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("cross-entropy, nats a character")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
