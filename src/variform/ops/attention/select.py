"""`attention`: run a call on the fastest backend that computes the same function, or on the one asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from variform.errors import BackendError, ConfigError, did_you_mean
from variform.ops.attention import costs, meter
from variform.ops.attention.block_sparse import BlockSparseBackend
from variform.ops.attention.call import Call
from variform.ops.attention.chunked import ChunkedBackend
from variform.ops.attention.flex import FlexBackend
from variform.ops.attention.pattern import pattern_of, split
from variform.ops.attention.reference import ReferenceBackend
from variform.ops.attention.sdpa import SdpaBackend
from variform.ops.attention.sparse import SparseBackend
from variform.ops.attention.windows import WindowsBackend
from variform.ops.masks import Causal, Everything

__all__ = ["Backend", "Candidate", "attention", "backends", "candidates", "register_backend"]


class Backend(Protocol):
    """An implementation that computes a whole call or says why it cannot."""

    @property
    def name(self) -> str:
        """The name by which it is asked for."""

    def refuses(self, call: Call, training: bool) -> str | None:
        """Why the call cannot be computed, in words; None when it can. Reads shapes and types, never values of q, k, v
        and never those of masks on other devices or under a compiler."""

    def advantage(self, call: Call, training: bool) -> str | None:
        """Why the call is expected to run faster here than on `sdpa`; None when it is not."""

    def run(self, call: Call) -> Tensor:
        """Compute the call: `[B, H, Lq, Dv]`."""


@runtime_checkable
class Weighing(Protocol):
    """A backend that can tell what its decision for or against a call hangs on."""

    def passed_over(self, call: Call, training: bool) -> str | None:
        """What a call that it could compute would need to run faster here; None where nothing was weighed."""


@dataclass(frozen=True)
class Candidate:
    """What one backend says to a call.

    Args:
        name: of the backend.
        refusal: why it cannot compute the call, or None.
        chosen: whether it is the one that runs.
        why: the reason for choosing it or passing it over.
    """

    name: str
    refusal: str | None
    chosen: bool
    why: str


_sdpa = SdpaBackend()
_reference = ReferenceBackend()
_specialised: list[Backend] = [
    WindowsBackend(),
    BlockSparseBackend(),
    SparseBackend(),
    FlexBackend(),
    ChunkedBackend(),
]


def backends() -> dict[str, Backend]:
    """All backends by name, in the order in which selection asks them."""
    return {backend.name: backend for backend in (*_specialised, _sdpa, _reference)}


def register_backend(backend: Backend) -> None:
    """Add a backend; `auto` asks it before those already there.

    Errors: `ConfigError` when the name is taken.
    """
    if backend.name in backends() or backend.name == "auto":
        raise ConfigError(f"an attention backend named {backend.name!r} is already registered")
    _specialised.insert(0, backend)


def attention(call: Call, backend: str = "auto") -> Tensor:
    """Run one attention call.

    Args:
        backend: "auto", or a backend's name, which then serves the call or raises.

    Shapes: -> `[B, H, Lq, Dv]`.
    Errors: `BackendError` when the backend asked for refuses; `ConfigError` for an unknown name; `ShapeError` when
        tensors do not fit.
    """
    if meter.sinks and meter.target is not None:
        return _stand_in(replace(call, device=meter.target), backend)
    if backend == "auto":
        call, chosen = _choose(call)
    else:
        chosen = _demanded(call, backend)
    if meter.sinks:
        with meter.metered(call, backend):
            return chosen.run(call)
    return chosen.run(call)


def _stand_in(call: Call, backend: str) -> Tensor:
    """Report a call that is meant for another device, and run what keeps the tensors that its backend there keeps."""
    call, chosen = _choose(call) if backend == "auto" else (call, _named(backend))
    with meter.metered(call, backend):
        if chosen is _reference or refusal_of(chosen, call, call.needs_grad) is not None:
            return _reference.run(call)
        if call.target != "cpu":
            call = replace(call, dropout=0.0)  # elsewhere fused kernels draw the dropout again in the backward pass
        if chosen is not _sdpa:  # it has no dense mask or bias to keep: q, k, v and the result are all
            call = Call(call.q, call.k, call.v, scale=call.scale, device=call.device)
        return _sdpa.run(call)


def candidates(call: Call, backend: str = "auto") -> list[Candidate]:
    """What every backend says to the call, the chosen one first; for `explain`, on real or fake tensors."""
    training = call.needs_grad
    chosen = None
    if backend == "auto":
        call, chosen = _choose(call)
    found = []
    for name, candidate in backends().items():
        refusal = refusal_of(candidate, call, training)
        is_chosen = name == backend if chosen is None else candidate is chosen
        is_chosen = is_chosen and refusal is None
        found.append(Candidate(name, refusal, is_chosen, _why(candidate, call, training, refusal, is_chosen, backend)))
    return sorted(found, key=lambda candidate: not candidate.chosen)


def _why(backend: Backend, call: Call, training: bool, refusal: str | None, chosen: bool, wanted: str) -> str:
    if refusal is not None:
        return refusal
    if chosen and wanted != "auto":
        return "asked for by name"
    reason = backend.advantage(call, training)
    if backend is _sdpa:
        notes = _sdpa.notes(call)
        reason = "fused kernel" + (f" ({'; '.join(notes)})" if notes else "")
    if chosen:
        return reason or "computes every call"
    if reason is None and isinstance(backend, Weighing):
        reason = backend.passed_over(call, training)
    return f"passed over: {reason}" if reason else "no advantage for this call"


def _choose(call: Call) -> tuple[Call, Backend]:
    """The backend for a call, and the call in the form that tells it most."""
    structure = call.structure
    unmasked = call.mask is None and call.q_segments is None and len(call.scores) == 0 and call.weights is None
    simple = structure is None or (type(structure) is Causal and not call.dropout)
    if unmasked and (simple or call.q.shape[2] == 1):
        return call, _sdpa  # the hot path of training and decoding, decided without asking anyone
    call = _symbolic(call)
    training = call.needs_grad
    for backend in _specialised:
        if backend.advantage(call, training) is not None and refusal_of(backend, call, training) is None:
            return call, backend
    return call, _sdpa if refusal_of(_sdpa, call, training) is None else _reference


def refusal_of(backend: Backend, call: Call, training: bool) -> str | None:
    """Why a backend cannot compute a call: weights other than a softmax's are for those that say they know them."""
    if call.weights is not None and not getattr(backend, "weighs", False):
        return f"it computes softmax alone, not {type(call.weights).__name__}"
    return backend.refuses(call, training)


def _symbolic(call: Call) -> Call:
    """The call with masks of tensors replaced by the window that they are, if they are one."""
    if call.target != "cpu" or costs.is_small(call):
        return call
    lasting, passing = split(call)
    pattern = pattern_of(call, lasting)
    if pattern is None or pattern.band is None:
        return call
    band = None if isinstance(pattern.band, Everything) else pattern.band
    return replace(call, structure=band, mask=passing)


def _named(name: str) -> Backend:
    backend = _reference if name == "reference" else _sdpa if name == "sdpa" else backends().get(name)
    if backend is None:
        raise ConfigError(f"unknown attention backend {name!r}", hint=did_you_mean(name, ["auto", *backends()]))
    return backend


def _demanded(call: Call, name: str) -> Backend:
    backend = _named(name)
    refusal = refusal_of(backend, call, call.needs_grad)
    if refusal is not None:
        fitting = [other for other, at in backends().items() if refusal_of(at, call, call.needs_grad) is None]
        raise BackendError(
            f"attention backend {name!r} refuses this call: {refusal}; these compute it: {', '.join(fitting)}"
        )
    return backend
