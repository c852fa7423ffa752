"""How `vf.costs` finds formulas: the model runs on stand-in tensors at a few sizes, and nothing is allocated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch

from variform.core.codec import as_spec
from variform.core.dims import Dim, Quotient
from variform.core.resolve import resolve
from variform.core.spec import Spec
from variform.errors import ConfigError, did_you_mean
from variform.inspect import places as spots
from variform.inspect.costs import Amount, Cost, Costs, Place
from variform.inspect.count import Figures
from variform.inspect.describe import Description, check_sizes
from variform.inspect.fake import FakeModel
from variform.inspect.fit import Point
from variform.inspect.rows import below, calls_by_path, own_params, params_by_path
from variform.inspect.survey import REFUSED, Numbers, Sizes, Survey, survey
from variform.ops.attention.meter import standing_in
from variform.stack.decodable import undecodable
from variform.stack.program import ProgramModel
from variform.stack.trace import Row

MAX_LEN = "max_len"


def costs(
    source: Any,
    at: Mapping[str, int] | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    **facts: Any,
) -> Costs:
    """What every part of a model costs, as formulas in the names of sizes; for programs, every line.

    The names are those that a program declares, and `B` and `L` for other models; decode state depends on the batch
    and on `max_len`. A formula is given where it is exact at every size that was measured: small ones that determine
    it, and two large ones that try it. Nothing is allocated.

    Args:
        source: a spec, a mapping, a config file, a preset's result, or a built model.
        at: sizes by name, at which numbers are given too; of programs `B` also stands for the batch size, and `L` for
            all others. `max_len` is the largest of those where it is left out.
        device: the device type that attention is chosen for.
        dtype: of parameters and floating-point inputs.
        **facts: what the surroundings provide, when a part is looked at alone (`dim=64, heads=4`).

    Raises:
        ConfigError: the spec is wrong, or `at` names what is no size of the model, or leaves one out.
        ShapeError: the model does not take the sizes of `at`.
    """
    resolved = resolve(as_spec(source), **facts)
    with standing_in(device) if device != "cpu" else nullcontext():
        return costs_of_model(FakeModel(resolved, dtype), resolved, at)


def costs_of_model(
    model: FakeModel, resolved: Spec, at: Mapping[str, int] | None = None, *, decode: bool = True
) -> Costs:
    """The costs of a model that was built from stand-ins; see `costs`.

    Args:
        model: the model.
        resolved: its spec.
        at: sizes of the numbers.
        decode: whether to look at decode state too.
    """
    rows = model.part.table.rows if isinstance(model.part, ProgramModel) else ()
    sizes = sizes_of(model, rows)
    wanted = None if at is None else asked_sizes(sizes, at)
    runs = Runs(model, sizes)
    here = None if wanted is None else runs.figures(wanted)
    found = survey(runs.figures, sizes, [(wanted, here)] if wanted is not None and here is not None else [])
    state, state_here, reason = _state(runs, resolved, wanted) if decode else (None, None, "not looked at")
    params, weights = params_by_path(model.tree), own_params(model.tree)
    places = []
    for spot in model.tree.walk():
        path = spot.path
        numbers = (None,) * 4 if here is None else here[path]
        figures = [Amount(*pair) for pair in zip(found.formulas[path], numbers, strict=True)]
        held = None if state is None else Amount(state.formulas[path][0], state_here[path][0] if state_here else None)
        cost = Cost.of(params[path], figures, held)
        shared = None if spot.shared is None or spot.shared.startswith(spots.FOLDED) else spot.shared
        places.append(Place(path, spot.spec.kind, spot.spec.name, cost, shared, weights[path]))
    dtype = str(model.dtype).removeprefix("torch.")
    return Costs(resolved, sizes, wanted, dtype, tuple(places), tuple(rows), reason, found.points)


def costs_of(described: Description) -> Costs:
    """The costs of what a description is of, with numbers at its sizes."""
    with standing_in(described.device) if described.device != "cpu" else nullcontext():
        model = FakeModel(described.spec, described.dtype)
        sizes = sizes_of(model)
        lengths = dict.fromkeys(sizes.lengths, described.length or 1)
        return costs_of_model(model, described.spec, {**dict.fromkeys(sizes.batches, described.batch), **lengths})


class Runs:
    """Measures a model at sizes by name."""

    def __init__(self, model: FakeModel, sizes: Sizes) -> None:
        self.model = model
        self.sizes = sizes

    def figures(self, point: Point) -> Numbers:
        """What one run costs, by path."""
        calls = calls_by_path(self.model.tree, self.model.trace_at(point))
        found: Numbers = {}
        for path, nodes in calls.items():
            figures = Figures()
            for node in nodes:
                figures.add(node.figures)
            found[path] = (figures.flops, figures.flops_dense, figures.flops_backward, figures.activation_bytes)
        return found

    def state(self, point: Point) -> Numbers:
        """Bytes of decode state, by path."""
        batch = next((point[name] for name in self.sizes.batches), 1)
        held = self.model.state(batch, point[MAX_LEN])
        return {place.path: (below(held, place.path),) for place in self.model.tree.walk()}


def sizes_of(model: FakeModel, rows: tuple[Row, ...] = ()) -> Sizes:
    """The names of the sizes of a model's inputs."""
    part = model.part
    if isinstance(part, ProgramModel):
        admission = part.admission
        lengths = tuple(sorted(admission.names - admission.batch_names))
        shapes = [shape for row in rows for _, shape in (*row.reads, *row.writes)]
        quotients = {q for shape in shapes for dim in shape if isinstance(dim, Dim) for q in _quotients(dim)}
        return Sizes(tuple(sorted(admission.batch_names)), lengths, tuple(sorted(quotients, key=str)))
    longest = model.longest
    short, long = (6, 7) if longest is None or longest > 7 else (longest - 1 or longest, longest)
    try:
        depends = _forms(model.arguments(1, short)) != _forms(model.arguments(1, long))
    except REFUSED:
        depends = True
    return Sizes(("B",), ("L",) if depends or short == long else (), (), longest)


