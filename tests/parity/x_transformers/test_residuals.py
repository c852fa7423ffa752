"""Residuals that differ from upstream's, where the two must still agree, and what becomes of its checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import variform.dialects.x_transformers as ours
from tests.parity.x_transformers.harness import agree, pair, upstream
from variform.errors import ConfigError
from variform.weights.x_transformers import load_x_transformers

LAYERS: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}


def built(package: Any, **more: Any) -> Any:
    return package.TransformerWrapper(num_tokens=20, max_seq_len=8, attn_layers=package.Decoder(**LAYERS, **more))


@pytest.mark.parametrize("option", ["orthog_residual", "mv_split_residual"])
def test_one_token_alone_is_what_upstream_makes_of_it(option: str) -> None:
    """Upstream's projections and means are over the whole sequence; over one token there is no future to leak."""
    theirs, mine = pair(lambda package: built(package, **{option: True}))
    agree(theirs, mine, lambda model: model(torch.tensor([[3], [7]])))


@pytest.mark.parametrize("option", ["orthog_residual", "mv_split_residual"])
@torch.no_grad()
def test_the_future_changes_nothing(option: str) -> None:
    ids = torch.tensor([[3, 7, 1, 4, 9]])
    other = torch.tensor([[3, 7, 1, 2, 2]])
    theirs, mine = pair(lambda package: built(package, **{option: True}))
    assert torch.equal(mine(ids)[:, :3], mine(other)[:, :3])
    assert (theirs(ids)[:, :3] - theirs(other)[:, :3]).abs().max() > 1e-3


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    layers = {**LAYERS, "orthog_residual": True}
    torch.manual_seed(0)
    mine = ours.TransformerWrapper(num_tokens=20, max_seq_len=8, attn_layers=ours.Encoder(**layers)).double().eval()
    ids, mask = torch.tensor([[3, 7, 1, 4, 9]]), torch.tensor([[True, True, True, False, False]])
    torch.testing.assert_close(mine(ids, mask=mask)[:, :3], mine(ids[:, :3]))


def test_a_checkpoint_of_hyper_connections_needs_legacy() -> None:
    theirs = built(upstream, num_residual_streams=2)
    with pytest.raises(ConfigError, match=r"matrix of ones.*legacy=True"):
        load_x_transformers(built(ours, num_residual_streams=2), theirs.state_dict())
    load_x_transformers(built(ours, num_residual_streams=2, legacy=True), theirs.state_dict())


@torch.no_grad()
def test_streams_stay_of_one_size_with_depth() -> None:
    """Upstream's grow as many times a sublayer as there are streams."""
    sizes = {}
    for name, package, more in (("right", ours, {}), ("legacy", ours, {"legacy": True}), ("upstream", upstream, {})):
        torch.manual_seed(0)
        layers = {**LAYERS, "depth": 6, "num_residual_streams": 4, "pre_norm_has_final_norm": False}
        stack = package.Decoder(**layers, **more).double()
        x = torch.randn(1, 5, 16, dtype=torch.float64)
        sizes[name] = float(stack(x).norm() / x.norm())
    assert sizes["right"] < 12
    assert sizes["legacy"] > 1e6
    assert sizes["upstream"] > 1e6
