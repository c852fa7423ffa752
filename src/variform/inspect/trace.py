"""One run of a model on stand-in tensors, part by part: shapes, figures and attention calls.

Nothing is allocated and nothing is computed. A part that is called again with inputs of the same form is not run
again: its figures are known, and its result is made up of fresh stand-ins. So the cost of a run is that of the
distinct layers.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from variform.core.part import Part
from variform.inspect.count import Figures, OperationCounter, attention_figures, storage_of
from variform.inspect.structure import form, main_tensors, rebuilt
from variform.ops.attention.call import Call
from variform.ops.attention.meter import metering

Shape = tuple[int, ...]


@dataclass(slots=True)
class Node:
    """One call of a part.

    Args:
        part: what was called.
        inputs: shapes of the tensors it was given, streams left out.
        named_inputs: shapes of what it was given by name, where a dict comes first (programs).
        outputs: shapes of the tensors it returned.
        published: shapes of the streams it published, by name.
        figures: what it cost, children included.
        attention: what the sink of `Tracer` said to the attention calls it made itself.
        calls: the calls of other parts that it made.
    """

    part: Part
    inputs: tuple[Shape, ...] = ()
    named_inputs: dict[str, Shape] = field(default_factory=dict)
    outputs: tuple[Shape, ...] = ()
    published: dict[str, Shape] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)
    attention: list[Any] = field(default_factory=list)
    calls: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class _Frame:
    """A call that is running: `saved` is the memory that was kept in it, by identity, in bytes."""

    node: Node
    saved: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Known:
    """What a call of this form does: its node, its result, and what it keeps.

    Args:
        node: the first call.
        output: its result.
        tensors: the tensors of the result.
        sources: for each of them the index of the input whose memory it shares, or None.
        kept_inputs: indices of inputs whose memory it keeps, with the bytes.
        kept: bytes of its own memory that it keeps, by identity.
    """

    node: Node
    output: Any
    tensors: list[Tensor]
    sources: list[int | None]
    kept_inputs: dict[int, int]
    kept: dict[int, int]


class Tracer:
    """Runs a model that was built under `mode` and records every call of a part.

    Args:
        model: built from fake tensors; it is changed and good for tracing only.
        sink: called with each attention call and the backend asked for; what it returns is put into the node.
    """

    def __init__(self, model: Part, mode: FakeTensorMode, sink: Callable[[Call, str], Any] | None = None) -> None:
        self.mode = mode
        self.failed: Part | None = None
        self._sink = sink
        self._persistent = {storage_of(t)[0] for t in (*model.parameters(), *model.buffers())}
        self._known: dict[Hashable, _Known] = {}
        self._frames: list[_Frame] = []
        self._saved: dict[int, Any] = {}
        self._model = model
        for part in model.modules():
            if isinstance(part, Part):
                part.__dict__["forward"] = functools.partial(self._call, part, part.forward)

    def run(self, *args: Any, **kwargs: Any) -> tuple[Node, Any]:
        """Call the model; returns the record of the call and the model's result."""
        self._saved = {}
        self.failed = None
        root = _Frame(Node(self._model))
        self._frames = [root]
        try:
            with ExitStack() as stack:
                stack.enter_context(_quiet())
                stack.enter_context(self.mode)
                stack.enter_context(saved_tensors_hooks(self._keep, lambda kept: kept))
                stack.enter_context(metering(self._attend))
                stack.enter_context(OperationCounter(self._count))
                out = self._model(*args, **kwargs)
        finally:
            self._frames = []
            self._saved = {}
        return root.node.calls[0], out

    def _call(self, part: Part, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._frames:
            return forward(*args, **kwargs)
        tensors: list[Tensor] = []
        shape = form((args, kwargs), tensors)
        memory = [storage_of(tensor)[0] for tensor in tensors]
        # What is kept of a piece of a larger tensor is all of its memory.
        same = tuple(
            (memory.index(identity), storage_of(t)[1].nbytes()) for identity, t in zip(memory, tensors, strict=True)
        )
        key = (id(part), part.training, torch.is_grad_enabled(), self._is_kept(), shape, same)
        if key in self._known:
            return self._repeated(self._known[key], tensors, memory)
        known, out = self._measured(part, forward, args, kwargs, memory)
        if form((args, kwargs), []) == shape:  # else it changed its arguments, which a repeat would have to do too
            self._known[key] = known
        return out

    def _measured(
        self, part: Part, forward: Callable[..., Any], args: Any, kwargs: Any, memory: list[int]
    ) -> tuple[_Known, Any]:
        named = _named(args[0]) if args else {}
        frame = _Frame(Node(part, inputs=_shapes((args, tuple(kwargs.values()))), named_inputs=named))
        self._frames.append(frame)
        try:
            out = self._forward(part, forward, args, kwargs, frame)
        except Exception:
            self.failed = self.failed or part
            raise
        finally:
            self._frames.pop()
        frame.node.outputs, frame.node.published = _shapes(out), _published(out)
        above = self._frames[-1]
        above.node.calls.append(frame.node)
        above.node.figures.add(frame.node.figures)
        above.saved.update(frame.saved)
        tensors: list[Tensor] = []
        form(out, tensors)
        places = {identity: index for index, identity in reversed(list(enumerate(memory)))}
        sources = [places.get(storage_of(tensor)[0]) for tensor in tensors]
        kept_inputs = {places[i]: size for i, size in frame.saved.items() if i in places}
        kept = {i: size for i, size in frame.saved.items() if i not in places}
        return _Known(frame.node, out, tensors, sources, kept_inputs, kept), out

    def _forward(self, part: Part, forward: Callable[..., Any], args: Any, kwargs: Any, frame: _Frame) -> Any:
        cost = part.cost(*args, **kwargs)
        if cost is None:
            return forward(*args, **kwargs)
        out = forward(*args, **kwargs) if cost.output is None else cost.output
        kept = frame.node.figures.activation_bytes if cost.activation_bytes is None else cost.activation_bytes
        if cost.activation_bytes is not None:
            frame.saved = {id(cost): kept}
            self._saved[id(cost)] = cost
        frame.node.figures = Figures(cost.flops, cost.flops_dense, cost.flops_backward, kept)
        return out

    def _repeated(self, known: _Known, tensors: list[Tensor], memory: list[int]) -> Any:
        """The result of a call whose form is known, and its figures, without running it."""
        fresh: dict[int, Tensor] = {}
        results = []
        for tensor, source in zip(known.tensors, known.sources, strict=True):
            identity = storage_of(tensor)[0]
            if identity in self._persistent:  # a parameter that a part hands out, or a piece of one
                results.append(tensor)
                continue
            if source is None and identity not in fresh:
                fresh[identity] = _stand_in(tensor)
            base = fresh[identity] if source is None else tensors[source]
            results.append(base.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()))
        frame = _Frame(Node(known.node.part))
        self._frames.append(frame)
        for index, size in known.kept_inputs.items():
            self._record(memory[index], tensors[index], size)
        for identity, size in known.kept.items():
            token: Any = fresh.get(identity, object())
            self._record(storage_of(token)[0] if isinstance(token, Tensor) else id(token), token, size)
        self._frames.pop()
        above = self._frames[-1]
        above.node.calls.append(known.node)
        figures = known.node.figures
        above.node.figures.add(
            Figures(figures.flops, figures.flops_dense, figures.flops_backward, frame.node.figures.activation_bytes)
        )
        above.saved.update(frame.saved)
        return rebuilt(known.output, iter(results))

    def _is_kept(self) -> bool:
        """Whether what the backward pass needs is kept now; under activation checkpointing it is not."""
        hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)
        return bool(hooks) and hooks[0] == self._keep

    def _keep(self, tensor: Tensor) -> Tensor:
        identity, storage = storage_of(tensor)
        if identity not in self._persistent:
            self._record(identity, storage, storage.nbytes())
        return tensor

    def _record(self, identity: int, owner: Any, size: int) -> None:
        frame = self._frames[-1]
        frame.saved[identity] = size
        if identity not in self._saved:
            self._saved[identity] = owner
            frame.node.figures.activation_bytes += size

    def _count(self, figures: Figures) -> None:
        self._frames[-1].node.figures.add(figures)

    def _attend(self, call: Call, backend: str) -> None:
        node = self._frames[-1].node
        node.figures.add(attention_figures(call))
        if self._sink is not None:
            node.attention.append(self._sink(call, backend))


@contextmanager
def _quiet() -> Iterator[None]:
    """What does not fit is raised and reported by the caller; torch would log a traceback beside it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _stand_in(tensor: Tensor) -> Tensor:
    """Fresh memory like that behind a tensor, one-dimensional, not a leaf of the graph."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    flat = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
    return flat.requires_grad_().clone() if tensor.requires_grad else flat


def _shapes(value: Any) -> tuple[Shape, ...]:
    return tuple(tuple(tensor.shape) for tensor in main_tensors(value))


def _published(out: Any) -> dict[str, Shape]:
    """Streams stand in a dict beside the result; a program's result is a dict altogether."""
    return _named(out[1] if isinstance(out, tuple) and len(out) == 2 else out)


def _named(value: Any) -> dict[str, Shape]:
    if not isinstance(value, Mapping):
        return {}
    return {name: tuple(item.shape) for name, item in value.items() if isinstance(item, Tensor)}
