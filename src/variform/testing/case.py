"""One part under test: its model, inputs for it, and how it is run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from variform.core.build import build
from variform.core.part import Can, Part
from variform.core.resolve import resolve, stream_problems
from variform.core.spec import Spec
from variform.errors import BackendError, ConfigError, ShapeError
from variform.parts.kinds import Embedding
from variform.stack.inputs import streams_read
from variform.stack.program import ProgramModel
from variform.testing.hosts import FACTS, Setting, host_of
from variform.testing.report import NotApplicable
from variform.testing.samples import Sample

MIXING = ("attention", "mixer")
"""Kinds that move information along the sequence by definition."""


@dataclass(frozen=True)
class Inputs:
    """What a model is run on.

    Args:
        x: token ids [B, L], features [B, L, dim] or images.
        context: features of another sequence, or the tokens of a source, [B, Lc, ...].
        form: what `x` holds.
        condition: features that adaptive parts go by, [B, dim_condition].
    """

    x: Tensor
    context: Tensor | None
    form: Literal["tokens", "features", "images"]
    condition: Tensor | None = None

    def rows(self, rows: slice) -> Inputs:
        """Some rows of the batch."""
        context, condition = (None if t is None else t[rows] for t in (self.context, self.condition))
        return replace(self, x=self.x[rows], context=context, condition=condition)

    def steps(self, steps: slice) -> Inputs:
        """Some steps of the sequence; the context stays."""
        return replace(self, x=self.x[:, steps])

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating-point tensors in another type."""
        given = (self.x, self.context, self.condition)
        x, context, condition = (t if t is None or not t.is_floating_point() else t.to(dtype) for t in given)
        assert x is not None
        return replace(self, x=x, context=context, condition=condition)


