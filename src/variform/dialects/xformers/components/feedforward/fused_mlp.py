"""The two-layer feedforward, compiled where that fuses its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from variform.dialects.xformers.components.feedforward.mlp import MLP, MlpConfig
from variform.dialects.xformers.components.feedforward.registry import register_feedforward

compiler: Callable[..., Any] = torch.compile
"""What compiles; another one (`functools.partial(torch.compile, mode="max-autotune")`) may be put here."""


@dataclass
class FusedMlpConfig(MlpConfig):
    """The configuration of `FusedMLP`."""


@register_feedforward("FusedMLP", FusedMlpConfig)
class FusedMLP(MLP):
    """The same function as `MLP`; on a GPU its offsets, activation and dropout are fused, by `torch.compile`.

    It is compiled at the first call there. On a processor, within code that is compiled as a whole, and where the
    compiler fails, it runs as `MLP` does: `path` says which way the last call went, and why.
    """

    path: str = "not called yet"
    _run: Callable[[Tensor], Tensor] | None = None
    _failure: str = ""

    def forward(self, inputs: Tensor) -> Tensor:
        """Transform each token."""
        if torch.compiler.is_compiling():
            return super().forward(inputs)
        if not fuses(inputs):
            self.path = f"plain: fusion is for GPUs, and this is on {inputs.device.type}"
            return super().forward(inputs)
        if not self._failure:
            try:
                if self._run is None:
                    self._run = compiler(super().forward)
                out: Tensor = self._run(inputs)
            except Exception as error:
                if not _from_compiler(error):
                    raise
                self._failure = f"plain: the compiler failed: {type(error).__name__}: {str(error).split(chr(10), 1)[0]}"
            else:
                self.path = "compiled"
                return out
        self.path = self._failure
        return super().forward(inputs)

    def extra_repr(self) -> str:
        """How the last call ran."""
        return "" if self.path == FusedMLP.path else f"path={self.path!r}"

    def __getstate__(self) -> dict[str, Any]:
        """Compiled code belongs to this process and module."""
        return {name: value for name, value in self.__dict__.items() if name not in ("path", "_run", "_failure")}


def fuses(inputs: Tensor) -> bool:
    """Whether compiling pays for tensors there."""
    return inputs.is_cuda


def _from_compiler(error: Exception) -> bool:
    """Whether an error says something about the compiler, and not about the call."""
    module = type(error).__module__
    return module.startswith(("torch._dynamo", "torch._inductor", "triton"))
