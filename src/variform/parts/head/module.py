"""A user's own module as a head."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from variform.parts.embedding.module import own_module
from variform.parts.kinds import Head, Streams


class ModuleHead(Head):
    """Any module that maps features to an answer: module(x).

    The module stands in the spec as an object, so a model with one cannot be saved as YAML or JSON; register a part of
    its own for that. It is no registered part itself: it cannot be named in a file.

    Shapes:
        x: [B, L, dim] -> what the module gives

    Args:
        module: a `torch.nn.Module`; it is used as it is, by every model that is built of the spec.
    """

    name: ClassVar[str] = "module"

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module: nn.Module = own_module(module)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Ask the module."""
        answer: Tensor = self.module(x)
        return answer
