"""Calls that give angles, orders and changes to models of every kind, against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers import test_continuous, test_xval
from tests.parity.x_transformers.harness import agree, pair, unlike
from tests.parity.x_transformers.test_layers import tokens, wrapped


def angles(size: int, rows: int = 1, length: int = 9, scaled: bool = False) -> tuple[Tensor, Any]:
    generator = torch.Generator().manual_seed(5)
    turns = torch.rand(rows, length, size // 2, dtype=torch.float64, generator=generator).repeat_interleave(2, -1)
    factors = 0.5 + torch.rand(rows, length, size // 2, dtype=torch.float64, generator=generator)
    return turns, factors.repeat_interleave(2, -1) if scaled else 1.0


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    "layers",
    [
        {"rotary_pos_emb": True},
        {},
        {"rotary_pos_emb": True, "rotate_num_heads": 2},
        {"rotary_pos_emb": True, "attn_kv_heads": 2, "attn_num_mem_kv": 2},
        {"rotary_pos_emb": True, "weight_tie_layers": True, "attn_qk_norm": True},
    ],
    ids=lambda layers: "-".join(layers) or "plain",
)
def test_rotary_angles(layers: dict[str, Any], scaled: bool) -> None:
    theirs, mine = pair(wrapped("Decoder", layers))
    given = angles(6, rows=2, length=11, scaled=scaled)
    agree(theirs, mine, lambda model: model(tokens(length=9), rotary_pos_emb=given))


def test_polar_angles() -> None:
    theirs, mine = pair(wrapped("Encoder", {"polar_pos_emb": True}))
    turns = torch.rand(1, 9, 8, dtype=torch.float64)
    phases = torch.rand(4, 1, 8, dtype=torch.float64) - 1
    for model in (theirs, mine):  # which the given phases stand in the place of
        for name, param in model.named_parameters():
            if name.endswith(("polar_pos_emb.learned_bias", "rotation.phase")):
                param.requires_grad_(False)
    found, expected = (model(tokens(length=9), polar_pos_emb=(turns, phases)) for model in (mine, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # upstream turns them in float32


def change(depth: int, x: Tensor) -> Tensor:
    return x * (1 + 0.1 * depth)


@pytest.mark.parametrize(
    "call",
    [
        {"rotary_pos_emb": angles(8)},
        {"layers_execute_order": (0, 1, 0, 1, 2, 3)},
        {"causal": False},
        pytest.param({"transform_block_inputs": change}, marks=unlike("calls change nothing", TypeError)),
    ],
    ids=lambda call: "-".join(call),
)
def test_models_of_features_and_of_numbers(call: dict[str, Any]) -> None:
    layers = {"rotary_pos_emb": True}
    theirs, mine = pair(test_continuous.built(layers=layers))
    agree(theirs, mine, lambda model: model(test_continuous.features(), **call))

    def run(model: nn.Module) -> Tensor:
        ids, numbers = test_xval.sample()
        return test_xval.both(model(ids, numbers, **call))

    theirs, mine = pair(test_xval.built(layers=layers))
    agree(theirs, mine, run)
