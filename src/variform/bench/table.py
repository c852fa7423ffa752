"""What was measured, as a table."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from variform.bench.attention import Measured, Row, Setting


def text(rows: Sequence[Row], setting: Setting) -> str:
    """One line a part: at each length the time, its ratio to softmax attention, the peak memory; then the crossover."""
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("part", no_wrap=True)
    lengths = [one.length for one in rows[0].measured]
    for length in lengths:
        table.add_column(f"{length} ms", justify="right", no_wrap=True)
        table.add_column("ratio", justify="right", no_wrap=True)
        table.add_column("MiB", justify="right", no_wrap=True)
    table.add_column("faster from", justify="right", no_wrap=True)
    for row in rows:
        cells = [cell for one in row.measured for cell in _cells(one)]
        shortest = "<= " if row.crossover == row.measured[0].length else ""
        table.add_row(row.name, *cells, "" if row.crossover is None else f"{shortest}{row.crossover}")
    out = io.StringIO()
    Console(file=out, width=32 + 30 * len(lengths), color_system=None).print(table)
    return "\n".join([_heading(setting), *(line.rstrip() for line in out.getvalue().splitlines()), *_reasons(rows)])


def _cells(one: Measured) -> tuple[str, str, str]:
    if one.seconds is None or one.peak_bytes is None:
        return "-", "", ""
    ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
    return f"{1e3 * one.seconds:.1f}", ratio, f"{one.peak_bytes / 2**20:.0f}"


def _heading(setting: Setting) -> str:
    what = "forward and backward" if setting.backward else "forward"
    causal = "causal, " if setting.causal else ""
    sizes = f"batch {setting.batch}, {setting.dim} features, {setting.heads} heads"
    dtype = str(setting.dtype).removeprefix("torch.")
    return f"{causal}{what}, {sizes}, {dtype} on {setting.device}, medians of {setting.rounds}\n"


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Why figures are missing."""
    found = {f"{row.name}: at {one.length}, {one.why_not}" for row in rows for one in row.measured if one.why_not}
    squares = {
        f"{row.name}: measured at {one.length} instead of {other.length}, a square"
        for row in rows
        for one, other in zip(row.measured, rows[0].measured, strict=True)
        if one.length != other.length
    }
    lines = sorted(found | squares)
    return ["", *lines] if lines else []
