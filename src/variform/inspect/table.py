"""Plain-text tables of descriptions: a tree of parts, equal neighbours folded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from variform.inspect.rows import Row

if TYPE_CHECKING:
    from variform.inspect.describe import Description


class Placed(Protocol):
    """A row of a table of parts."""

    @property
    def path(self) -> str:
        """Where the part stands."""


P = TypeVar("P", bound=Placed)


def human_bytes(size: int | None) -> str:
    """`16.0 MiB`; `-` for None."""
    if size is None:
        return "-"
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{size} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def human_count(number: int) -> str:
    """`734.8 T`, in powers of a thousand."""
    value, units = float(number), ["", "K", "M", "G", "T", "P", "E"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return str(number) if not units[0] else f"{value:.1f} {units[0]}"


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns under a header, the first `left` of them to the left and the others to the right."""
    table = [list(header), *map(list, lines)]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    text = []
    for line in table:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        text.append("  ".join(cells).rstrip())
    return [text[0], "-" * max(map(len, text)), *text[1:]]


def folded(rows: Sequence[P], content: Callable[[P], tuple[object, ...]]) -> list[tuple[P, str, int]]:
    """Rows with runs of equal neighbours shown once: (row, step, repeats), a run's step being `0..11`.

    Items of one list are equal when they and all below them are, their paths apart.

    Args:
        rows: in the order of the spec, parents first.
        content: what must be equal of a row.
    """
    shown: list[tuple[P, str, int]] = []
    index = 0
    while index < len(rows):
        row = rows[index]
        size = _extent(rows, index)
        block = _contents(rows, index, size, content)
        count = 1
        while (
            _is_next(row, rows, index + count * size, count)
            and _contents(rows, index + count * size, size, content) == block
        ):
            count += 1
        step = row.path.rpartition(".")[2]
        if count > 1:
            inner = folded(rows[index + 1 : index + size], content)
            shown.append((row, f"{step}..{int(step) + count - 1}", count))
            shown.extend(inner)
            index += count * size
        else:
            shown.append((row, step, 1))
            index += 1
    return shown


def _extent(rows: Sequence[P], index: int) -> int:
    """How many rows a part and all below it take."""
    path = rows[index].path
    end = index + 1
    while end < len(rows) and (not path or rows[end].path.startswith(f"{path}.")):
        end += 1
    return end - index


def _is_next(first: P, rows: Sequence[P], at: int, count: int) -> bool:
    head, _, step = first.path.rpartition(".")
    return step.isdecimal() and at < len(rows) and rows[at].path == f"{head}.{int(step) + count}".strip(".")


def _contents(
    rows: Sequence[P], start: int, size: int, content: Callable[[P], tuple[object, ...]]
) -> list[tuple[object, ...]]:
    base = len(rows[start].path)
    return [(row.path[base:], *content(row)) for row in rows[start : start + size]]


def _figures(row: Row) -> tuple[object, ...]:
    return (
        row.kind,
        row.name,
        row.inputs,
        row.outputs,
        row.params,
        row.flops,
        row.activation_bytes,
        row.state_bytes,
        row.shared,
    )


def path_template(path: str) -> tuple[str, ...]:
    """A path without its list places: what equal parts of equal layers have in common."""
    return tuple(step for step in path.split(".") if not step.isdecimal())


def path_text(paths: Sequence[str]) -> str:
    """Paths of one template as one line: `stacks.0.layers.0..11.sublayers.0  x12`."""
    if len(paths) == 1:
        return paths[0]
    columns = [list(dict.fromkeys(steps)) for steps in zip(*(path.split(".") for path in paths), strict=True)]
    steps = []
    for options in columns:
        numbers = [int(option) for option in options if option.isdecimal()]
        if len(options) > 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            steps.append(f"{numbers[0]}..{numbers[-1]}")
        else:
            steps.append("|".join(options))
    return f"{'.'.join(steps)}  x{len(paths)}"


def description_text(described: Description) -> str:
    """The table, the totals and the memory of a training step."""
    lines = [_cells(row, step, repeats) for row, step, repeats in folded(described.rows, _figures)]
    header = ("part", "input", "output", "params", "FLOPs", "kept", "state")
    length = "" if described.length is None else f", L = {described.length}"
    dtype = str(described.dtype).removeprefix("torch.")
    memory = described.memory_training()
    what = f"{described.spec.kind} {described.spec.name!r}"
    state = "none: " + described.state_reason if described.state_bytes is None else human_bytes(described.state_bytes)
    return "\n".join(
        [
            f"{what}, B = {described.batch}{length}, {dtype}, {described.device}",
            "",
            *aligned(header, lines, left=3),
            "",
            f"parameters       {described.params:,}",
            f"forward          {human_count(described.flops)}FLOP ({human_count(described.flops_dense)}FLOP with dense "
            "attention)",
            f"backward         {human_count(described.flops_backward)}FLOP",
            f"kept activations {human_bytes(described.activation_bytes)} "
            f"({human_bytes(described.activation_bytes_per_row)} a row)",
            f"decode state     {state}",
            f"training         {human_bytes(memory.total)} with AdamW (parameters, gradients, optimizer, activations)",
            "largest batch    " + ", ".join(f"{described.largest_batch(gib):,} in {gib} GiB" for gib in (8, 24, 80)),
        ]
    )


def _cells(row: Row, step: str, repeats: int) -> tuple[str, ...]:
    label = part_label(row.path, row.name, row.shared, step, repeats)
    state = "" if row.state_bytes == 0 else human_bytes(row.state_bytes)
    ran = row.calls > 0
    return (
        label,
        ", ".join(row.inputs) if ran else "not called",
        ", ".join(row.outputs),
        f"{row.params:,}" if row.params else "",
        human_count(row.flops).strip() if row.flops else "",
        human_bytes(row.activation_bytes) if row.activation_bytes else "",
        state if row.state_bytes is not None else "",
    )


def part_label(path: str, name: str, shared: str | None, step: str, repeats: int) -> str:
    """What a line of the tree is called: indented, its step and the part's name, and how often it stands there."""
    fields = path.split(".")
    place = f"{fields[-2]}.{step}" if step[:1].isdecimal() and len(fields) > 1 else step
    label = f"{'  ' * _depth(path)}{place} {name}" + (f" x{repeats}" if repeats > 1 else "")
    return label if shared is None else f"{label} (shared: {shared})"


def _depth(path: str) -> int:
    return sum(not step.isdecimal() for step in path.split(".")) if path else 0
