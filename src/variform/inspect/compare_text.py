"""A comparison as text: one line a change, then the totals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from variform.core.spec import Spec
from variform.inspect.align import plain
from variform.inspect.compare import Change, Comparison
from variform.inspect.costs import Amount, Costs
from variform.inspect.table import human_bytes, human_count, path_text
from variform.stack.lines import Step
from variform.stack.program import ProgramModel

SIGNS = {"added": "+", "removed": "-", "changed": "~", "repeated": "~"}


def comparison_text(found: Comparison) -> str:
    """Streams, changes, totals."""
    lines = []
    if found.streams:
        lines.append(f"~ streams renamed: {', '.join(f'{a} -> {b}' for a, b in found.streams.items())}")
    before, after = dict(_labels(found.before)), dict(_labels(found.after))
    lines += [_change(change, before, after) for change in found.changes]
    return "\n".join([*(lines or ["no difference"]), *_totals(found.costs)])


def _labels(spec: Spec) -> Iterator[tuple[str, str]]:
    """What blocks and lines of a program are called, by path; the copies of a block are called alike."""
    if spec.part is ProgramModel:
        yield from _lines(spec["lines"], "lines", "")


def _lines(items: tuple[Any, ...], path: str, block: str) -> Iterator[tuple[str, str]]:
    for place, line in enumerate(map(plain, items)):
        here = f"{path}.{place}"
        if line.part is Step:
            name = line["label"] or plain(line["op"]).name
            yield here, f"{block}{', ' if block else ''}line {place + 1} ({name})"
        else:
            label = line["label"] or block
            yield here, label or f"the block at {here}"
            yield from _lines(line["lines"], f"{here}.lines", label)


def _change(change: Change, before: dict[str, str], after: dict[str, str]) -> str:
    if change.kind == "added" or not change.before:
        where = _where(change.after, after)
    else:
        where = _where(change.before, before)
    if change.kind in ("added", "removed"):
        text = change.name
    elif change.kind == "repeated":
        (copies,) = change.fields
        path = (change.after or change.before)[0]
        where = (after if change.after else before).get(path) or path.rpartition(".")[0]
        text = f"{copies.before} -> {copies.after} copies"
    else:
        text = "; ".join(str(field) if field.field else f"{field.before} -> {field.after}" for field in change.fields)
    return f"{SIGNS[change.kind]} {where}: {text}{_more(change)}"


def _where(paths: tuple[str, ...], labels: dict[str, str]) -> str:
    known = list(dict.fromkeys(labels.get(path, "") for path in paths))
    if all(known):
        return ", ".join(known) + (f", {len(paths)}x" if len(paths) > len(known) else "")
    return path_text(paths).replace("  ", " ") or "model"


def _more(change: Change) -> str:
    """What the change adds, all copies together."""
    parts = []
    if change.params:
        parts.append(f"{change.params:+,} parameters")
    if change.flops is not None and change.flops:
        parts.append(f"{_signed(change.flops)} FLOPs")
    return f"  [{', '.join(parts)}]" if parts else ""


def _signed(amount: Amount) -> str:
    if amount.number is not None:
        return ("-" if amount.number < 0 else "+") + human_count(abs(amount.number)).strip()
    text = str(amount)
    return text if text.startswith("-") or amount.expression is None else f"+{text}"


def _totals(costs: tuple[Costs, Costs] | None) -> list[str]:
    if costs is None:
        return []
    a, b = costs[0].total, costs[1].total
    params = f"parameters     {a.params:,}"
    if a.params != b.params:
        params += f" -> {b.params:,} ({b.params - a.params:+,})"
    flops = _total("forward FLOPs", a.flops, b.flops, human_count)
    return ["", params, flops, _total("kept bytes", a.activation_bytes, b.activation_bytes, human_bytes)]


def _total(name: str, a: Amount, b: Amount, human: Callable[[int], str]) -> str:
    before, after = (str(x) if x.number is None else human(x.number).strip() for x in (a, b))
    return f"{name:<14} {before}" + ("" if before == after else f" -> {after}")
