"""Decoding steps compiled for weights that stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from variform.errors import ConfigError, did_you_mean
from variform.generate.programs import TokenProgram

BUCKET = 64
"""The attended length of a compiled step is rounded up to a multiple of this, where the caller says nothing."""

_PACKED = {"max_autotune": True, "max_autotune_gemm_backends": "CPP"}
"""On a CPU: matrix products generated for the sizes at hand, over weights laid out for them; nothing is timed."""

Weights = tuple[tuple[int, int], ...]
"""Of each parameter and buffer, where it lies and how often it was written to."""


class CompiledSteps(nn.Module):
    """A model whose single tokens are read by a compiled step, and longer chunks as they are.

    On a CPU the weights are constants of the compiled step, laid out anew for its matrix products, so it takes the
    memory of the weights once more. One model's step is made once, and anew when its weights have changed.

    Args:
        model: the model, in eval mode and without gradients while this runs.
        backend: of `torch.compile`; "inductor" with the settings above.
    """

    def __init__(self, model: nn.Module, backend: str) -> None:
        super().__init__()
        tensors = [*model.parameters(), *model.buffers()]
        self.frozen = backend == "inductor" and all(x.is_cpu for x in tensors)
        self.__dict__["_orig_mod"] = model  # not a child: the weights are the model's
        self.__dict__["_step"] = torch.compile(model, backend=_backend(backend, self.frozen))

    def forward(self, *inputs: Tensor | None, **streams: Any) -> Any:
        """As the model."""
        ids = inputs[-1]
        assert ids is not None
        if ids.shape[1] > 1 or streams.get("valid") is not None:
            return self.__dict__["_orig_mod"](*inputs, **streams)
        with _freezing() if self.frozen else nullcontext():
            return self.__dict__["_step"](*inputs, **streams)


class _Made:
    """What was compiled for a model, by backend; copies of the model and files do not have it."""

    def __init__(self) -> None:
        self.steps: dict[str, tuple[Weights, CompiledSteps]] = {}

    def __reduce__(self) -> tuple[type[_Made], tuple[()]]:
        return _Made, ()


def with_compiled_steps(model: nn.Module, compile: bool | str) -> nn.Module:
    """The model with compiled steps: those made before, where its weights are still the same.

    Args:
        model: the model.
        compile: True, or the name of a backend of `torch.compile`.

    Raises:
        ConfigError: no such backend; a program, or a model that is compiled already.
    """
    if hasattr(model, "_orig_mod") or isinstance(model, TokenProgram):
        what = "the model is compiled already" if hasattr(model, "_orig_mod") else "programs run as they are"
        raise ConfigError(f"{what}: leave it out", path="compile", value=compile)
    backend = "inductor" if compile is True else str(compile)
    known = torch.compiler.list_backends(exclude_tags=None)
    if backend not in known:
        raise ConfigError("no such backend", path="compile", value=compile, hint=did_you_mean(backend, known))
    steps, weights = model.__dict__.setdefault("_compiled_steps", _Made()).steps, _weights(model)
    if backend not in steps or steps[backend][0] != weights:
        steps[backend] = weights, CompiledSteps(model, backend)
    made: CompiledSteps = steps[backend][1]
    return made


def _weights(model: nn.Module) -> Weights:
    found = []
    for x in (*model.parameters(), *model.buffers()):
        found.append((x.data_ptr(), 0 if x.is_inference() else x._version))
    return tuple(found)


def _backend(name: str, frozen: bool) -> Callable[..., Any]:
    """A backend of its own for each model and weights, as graphs are shared between equal ones."""
    from torch._dynamo import lookup_backend  # heavy, and for those alone who compile

    if not frozen:
        found: Callable[..., Any] = lookup_backend(name)
        return found
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.exc import InductorError

    def packed(graph: Any, inputs: Sequence[Any]) -> Any:
        try:
            return compile_fx(graph, inputs, config_patches=_PACKED)
        except InductorError as error:
            if "NoValidChoices" not in str(error):
                raise
            return compile_fx(graph, inputs)  # a product of no constant, or of sizes that no kernel is generated for

    return packed


def _freezing() -> Any:
    from torch._inductor import config

    return config.patch(freezing=True)