@dataclass
class Case:
    """A part, and everything the checks do with it.

    Args:
        sample: the instance.
        facts: what the surroundings provide beside the usual sizes.
    """

    sample: Sample
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        """The part as it was described."""
        return self.sample.spec

    @property
    def part(self) -> type[Part]:
        """Its class."""
        return self.spec.part

    @property
    def label(self) -> str:
        """`kind/name`, with the variant in brackets."""
        return self.sample.label

    @functools.cached_property
    def resolved(self) -> Spec:
        """The part with all its fields, as it stands in its host or alone."""
        if self.stands_alone:
            return resolve(self.spec, **self.given())
        host = resolve(self.host(Setting()))
        return next(spec for _, spec in host.walk() if spec.part is self.part)

    @functools.cached_property
    def stands_alone(self) -> bool:
        """Whether it does without the streams that other parts publish or read."""
        return not stream_problems(self.spec)

    @functools.cached_property
    def can(self) -> Can:
        """What the part says it can do with these arguments."""
        return self.part.abilities(self.resolved.args)

    def given(self, **more: Any) -> dict[str, Any]:
        """The facts that the part, built alone, takes from its surroundings."""
        wanted = {f for _, spec in self.spec.walk() for f in _inherited(spec)}
        return {name: value for name, value in {**FACTS, **self.facts, **more}.items() if name in wanted}

    # ---- models ----

    def setting(self, **changes: Any) -> Setting:
        """A setting that the part can serve; causal where it can be."""
        return replace(Setting(causal=self.can.causal), **changes)

    def host(self, setting: Setting) -> Spec:
        """The model around the part."""
        make = self.sample.host or host_of(self.part.kind)
        spec = make(self.spec, setting)
        return spec.replace(**{k: v for k, v in self.facts.items() if k in spec.leaves()})

    def model(
        self, setting: Setting | None = None, dtype: torch.dtype = torch.float64, seed: int = 0, perturbed: bool = True
    ) -> Any:
        """The built model; parameters are perturbed, so that branches which begin at zero count."""
        with seeded(seed):
            model = build(self.host(setting or self.setting())).to(dtype)
            if perturbed:
                perturb(model)
        return model

    def alone(self, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Any:
        """The part without a model around it, where it can do without one."""
        with seeded(seed):
            if self.stands_alone:
                return build(self.spec.replace(**changes), **self.given()).to(dtype)
            return self.under_test(build(self.host(Setting())).to(dtype))

    def under_test(self, model: nn.Module) -> Part:
        """The part within a built model."""
        return next(module for module in model.modules() if type(module) is self.part)

    # ---- inputs and runs ----

    def inputs(self, batch: int, length: int, seed: int = 1, context: int = 5) -> Inputs:
        """Random inputs in float64; of a length near `length`, where the part does not take every length."""
        length = self.fit(length if self.can.lengths else FACTS["max_seq_len"])
        with seeded(seed):
            if self.is_pair:
                return replace(self.of_length(batch, length), context=self.of_length(batch, context).x)
            made = self.of_length(batch, length)
            if self.reads("condition"):
                made = replace(made, condition=torch.randn(batch, FACTS["dim_condition"], dtype=torch.float64))
            if not self.reads_context:
                return made
            return replace(made, context=torch.randn(batch, context, self.dim_context, dtype=torch.float64))

    def fit(self, length: int) -> int:
        """The length near `length` that the part takes."""
        return self.part.near_length(self.resolved.args, length)

    def run(self, model: Any, inputs: Inputs, **streams: Any) -> Any:
        """The model's output; the source's padding of an encoder-decoder is `context_mask`, as elsewhere."""
        if self.is_program:
            if set(streams) - {"state", "valid"} or ("valid" in streams and "state" not in streams):
                raise NotApplicable("a program that is a whole model declares its own inputs")
            out = model({"x": inputs.x}, **streams)
            return (out[0]["x"], out[1]) if "state" in streams else out["x"]
        if self.is_pair:
            if "context_mask" in streams:
                streams["source_valid"] = streams.pop("context_mask")
            return model(None if "state" in streams else inputs.context, inputs.x, **streams)
        if inputs.context is not None and "state" not in streams:
            streams["context"] = inputs.context
        if inputs.condition is not None:
            streams["condition"] = inputs.condition
        return model(inputs.x, **streams)

    def accepts(self, model: Any, inputs: Inputs, **streams: Any) -> bool:
        """Whether the model serves the call; False where it refuses it with a clear error."""
        copies = {name: value.clone() for name, value in streams.items()}
        given = replace(inputs, x=inputs.x.clone())
        try:
            with torch.no_grad():
                self.run(model, given, **copies)
        except (ShapeError, ConfigError, BackendError, NotApplicable):
            return False
        return True

    def state(self, model: Any, inputs: Inputs, max_len: int, **more: Any) -> Any:
        """Empty decode state that has read the context."""
        if inputs.context is not None:
            more["source" if self.is_pair else "context"] = inputs.context
        return model.init_state(inputs.x.shape[0], max_len, **more)

    # ---- what kind of thing it is ----

    @functools.cached_property
    def _probe(self) -> Any:
        return self.model(dtype=torch.float32)

    @property
    def is_pair(self) -> bool:
        """Whether the model takes a source and a target."""
        return hasattr(self._probe, "encoder") and hasattr(self._probe, "decoder")

    @property
    def is_program(self) -> bool:
        """Whether the whole model is a program, with inputs of its own."""
        return isinstance(self._probe, ProgramModel)

    @functools.cached_property
    def form(self) -> Literal["tokens", "features", "images"]:
        """What the model reads."""
        if self.is_program:
            return "tokens"
        embedding = self.embedding(self._probe)
        if embedding is None or embedding.example_inputs(1, 2).dim() == 3:
            return "features"
        return "images" if embedding.example_inputs(1, 2).dim() == 4 else "tokens"

    @functools.cached_property
    def reads_context(self) -> bool:
        """Whether a part of the model attends to another sequence."""
        return self.reads("context")

    def reads(self, stream: str) -> bool:
        """Whether a part of the model reads a stream."""
        return stream in streams_read(self._probe)

    @functools.cached_property
    def dim_context(self) -> int:
        """Features of that sequence."""
        size: int = self._probe.spec.get("dim_context") or self._probe.spec["dim"]
        return size

    @functools.cached_property
    def has_length(self) -> bool:
        """Whether the output has one entry a token."""
        if self.form == "images":
            return False
        with torch.no_grad():
            shapes = [self.run(self._probe, self.inputs(2, n).to(torch.float32)).shape for n in (3, 9)]
        return [len(shape) > 1 and shape[1] for shape in shapes] == [self.fit(3), self.fit(9)]

    def embedding(self, model: Any) -> Embedding | None:
        """The embedding of the (target) tokens."""
        side = model.decoder if hasattr(model, "decoder") else model
        found: Embedding | None = side.embedding
        return found

    def need_length(self) -> None:
        """Skip the check for parts whose result has no entry a token."""
        if not self.has_length:
            raise NotApplicable("its output has no entry a token")

    def need_sequence(self) -> None:
        """Skip the check for parts whose input is no sequence of free length."""
        if self.form == "images" or not self.can.lengths:
            raise NotApplicable("its input has one fixed size")

    def of_length(self, batch: int, length: int) -> Inputs:
        """Random inputs of this very length, without a context."""
        if self.form == "features":
            first = self.embedding(self._probe)
            size = self._probe.spec["dim"] if first is None else first.example_inputs(1, 2).shape[-1]
            return Inputs(torch.randn(batch, length, size, dtype=torch.float64), None, "features")
        embedding = None if self.is_program else self.embedding(self._probe)
        if self.form == "images":
            assert embedding is not None
            return Inputs(torch.randn(embedding.example_inputs(batch).shape, dtype=torch.float64), None, "images")
        size = getattr(embedding, "vocab_size", None) or FACTS["vocab_size"]
        return Inputs(torch.randint(0, size, (batch, length)), None, "tokens")


def perturb(model: nn.Module, scale: float = 0.1) -> None:
    """Move every parameter off its initial value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from a seed, without a trace on those of the caller."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _inherited(spec: Spec) -> Iterator[str]:
    from variform.core.fields import fields_of

    return (f.name for f in fields_of(spec.part) if f.inherits)
