"""Attention window by window: as the reference, over exactly the pairs within windows."""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.cases import assert_matches_reference, cast, qkv
from variform.errors import BackendError
from variform.ops.attention import Call, attention, candidates, reference, standing_in
from variform.ops.masks import Causal, Dense, Documents, KeyPadding, Mask, Padding, ShiftedWindows, Window
from variform.ops.scores import Alibi, BucketBias, DenseBias, GridBias, SoftCap, alibi_slopes

windows = functools.partial(attention, backend="windows")
GRID = (4, 6)
TOKENS = 24
DRAWN = torch.Generator().manual_seed(0)  # cases are made while tests are collected, in any order of files


def parameter(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=DRAWN).requires_grad_()


TILINGS = {
    "whole": ShiftedWindows(GRID, 2),
    "moved": ShiftedWindows(GRID, 2, 1),
    "one row of windows, moved": ShiftedWindows((3, 8 * 3), 3, 2),
    "a line": ShiftedWindows((24,), 4, 3),
    "a volume": ShiftedWindows((4, 2, 6), 2, 1),
}


@pytest.mark.parametrize("name", TILINGS)
def test_values_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    tiling = TILINGS[name]
    tokens = int(torch.tensor(tiling.sizes).prod())
    bias = GridBias(parameter(15, 4), tiling.sizes[-1], (2, 3))
    assert_matches_reference(windows, Call(**qkv(tokens, kv_heads=2, dim_v=4), structure=tiling, scores=(bias,)))
    assert_matches_reference(windows, Call(**qkv(tokens), mask=tiling))


ON_TOP: dict[str, dict[str, Any]] = {
    "causal": {"structure": Causal()},
    "dense, per head": {"mask": Dense(torch.rand(4, TOKENS, TOKENS, generator=DRAWN) > 0.4, per="head")},
    "dense, per row": {"mask": Dense(torch.rand(2, TOKENS, TOKENS, generator=DRAWN) > 0.4, per="batch")},
    "padding": {"mask": Padding(torch.tensor([24, 9])) & KeyPadding(torch.rand(2, TOKENS, generator=DRAWN) > 0.3)},
    "documents": {"mask": Documents((torch.arange(TOKENS) // 7).expand(2, -1))},
    "valid keys": {"k_valid": torch.arange(TOKENS) < torch.tensor([[24], [5]])},
    "no valid key": {"k_valid": torch.zeros(2, TOKENS, dtype=torch.bool)},
    "segments": {"q_segments": torch.arange(TOKENS) // 5, "k_segments": torch.arange(TOKENS) // 5},
    "biases": {
        "scores": (
            Alibi(alibi_slopes(4).double().requires_grad_()),
            BucketBias(parameter(8, 4), True, 16),
            DenseBias(parameter(2, 4, TOKENS, TOKENS)),
            DenseBias(parameter(TOKENS, TOKENS)),
        )
    },
}


@pytest.mark.parametrize("name", ON_TOP)
@pytest.mark.parametrize("shift", [0, 1])
def test_all_that_is_asked_on_top(name: str, shift: int) -> None:
    torch.manual_seed(0)
    given = dict(ON_TOP[name])
    tiling: Mask = ShiftedWindows(GRID, 2, shift)
    given["structure"] = tiling & given["structure"] if "structure" in given else tiling
    assert_matches_reference(windows, Call(**qkv(TOKENS), scale=0.3, **given))


def test_windows_are_taken_by_themselves() -> None:
    for call in (
        Call(**qkv(TOKENS), structure=ShiftedWindows(GRID, 2, 1)),
        Call(**qkv(TOKENS), mask=Window(9, 9) & ShiftedWindows(GRID, 2)),
    ):
        chosen = candidates(call)[0]
        assert chosen.name == "windows"
        assert "6 windows of 4 tokens: 16.67% of the pairs" in chosen.why
    with standing_in("cuda"):
        assert candidates(replace(call, device="cuda"))[0].name == "windows"
    whole = Call(**qkv(TOKENS), structure=ShiftedWindows((TOKENS,), TOKENS))
    assert candidates(whole)[0].name != "windows"
    assert_matches_reference(windows, whole)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no windows": ({"structure": Causal()}, "no windows of a grid"),
    "either": ({"structure": ShiftedWindows(GRID, 2) | Causal()}, "no windows of a grid"),
    "positions": ({"q_positions": torch.arange(TOKENS), "k_positions": torch.arange(TOKENS)}, "positions"),
    "more tokens": ({"structure": ShiftedWindows((2, 6), 2)}, "a grid of 12 tokens"),
    "a cap": ({"scores": (SoftCap(2.0),)}, "not an added bias"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    changes, words = REFUSED[name]
    call = Call(**{**qkv(TOKENS), "structure": ShiftedWindows(GRID, 2), **changes})
    with pytest.raises(BackendError, match=words):
        windows(call)
    torch.testing.assert_close(attention(call), reference(call))


def test_dropout_drops_within_windows() -> None:
    q, k, v = qkv(TOKENS).values()
    call = Call(q, k, torch.ones_like(v), structure=ShiftedWindows(GRID, 2, 1), dropout=0.25)
    draws = torch.stack([windows(call) for _ in range(300)])
    assert draws.std() > 0.1
    torch.testing.assert_close(draws.mean(), torch.ones((), dtype=torch.float64), rtol=0, atol=0.02)


def test_compiled_as_a_whole() -> None:
    call = cast(Call(**qkv(TOKENS), structure=ShiftedWindows(GRID, 2, 1)), torch.float32)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(Call(q, k, v, structure=call.structure))

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(call.q, call.k, call.v), run(call.q, call.k, call.v), rtol=0, atol=1e-6)
