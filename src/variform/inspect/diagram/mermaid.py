"""A flow as Mermaid text, which many wikis and editors draw."""

from __future__ import annotations

from collections.abc import Iterator

from variform.inspect.diagram.flow import Flow, Item, Wiring, wire


def mermaid_text(flow: Flow) -> str:
    """A `flowchart`: a subgraph for each panel, a box for each item, the streams' names on the lines."""
    return "\n".join(["flowchart TD", *_lines(flow)]) + "\n"


def _lines(flow: Flow) -> Iterator[str]:
    source = {name: f"in{index}" for index, (name, _) in enumerate(flow.inputs)}
    shapes = dict(flow.inputs)
    for name, node in source.items():
        yield f'  {node}(["{_escaped(f"{name} {shapes[name]}".strip())}"])'
    for number, wiring in enumerate(wire(flow)):
        panel = wiring.panel
        repeat = f", {panel.repeat}x" if panel.repeat > 1 else ""
        yield f'  subgraph p{number}["{_escaped((panel.title or f"part {number + 1}") + repeat)}"]'
        for place, item in enumerate(panel.items):
            yield f'    p{number}n{place}["{_label(item)}"]'
        yield "  end"
        yield from _arrows(number, wiring, source)
        source.update({name: f"p{number}n{place}" for place, item in enumerate(panel.items) for name, _ in item.writes})
    for index, name in enumerate(flow.outputs):
        yield f'  out{index}(["{_escaped(name)}"])'
        yield f'  {source[name]} -- "{_escaped(name)}" --> out{index}'


def _arrows(number: int, wiring: Wiring, source: dict[str, str]) -> Iterator[str]:
    for arrow in wiring.arrows:
        name = _escaped(arrow.stream)
        start = source.get(arrow.stream) if arrow.source < 0 else f"p{number}n{arrow.source}"
        yield f'  {start} -- "{name}" --> p{number}n{arrow.target}'


def _label(item: Item) -> str:
    lines = [f"<b>{_escaped(item.title)}</b>", _escaped(item.detail)]
    lines += [_escaped(f"{name} {shape}".strip()) for name, shape in item.writes]
    return "<br/>".join(line for line in lines if line)


def _escaped(text: str) -> str:
    return text.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
