"""Checks of what happens to a part besides running: compiling, meta builds, copies, dropout, narrow types."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from variform.core.build import build, materialise
from variform.core.fields import fields_of
from variform.core.part import Part
from variform.parts.kinds import Sides, StreamPart
from variform.testing.case import Case, perturb, seeded
from variform.testing.heads import heads, tokens
from variform.testing.numbers import Rounded, gradients, identical, largest, rms, same
from variform.testing.report import NotApplicable, check


@check("compile")
def compiles(case: Case) -> None:
    """Compiles whole, without a graph break, and the compiled form gives the same values and gradients."""
    setting = case.setting(companion=False)
    inputs = case.inputs(2, 9).to(torch.float32)
    model = case.model(setting, torch.float32).train()
    valid = torch.arange(9).expand(2, 9) < torch.tensor([[9], [6]])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    wanted, got = case.run(model, inputs), case.run(compiled, inputs)
    same(got, wanted, "the compiled forward", 1e-5)
    found = gradients(got.square().sum(), model)
    for name, gradient in gradients(wanted.square().sum(), model).items():
        same(found[name], gradient, f"the gradient of {name}, compiled", 1e-4)
    model.eval()
    if case.form != "images" and case.accepts(model, inputs, valid=valid):
        with torch.no_grad():
            wanted, got = case.run(model, inputs, valid=valid), case.run(compiled, inputs, valid=valid)
            same(got, wanted, "the compiled forward with padding", 1e-5)


# ---- building without memory ----


@check("meta")
def meta(case: Case) -> None:
    """Built on the meta device and then given memory, every parameter and buffer is initialised as if built there."""
    host = case.host(case.setting())
    with seeded(0):
        model = build(host, device="meta")
        for name, tensor in _tensors(model):
            assert tensor.is_meta, f"{name} was allocated on {tensor.device} in a meta build"
        with _poisoned_memory():
            materialise(model, "cpu")
    with seeded(1):
        wanted = dict(_tensors(build(host)))
    given = dict(_tensors(model))
    assert given.keys() == wanted.keys(), "a meta build has other parameters"
    for name, tensor in given.items():
        _initialised(name, tensor, wanted[name])
    with torch.no_grad():
        out = case.run(model.eval(), case.inputs(2, 9).to(torch.float32))
    assert bool(torch.isfinite(out).all()), "the materialised model is not finite"


def _initialised(name: str, tensor: Tensor, wanted: Tensor) -> None:
    if not wanted.is_floating_point():
        identical(tensor, wanted, f"{name} after materialise")
        return
    assert bool(torch.isfinite(tensor).all()), f"{name} is not initialised by reset_parameters"
    spread = float(wanted.detach().std()) if wanted.numel() > 1 else 0.0
    if spread == 0.0:
        identical(tensor, wanted, f"{name} after materialise")
    elif wanted.numel() >= 32:
        now = float(tensor.detach().std())
        assert 0.5 < now / spread < 2, f"{name} has a spread of {now:.3g} after materialise, {spread:.3g} when built"


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """New memory holds NaN (or the largest integer), so that what nobody initialises is seen."""
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


# ---- copies ----


@check("copies")
def copies(case: Case) -> None:
    """A deepcopy and a pickled copy are equal and independent: changing one leaves the other as it was."""
    model = case.model().eval()
    inputs = case.inputs(2, 9)
    with torch.no_grad():
        before = case.run(model, inputs)
        others = {"deepcopy": copy.deepcopy(model)}
        if _importable(case.part):  # a class of a cell or a function has no address that a pickle could hold
            others["pickle"] = pickle.loads(pickle.dumps(model))
        for what, other in others.items():
            assert other.spec == model.spec, f"the {what} has another spec"
            identical(case.run(other, inputs), before, f"the output of the {what}")
            shared = {t.untyped_storage().data_ptr() for _, t in _tensors(model) if t.numel()}
            for name, tensor in _tensors(other):
                assert tensor.untyped_storage().data_ptr() not in shared or not tensor.numel(), (
                    f"the {what} shares {name}"
                )
            perturb(other, 1.0)
            for _, tensor in other.named_buffers():
                tensor.add_(1)
            identical(case.run(model, inputs), before, f"the original after its {what} was changed")
            if any(True for _ in other.parameters()):
                changed = case.run(other, inputs)
                assert not torch.equal(changed, before), f"the {what} runs on the original's parameters"


def _importable(part: type[Part]) -> bool:
    found: Any = sys.modules.get(part.__module__)
    for name in part.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is part


# ---- dropout ----

UNSCALED = ("layer_drop",)
"""Rates that leave whole steps out without scaling the rest: the mean in training is another one by definition."""


@check("dropout")
def dropout(case: Case) -> None:
    """At rate 0 and in eval dropout does nothing, bit for bit; in training mean and variance over draws are right."""
    if case.sample.variant:
        raise NotApplicable("it is checked on the plain instance")
    rates = [f.name for f in fields_of(case.part) if not f.is_slot and "drop" in f.name]
    if not rates:
        raise NotApplicable("it has no dropout")
    for name in rates:
        plain, drop, more = (_direct(case, **{name: rate}) for rate in (0.0, 0.2, 0.5))
        with torch.no_grad():
            wanted = plain(False)
            identical(plain(True), wanted, f"{name}=0 in training")
            identical(drop(False), wanted, f"{name} in eval")
            if name not in UNSCALED:
                _mean_and_variance(name, wanted, drop, more)
            else:
                draws = torch.stack([drop(True) for _ in range(32)])
                assert bool(draws.std(0).any()), f"{name} drops nothing in training"


def _mean_and_variance(name: str, wanted: Tensor, drop: Any, more: Any) -> None:
    """The mean is that without dropout, and the variance grows as p / (1 - p): from 1/4 at p = 0.2 to 1 at p = 0.5."""
    variances = []
    for run in (drop, more):
        draws = torch.cat([run(True) for _ in range(32)])
        deviation = draws.std(0)
        off = (draws.mean(0) - wanted[0]).abs() - 6 * deviation / len(draws) ** 0.5
        assert float(off.max()) < 1e-6, f"the mean over {len(draws)} draws of {name} is off by {float(off.max()):.2e}"
        variances.append(float(deviation.square().mean()))
    assert variances[0] > 0, f"{name} drops nothing in training"
    ratio = variances[1] / variances[0]
    assert 2.8 < ratio < 5.6, f"{name}: the variance at 0.5 is {ratio:.2f} times that at 0.2, and 4 is right"


def _direct(case: Case, **changes: Any) -> Any:
    """A function of `training` that runs the part itself on 64 equal rows."""
    part = case.alone(**changes)
    perturb_like = Case(case.sample, case.facts)
    with seeded(3):
        perturb(part)
    if case.part.kind == "attention":
        given: tuple[Any, ...] = (
            *(t[:1].repeat(64, 1, 1, 1) for t in heads(case.fit(5), case.fit(5))),
            Sides(x=tokens(case.fit(5))[:1].repeat(64, 1, 1)),
        )
    else:
        inputs = perturb_like.inputs(1, 5)
        x = inputs.x.repeat(64, *[1] * (inputs.x.dim() - 1))
        sides = {"context": inputs.context, "condition": inputs.condition}
        streams = {name: t.repeat(64, *[1] * (t.dim() - 1)) for name, t in sides.items() if t is not None}
        given = (x, streams) if isinstance(part, StreamPart) or case.part.kind == "embedding" else (x,)

    def run(training: bool) -> Tensor:
        out = part.train(training)(*given)
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    return run


# ---- number types ----


@check("precision")
def precision(case: Case) -> None:
    """In float32 it is within 1e-5 of float64; in bfloat16 within twice the error of rounding every operation."""
    inputs = case.inputs(2, 33)
    for dtype in (torch.float32, torch.bfloat16):
        narrow, exact = case.model().eval().to(dtype), case.model().eval()
        exact.load_state_dict(narrow.state_dict())
        given = inputs.to(dtype)
        with torch.no_grad():
            wanted = case.run(exact, given.to(torch.float64))
            got = case.run(narrow, given)
            assert got.dtype == dtype, f"{dtype} in, {got.dtype} out"
            error = rms(got.double() - wanted)
            if dtype == torch.float32:
                same(got, wanted, "float32 against float64", 1e-5)
                continue
            with Rounded(dtype):
                plain = rms(case.run(exact, given.to(torch.float64)) - wanted)
        limit = 2 * plain + 1e-3 * largest(wanted)
        assert error <= limit, f"bfloat16 is off by {error:.2e}, a plain implementation by {plain:.2e}"
        assert error <= 0.05 * max(rms(wanted), 1e-3), f"bfloat16 is off by {error:.2e} of {rms(wanted):.2e}"
