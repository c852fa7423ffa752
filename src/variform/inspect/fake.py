"""A model built from stand-in tensors: sizes without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from variform.core.build import build
from variform.core.part import Part
from variform.core.spec import Spec
from variform.errors import ConfigError
from variform.inspect.examples import example_arguments
from variform.inspect.places import fold, place_tree
from variform.inspect.rows import state_by_path
from variform.inspect.trace import Node, Tracer
from variform.ops.attention.call import Call
from variform.parts.embedding.features import FeatureEmbedding
from variform.parts.kinds import Model, StreamPart, holds_state
from variform.stack.program import ProgramModel


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Stand-ins cannot be converted after the build, so they are made in the right type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class FakeModel:
    """What a resolved spec describes, with equal layers built once and no memory behind it.

    Args:
        resolved: the spec.
        dtype: of parameters and floating-point inputs.
        sink: told of each attention call and the backend asked for; its answers stand in the traced nodes.
    """

    def __init__(self, resolved: Spec, dtype: torch.dtype, sink: Callable[[Call, str], Any] | None = None) -> None:
        # Masks and tables in a spec are real tensors; they may meet the stand-ins.
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.dtype = dtype
        with self.mode, _default_dtype(dtype):
            self.part: Part = build(fold(resolved))
        self.tree = place_tree(self.part)
        self.tracer = Tracer(self.part, self.mode, sink)

    @property
    def longest(self) -> int | None:
        """The most tokens the model, or the decoder of an encoder-decoder, takes; None for no limit.

        Class tokens in front of features stand in the table of positions too.
        """
        own: int | None = getattr(self.part, "max_seq_len", None)
        if own:
            embeddings = [part for part in self.part.modules() if isinstance(part, FeatureEmbedding)]
            return own - sum(len(part.class_token) for part in embeddings if part.class_token is not None)
        return getattr(getattr(self.part, "decoder", None), "max_seq_len", None)

    def arguments(self, batch: int, length: int | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Example inputs of these sizes."""
        with self.mode:
            args, kwargs = example_arguments(self.part, batch, length)
            return tuple(self._cast(value) for value in args), {key: self._cast(v) for key, v in kwargs.items()}

    def trace(self, batch: int, length: int | None) -> Node:
        """Run the model on inputs of these sizes."""
        args, kwargs = self.arguments(batch, length)
        return self.tracer.run(*args, **kwargs)[0]

    def trace_at(self, sizes: Mapping[str, int]) -> Node:
        """Run the model on inputs of named sizes: those that a program declares, or `B` and `L`."""
        if not isinstance(self.part, ProgramModel):
            return self.trace(sizes.get("B", 1), sizes.get("L"))
        with self.mode:
            inputs = self._cast(self.part.admission.example_of(sizes))
        return self.tracer.run(inputs)[0]

    def state(self, batch: int, max_len: int | None) -> dict[str, int]:
        """Bytes of the decode state for `batch` rows of `max_len` tokens, by path.

        Raises:
            ConfigError: the model cannot decode.
        """
        with self.mode, torch.no_grad():
            return state_by_path(self.make_state(batch, max_len))

    @property
    def failed_path(self) -> str:
        """Where the part stands in which the last run failed; empty for the whole model."""
        failed = self.tracer.failed
        return next((place.path for place in self.tree.walk() if place.part is failed), "")

    def make_state(self, batch: int, max_len: int | None) -> Any:
        """An empty decode state of stand-ins; to be called under `mode`."""
        if isinstance(self.part, Model):
            return self.part.example_state(batch, max_len)
        if not isinstance(self.part, StreamPart) or not holds_state(self.part):
            return {}
        (_, streams), _ = self.arguments(batch, max_len)
        if max_len is None:
            raise ConfigError("give length, the number of tokens")
        return self.part.init_state(batch, max_len, streams)

    def _cast(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._cast(item) for key, item in value.items()}
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.to(self.dtype)
        return value
