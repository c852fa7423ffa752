"""Attention calls that cover what a `Call` can ask for, and comparison with the float64 reference."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from variform.ops.attention import Call, reference
from variform.ops.masks import (
    Axial,
    Blocks,
    Causal,
    Coarse,
    Dense,
    Dilated,
    Documents,
    Global,
    Near,
    Padding,
    Random,
    RandomBy,
    RandomLinks,
    Segments,
    ShiftedWindows,
    Window,
    from_key_padding,
)
from variform.ops.scores import Alibi, BucketBias, DenseBias, SoftCap, alibi_slopes

LENGTHS = (1, 7, 33, 65)


def qkv(
    q_len: int,
    k_len: int | None = None,
    *,
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 4,
    dim: int = 8,
    dim_v: int = 8,
) -> dict[str, Tensor]:
    """Float64 queries, keys and values with gradients."""
    k_len = q_len if k_len is None else k_len
    shapes = {"q": (heads, q_len, dim), "k": (kv_heads, k_len, dim), "v": (kv_heads, k_len, dim_v)}
    return {name: torch.randn(batch, *shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}


def _bools(*shape: int) -> Tensor:
    return torch.rand(*shape) > 0.4


def _ragged(length: int, kv_heads: int = 4) -> dict[str, Any]:
    """A chunk of `length` queries at other positions in every row, over a longer buffer of keys."""
    starts = torch.tensor([3, 11])
    positions = starts[:, None] + torch.arange(length)
    return dict(
        qkv(length, length + 16, kv_heads=kv_heads),
        q_positions=positions,
        k_valid=torch.arange(length + 16) < positions[:, -1:] + 1,
    )


def _packed(length: int) -> dict[str, Any]:
    segments = torch.sort(torch.randint(0, 3, (2, length)))[0]
    return {"q_segments": segments, "k_segments": segments}


def _empty_rows(length: int) -> Tensor:
    mask = _bools(2, 1, length, length)
    mask[0, 0, 0] = False
    mask[1] = False
    return mask


def _left_padded(length: int) -> dict[str, Any]:
    valid = torch.arange(length) >= torch.tensor([[length // 3], [0]])
    positions = (valid.cumsum(-1) - 1).clamp(min=0)
    return {"k_valid": valid, "q_positions": positions, "k_positions": positions}


CASES: dict[str, Callable[[int], dict[str, Any]]] = {
    "plain": lambda n: qkv(n),
    "causal": lambda n: dict(qkv(n), structure=Causal()),
    "scale": lambda n: dict(qkv(n), scale=0.7),
    "grouped": lambda n: dict(qkv(n, kv_heads=2), structure=Causal()),
    "one_kv_head": lambda n: dict(qkv(n, kv_heads=1), k_valid=_bools(2, n)),
    "narrow_values": lambda n: dict(qkv(n, dim_v=4), structure=Causal()),
    "wide_values": lambda n: dict(qkv(n, dim_v=12), k_valid=_bools(2, n)),
    "cross": lambda n: qkv(n, 19),
    "cross_padded": lambda n: dict(qkv(n, 19), k_valid=_bools(2, 19)),
    "causal_cross": lambda n: dict(qkv(n, 19), structure=Causal()),
    "window": lambda n: dict(qkv(n), structure=Causal() & Window(4)),
    "wide_window": lambda n: dict(qkv(n), structure=Window(100)),
    "window_both": lambda n: dict(qkv(n, kv_heads=2), structure=Window(3, 2)),
    "window_padded": lambda n: dict(qkv(n), structure=Causal() & Window(4), k_valid=_bools(2, n)),
    "window_packed": lambda n: dict(qkv(n), structure=Causal() & Window(4), **_packed(n)),
    "window_masked": lambda n: dict(qkv(n), structure=Window(5, 1), mask=Dense(_bools(2, 4, n, n))),
    "window_alibi": lambda n: dict(qkv(n), structure=Window(5, 1), scores=(_alibi(),)),
    "window_global": lambda n: dict(qkv(n), structure=(Causal() & Window(3)) | Global([0, 5])),
    "blocks": lambda n: dict(qkv(n), structure=Blocks(_bools(-(-n // 8), -(-n // 8)), 8)),
    "blocks_heads": lambda n: dict(qkv(n), structure=Blocks(_bools(4, -(-n // 8), -(-n // 8)), 8)),
    "blocks_causal": lambda n: dict(qkv(n, kv_heads=2), structure=Blocks(_bools(-(-n // 8), -(-n // 8)), 8) & Causal()),
    "blocks_padded": lambda n: dict(qkv(n), structure=Blocks(_bools(-(-n // 8), -(-n // 8)), 8), k_valid=_bools(2, n)),
    "blocks_cross": lambda n: dict(qkv(n, 19), structure=Blocks(_bools(-(-n // 8), 3), 8)),
    "near": lambda n: dict(qkv(n), structure=Near((8, 9), 2.5)),
    "axial_padded": lambda n: dict(qkv(n), structure=Axial((8, 9)), k_valid=_bools(2, n)),
    "shifted_windows_causal": lambda n: dict(qkv(n, kv_heads=2), structure=ShiftedWindows((8, 12), 4, 1) & Causal()),
    "dilated": lambda n: dict(qkv(n), structure=Dilated((70,), 3), mask=Dense(_bools(n, n))),
    "random": lambda n: dict(qkv(n), structure=Window(0) | Random(0.2, 3)),
    "random_packed": lambda n: dict(qkv(n), structure=Random(0.4) & Causal(), **_packed(n)),
    "random_by": lambda n: dict(qkv(n, kv_heads=2), mask=RandomBy(0.3, torch.tensor(5))),
    "coarse": lambda n: dict(qkv(n), structure=Coarse(Window(1) | Global([0]) | RandomLinks(2), 4)),
    "coarse_ragged": lambda n: dict(_ragged(n), structure=Causal() & Coarse(Window(1) | RandomLinks(1), 5)),
    "packed": lambda n: dict(qkv(n), structure=Causal(), **_packed(n)),
    "segments": lambda n: dict(qkv(n), structure=Segments(), **_packed(n)),
    "documents": lambda n: dict(qkv(n), mask=Documents(_packed(n)["q_segments"])),
    "padding": lambda n: dict(qkv(n), mask=Padding(torch.tensor([n, n // 2])), structure=Causal()),
    "key_padding": lambda n: dict(qkv(n), mask=from_key_padding(keep=_bools(2, n))),
    "dense": lambda n: dict(qkv(n), mask=Dense(_bools(n, n))),
    "dense_batch": lambda n: dict(qkv(n), mask=Dense(_bools(2, n, n), per="batch")),
    "dense_head": lambda n: dict(qkv(n, kv_heads=2), mask=Dense(_bools(4, n, n), per="head"), structure=Causal()),
    "dense_position": lambda n: dict(_ragged(n), mask=Dense(_bools(80, 90), by="position")),
    "not": lambda n: dict(qkv(n), mask=~(Causal() & Window(2))),
    "empty_rows": lambda n: dict(qkv(n), mask=Dense(_empty_rows(n))),
    "nothing_valid": lambda n: dict(qkv(n), k_valid=torch.zeros(2, n, dtype=torch.bool)),
    "ragged": lambda n: dict(_ragged(n), structure=Causal()),
    "ragged_grouped": lambda n: dict(_ragged(n, kv_heads=2), structure=Causal()),
    "cross_grouped": lambda n: qkv(n, 19, kv_heads=1, dim_v=4),
    "bias_grouped": lambda n: dict(qkv(n, 19, kv_heads=2), scores=(DenseBias(_parameter(4, n, 19), per="head"),)),
    "ragged_window": lambda n: dict(_ragged(n), structure=Causal() & Window(4)),
    "left_padded": lambda n: dict(qkv(n), structure=Causal(), **_left_padded(n)),
    "left_padded_window": lambda n: dict(qkv(n), structure=Causal() & Window(4), **_left_padded(n)),
    "alibi": lambda n: dict(qkv(n), structure=Causal(), scores=(_alibi(),)),
    "alibi_left_padded": lambda n: dict(qkv(n), structure=Causal(), scores=(_alibi(),), **_left_padded(n)),
    "buckets": lambda n: dict(qkv(n, 19), scores=(BucketBias(_parameter(8, 4), bidirectional=True, max_distance=16),)),
    "dense_bias": lambda n: dict(qkv(n), scores=(DenseBias(_parameter(4, n, n), per="head"),), k_valid=_bools(2, n)),
    "two_biases": lambda n: dict(qkv(n), scores=(_alibi(), DenseBias(_parameter(2, 1, n, n)))),
    "soft_cap": lambda n: dict(qkv(n), structure=Causal(), scores=(SoftCap(1.5),)),
    "bias_then_cap": lambda n: dict(qkv(n), structure=Window(3, 3), scores=(_alibi(), SoftCap(2.0))),
}


def _parameter(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def _alibi() -> Alibi:
    return Alibi(alibi_slopes(4).double().requires_grad_())


def build(name: str, length: int) -> Call:
    """The float64 call of a case; the same for the same seed."""
    torch.manual_seed(length)
    return Call(**CASES[name](length))


def cast(call: Call, dtype: torch.dtype) -> Call:
    """The same call in another dtype, its tensors new leaves."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().to(dtype).requires_grad_(value.requires_grad)
        return value

    values = {field.name: leaf(getattr(call, field.name)) for field in fields(Call)}
    values["scores"] = tuple(
        replace(modifier, **{field.name: leaf(getattr(modifier, field.name)) for field in fields(modifier)})  # type: ignore[type-var]
        for modifier in call.scores
    )
    return Call(**values)


