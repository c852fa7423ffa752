"""Both projections away from the own value: where they stand in the output map that upstream stores."""

from __future__ import annotations

from typing import Any

import torch

from tests.parity.x_transformers.harness import agree, pair
from tests.parity.x_transformers.option_set import LAYERS, MODEL
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

BOTH = ("attn_orthog_projected_values", "attn_orthog_projected_values_per_head")
GROUPED: dict[str, Any] = {**LAYERS, "attn_kv_heads": 2, "attn_value_dim_head": 5}


def build(package: Any, *names: str) -> Any:
    layers = package.Decoder(**GROUPED, **dict.fromkeys(names, True))
    return package.TransformerWrapper(attn_layers=layers, **MODEL)


def test_over_all_heads_it_is_upstreams_where_there_is_one_token() -> None:
    theirs, mine = pair(lambda package: build(package, BOTH[0]))
    ids = torch.randint(0, 50, (3, 1))  # upstream projects over all tokens of a row at once
    agree(theirs, mine, lambda one: one(ids))
    theirs, mine = pair(lambda package: build(package, *BOTH))
    for name, param in theirs.named_parameters():
        if name.endswith("to_out.weight"):
            param.data[:, 4 * 5 :] = 0.0  # upstream computes the same twice, and should not there
    load_x_transformers(mine, theirs.state_dict())
    torch.testing.assert_close(mine(ids), theirs(ids), rtol=0, atol=1e-6)


@torch.no_grad()
def test_each_half_of_the_output_map_is_that_of_one_projection() -> None:
    ids = torch.randint(0, 50, (2, 9))
    _, both = pair(lambda package: build(package, *BOTH))
    stored = to_x_transformers(both)
    maps = [key for key in stored if key.endswith("to_out.weight")]
    for place, name in enumerate(BOTH):
        own = torch.arange(40) // 20 == place
        alone = pair(lambda package, name=name: build(package, name))[1]
        load_x_transformers(alone, {**stored, **{key: stored[key][:, own] for key in maps}})
        load_x_transformers(both, {**stored, **{key: stored[key] * own for key in maps}})
        torch.testing.assert_close(alone(ids), both(ids), rtol=0, atol=1e-10)
