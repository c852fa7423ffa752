"""Costs as text: formulas, or numbers where sizes were asked for; equal copies and equal neighbours shown once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from variform.core.dims import shape_text
from variform.inspect.costs import Amount, Cost, Costs, Group, Line, Place
from variform.inspect.table import aligned, folded, human_bytes, human_count, part_label
from variform.stack.table import ranges
from variform.stack.values import tells_size

Cells = tuple[str, ...]

COLUMNS = ("params", "FLOPs", "kept bytes", "state bytes")


def costs_text(costs: Costs) -> str:
    """The table and the totals."""
    has_state = costs.total.state_bytes is not None
    sizes = [f", {name} = {size}" for name, size in (costs.at or {}).items() if has_state or name in costs.sizes.names]
    head = f"{costs.spec.kind} {costs.spec.name!r}{''.join(sizes)}, {costs.dtype}"
    numbers = costs.at is not None
    return "\n".join([head, "", *(_program if costs.lines else _tree)(costs, numbers), "", *_totals(costs, numbers)])


def amount_text(amount: Amount | None, numbers: bool, human: Callable[[int], str]) -> str:
    """A cell: empty for nothing; the formula, or the number in a short form."""
    if amount is None or not amount:
        return ""
    if numbers and amount.number is not None:
        return human(amount.number)
    return str(amount)


def _cells(cost: Cost, numbers: bool) -> Cells:
    return (
        f"{cost.params:,}" if cost.params else "",
        amount_text(cost.flops, numbers, lambda n: human_count(n).strip()),
        amount_text(cost.activation_bytes, numbers, human_bytes),
        amount_text(cost.state_bytes, numbers, human_bytes),
    )


def _tree(costs: Costs, numbers: bool) -> list[str]:
    lines = []
    for place, step, repeats in folded(costs.places, _content):
        label = part_label(place.path, place.name, place.shared, step, repeats)
        lines.append((label, *_cells(place.cost, numbers)))
    return _columns(("part", *COLUMNS), lines, 1, numbers)


def _content(place: Place) -> tuple[object, ...]:
    return (place.kind, place.name, place.cost, place.shared)


def _program(costs: Costs, numbers: bool) -> list[str]:
    lines: list[Cells] = []
    for group in costs.groups:
        lines += [*_group(group, numbers), _row()]
    return _columns(("line", "writes", *COLUMNS), lines[:-1], 2, numbers)


def _group(group: Group, numbers: bool) -> Iterator[Cells]:
    """The lines of a typical copy, once for each kind of copies, what other copies have otherwise, and the sums."""
    kinds: dict[tuple[object, ...], list[tuple[Line, ...]]] = {}
    for copy in group.copies:
        kinds.setdefault(tuple((line.row.name, line.row.reads, line.row.writes) for line in copy), []).append(copy)
    indent = "  " if group.label else ""
    for copies in kinds.values():
        part = "" if len(kinds) == 1 else f" (repeat {ranges([copy[0].row.repeat for copy in copies])})"
        if group.label:
            yield _row(f"{group.label}{part}, {len(copies)}x")
        typical = Group(group.label, tuple(copies)).typical
        for index, line in enumerate(typical):
            yield _line(line, indent, numbers)
            for copy in copies:
                if copy[index].cost != line.cost:
                    yield _row(f"{indent}  in repeat {copy[index].row.repeat}", "", *_cells(copy[index].cost, numbers))
    if group.label:
        if len(kinds) == 1 < len(group.copies):
            yield _row("  one copy", "", *_cells(group.one, numbers))
        count = len(group.copies)
        yield _row(f"  all {count}" if count > 1 else "  all", "", *_cells(group.all, numbers))


def _line(line: Line, indent: str, numbers: bool) -> Cells:
    reads = ", ".join(name for name, _ in line.row.reads if not tells_size(name))
    writes = ", ".join(f"{name} {shape_text(shape)}" for name, shape in line.row.writes)
    shared = "" if line.place.shared is None else f" (shared: {line.place.shared})"
    return _row(f"{indent}{line.row.name} <- {reads}{shared}", writes, *_cells(line.cost, numbers))


def _row(*cells: str) -> Cells:
    return (*cells, *("",) * (2 + len(COLUMNS) - len(cells)))


def _columns(header: Cells, lines: Sequence[Cells], left: int, numbers: bool) -> list[str]:
    """Aligned; formulas to the left, numbers to the right; empty columns are left out."""
    used = [i for i in range(len(header)) if i < left or any(line[i] for line in lines)]
    chosen = [[line[i] for i in used] for line in (header, *lines)]
    return aligned(chosen[0], chosen[1:], left=left if numbers else len(used))


def _totals(costs: Costs, numbers: bool) -> list[str]:
    whole, outside = costs.total, costs.outside
    state = f"none: {costs.state_reason}" if whole.state_bytes is None else _both(whole.state_bytes, human_bytes)
    lines = [
        f"parameters       {whole.params:,}",
        f"forward FLOPs    {_both(whole.flops, human_count)}",
        *([f"  dense          {_both(whole.flops_dense, human_count)}"] if whole.flops_dense != whole.flops else []),
        f"backward FLOPs   {_both(whole.flops_backward, human_count)}",
        f"kept bytes       {_both(whole.activation_bytes, human_bytes)}",
        f"decode state     {state}",
    ]
    cells = [cell for cell in _cells(outside, numbers) if cell] if outside is not None else []
    if outside is not None and cells:
        named = [f"{name} {cell}" for name, cell in zip(COLUMNS, _cells(outside, numbers), strict=True) if cell]
        lines.append(f"beside the lines {', '.join(named)}")
    return lines


def _both(amount: Amount, human: Callable[[int], str]) -> str:
    """The formula, and the number where sizes were asked for."""
    if amount.number is None or amount.expression is None:
        return str(amount)
    return f"{amount.expression} = {amount.number:,}" + (
        f" ({human(amount.number).strip()})" if amount.number > 999 else ""
    )