def leaves(call: Call) -> list[Tensor]:
    """The tensors of a call that collect gradients."""
    held = [call.q, call.k, call.v]
    for modifier in call.scores:
        held += [value for value in vars(modifier).values() if isinstance(value, Tensor) and value.requires_grad]
    return held


def run_with_gradients(run: Callable[[Call], Tensor], call: Call) -> list[Tensor]:
    """The output and the gradients of a fixed weighted sum of it."""
    out = run(call)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves(call))]


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference, relative to the size of each wanted tensor (at least 1)."""
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
        if b.numel():
            worst = max(worst, ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1.0)).item())
    return worst


def assert_matches_reference(run: Callable[[Call], Tensor], call: Call) -> None:
    """Values and gradients in float64 and float32 within tolerance; bfloat16 within twice the reference's own error."""
    wanted = run_with_gradients(reference, call)
    assert error(run_with_gradients(run, call), wanted) < 1e-10
    assert error(run_with_gradients(run, cast(call, torch.float32)), wanted) < 1e-5
    half = cast(call, torch.bfloat16)
    rounded = run_with_gradients(reference, cast(half, torch.float64))
    own = error(run_with_gradients(reference, half), rounded)
    assert error(run_with_gradients(run, half), rounded) <= 2 * own + 1e-3
