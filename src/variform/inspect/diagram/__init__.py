"""`vf.diagram`: a picture of any model, its parts and the streams between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from variform.core.codec import as_spec
from variform.core.resolve import resolve
from variform.errors import ConfigError
from variform.inspect.describe import describe_model
from variform.inspect.diagram.flow import Arrow, Entry, Flow, Item, Panel, Wiring, wire
from variform.inspect.diagram.lines import program_flow
from variform.inspect.diagram.mermaid import mermaid_text
from variform.inspect.diagram.svg import svg_text
from variform.inspect.diagram.tree import tree_flow
from variform.inspect.fake import FakeModel
from variform.stack.program import ProgramModel

_LENGTH = 64
"""Tokens with which shapes are found where a model has no longest length; pictures show them as `L`."""

__all__ = ["Arrow", "Diagram", "Entry", "Flow", "Item", "Panel", "Wiring", "diagram", "wire"]


@dataclass(frozen=True)
class Diagram:
    """A picture of a model: blocks from top to bottom, equal ones shown once with their number.

    Args:
        flow: the boxes and the streams between them.
    """

    flow: Flow

    def svg(self) -> str:
        """An SVG picture, at most 1600 pixels wide."""
        return svg_text(self.flow)

    def mermaid(self) -> str:
        """Mermaid text."""
        return mermaid_text(self.flow)

    def save(self, path: str | Path) -> Path:
        """Write the picture: `.svg`, or `.mmd` for Mermaid text.

        Raises:
            ConfigError: another ending.
        """
        path = Path(path)
        texts = {".svg": self.svg, ".mmd": self.mermaid}
        if path.suffix not in texts:
            raise ConfigError("a diagram is saved as .svg, or as .mmd (Mermaid text)", value=str(path))
        path.write_text(texts[path.suffix](), encoding="utf-8")
        return path

    def _repr_svg_(self) -> str:
        """What notebooks show."""
        return self.svg()


def diagram(source: Any, length: int | None = None) -> Diagram:
    """Draw a model: its parts as boxes, its streams as lines. Nothing is allocated.

    Programs are drawn step by step with the shapes of all streams. In other models a stack is shown layer by layer and
    a residual step by its parts; shapes are those that `describe` finds.

    Args:
        source: a spec, a mapping, a config file, a preset's result, or a built model.
        length: tokens a row with which shapes are found, for models that take only certain lengths.

    Raises:
        ConfigError: the spec is wrong.
    """
    spec = resolve(as_spec(source))
    if spec.part is ProgramModel or issubclass(spec.part, ProgramModel):
        return Diagram(program_flow(spec))
    model = FakeModel(spec, torch.float32)
    rows = describe_model(model, spec, 1, length or model.longest or _LENGTH).rows
    shapes = {row.path: row.outputs[0] for row in rows if row.outputs}
    return Diagram(tree_flow(spec, shapes))