def _quotients(dim: Dim) -> Iterator[Quotient]:
    for monomial, _ in dim.terms:
        yield from (atom for atom in monomial if isinstance(atom, Quotient))


def _forms(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return {key: _forms(item) for key, item in value.items()}
    return [_forms(item) for item in value] if isinstance(value, (tuple, list)) else None


def asked_sizes(sizes: Sizes, at: Mapping[str, int]) -> Point:
    """The sizes asked for by the model's own names.

    Raises:
        ConfigError: a name that is no size, one left out, or a size that is no positive integer.
    """
    check_sizes(**at)
    known = (*sizes.names, MAX_LEN)
    aliases = {"B": sizes.batches, "L": sizes.lengths}
    point = {}
    for name, size in at.items():
        own = (name,) if name in known else aliases.get(name, ())
        if not own:
            raise ConfigError(f"this model has no size {name!r}", hint=did_you_mean(name, known))
        point.update(dict.fromkeys(own, size))
    missing = [name for name in sizes.names if name not in point]
    if missing:
        raise ConfigError(f"give a number for {', '.join(missing)}", hint=f"its sizes are {', '.join(sizes.names)}")
    longest = max((point[name] for name in sizes.lengths), default=1)
    return {**point, MAX_LEN: point.get(MAX_LEN, longest)}


def _state(runs: Runs, resolved: Spec, wanted: Point | None) -> tuple[Survey | None, Numbers | None, str]:
    problems = undecodable(resolved)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return None, None, f"{problems[0].path}: {problems[0].message}{more}".removeprefix(": ")
    sizes = Sizes(runs.sizes.batches[:1], (MAX_LEN,), (), runs.sizes.longest)
    try:
        here = None if wanted is None else runs.state(wanted)
        return survey(runs.state, sizes, [(wanted, here)] if wanted is not None and here is not None else []), here, ""
    except ConfigError as error:
        return None, None, str(error)
