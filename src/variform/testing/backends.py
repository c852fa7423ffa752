"""Checks of attention backends: each computes the same function as the reference, or refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from variform.core.fields import field_map
from variform.errors import BackendError
from variform.ops.attention.select import backends
from variform.ops.masks import Causal, Dense, Global, Window
from variform.ops.scores import DenseBias, SoftCap
from variform.parts.kinds import Sides
from variform.testing.case import Case
from variform.testing.heads import heads
from variform.testing.numbers import rms, same
from variform.testing.report import NotApplicable, check

COMPILED = ("flex",)
"""Backends that compile for seconds at each new form of a call."""

LENGTH = 33


def _sides(length: int = LENGTH) -> dict[str, Callable[[], dict[str, Any]]]:
    """What may be asked of an attention, by name."""
    valid = torch.arange(length).expand(2, length) >= torch.tensor([[0], [9]])
    segments = (torch.arange(length) // 12).expand(2, length).contiguous()
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)
    allowed = torch.rand(2, 4, length, length, generator=torch.Generator().manual_seed(0)) > 0.5
    bias = torch.randn(4, length, length, generator=torch.Generator().manual_seed(1))
    return {
        "nothing": dict,
        "padding": lambda: {"k_valid": valid},
        "positions": lambda: {"k_valid": valid, "q_positions": positions, "k_positions": positions},
        "documents": lambda: {"q_segments": segments, "k_segments": segments},
        "a dense mask": lambda: {"mask": Dense(allowed)},
        "a symbolic mask": lambda: {"mask": Window(7, 7) | Global([0])},
        "a causal mask": lambda: {"mask": Causal()},
        "a bias": lambda: {"scores": (DenseBias(bias, per="head"),)},
        "a cap": lambda: {"scores": (SoftCap(2.0),)},
    }


@check("backends")
def eager(case: Case) -> None:
    """Every attention backend gives the reference's values and gradients, in training and eval, or refuses."""
    _need_choice(case)
    names = [name for name in backends() if name not in ("reference", *COMPILED)]
    for causal in causal_settings(case):
        _compare(case, names, list(_sides()), causal, (4, 2))


@check("compiled_backends", slow=True)
def compiled(case: Case) -> None:
    """Backends that compile give the reference's values and gradients, or refuse."""
    _need_choice(case)
    if case.sample.variant:
        raise NotApplicable("it is checked on the plain instance")
    for what in ("padding", "a symbolic mask", "a bias", "a cap"):
        torch._dynamo.reset()  # each form of a call is compiled anew, and torch gives up after eight
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler uses what torch deprecates
            _compare(case, [name for name in backends() if name in COMPILED], [what], case.can.causal, (2,))


def _need_choice(case: Case) -> None:
    if case.part.kind != "attention" or "backend" not in field_map(case.part):
        raise NotApplicable("it has no choice of backends")


def _compare(case: Case, names: list[str], asked: list[str], causal: bool, key_heads: tuple[int, ...]) -> None:
    setting = Case(case.sample, {**case.facts, "causal": causal})
    reference, length = setting.alone(backend="reference"), case.fit(LENGTH)
    for name in names:
        part = setting.alone(backend=name)
        for what in asked:
            for count in key_heads:
                label = f"backend {name!r} with {what}, {count} key heads, causal={causal}"
                for training in (True, False):
                    _agree(part, reference, _sides(length)[what], length, count, training, label)


def causal_settings(case: Case) -> tuple[bool, ...]:
    """Both, where the part can be causal."""
    return (False, True) if case.can.causal else (False,)


def _agree(
    part: Any,
    reference: Any,
    sides: Callable[[], dict[str, Any]],
    length: int,
    kv_heads: int,
    training: bool,
    label: str,
) -> None:
    exact = _run(reference, torch.float64, sides, length, kv_heads, training)
    assert exact is not None
    for dtype in (torch.float32, torch.bfloat16):
        got = _run(part, dtype, sides, length, kv_heads, training)
        if got is None:
            continue
        plain = _run(reference, dtype, sides, length, kv_heads, training)
        assert plain is not None
        for what, a, b, c in zip(("values", "dq", "dk", "dv"), got, exact, plain, strict=False):
            if dtype == torch.float32:
                same(a, b, f"{label}: {what}", 1e-5)
                continue
            error, allowed = rms(a.double() - b), 2 * rms(c.double() - b) + 1e-3 * max(rms(b), 1.0)
            assert error <= allowed, (
                f"{label}: {what} in bfloat16 are off by {error:.2e}, the reference by {allowed / 2:.2e}"
            )


def _run(
    part: Any, dtype: torch.dtype, sides: Callable[[], dict[str, Any]], length: int, kv_heads: int, training: bool
) -> list[Tensor] | None:
    """The result, and in training the gradients of q, k and v; None where the backend refuses."""
    # What a bfloat16 run is compared with starts from the same, rounded numbers.
    q, k, v = (t.to(torch.bfloat16).to(dtype) for t in heads(length, length))
    given = [q.requires_grad_(training), k[:, :kv_heads].detach().requires_grad_(training)]
    given.append(v[:, :kv_heads].detach().requires_grad_(training))
    try:
        with torch.set_grad_enabled(training):
            out = part.train(training)(*given, Sides(**sides()))
    except BackendError:
        return None
    if not training:
        return [out]
    return [out, *torch.autograd.grad((out * torch.linspace(-1, 1, 4).to(dtype)).sum(), given)]
