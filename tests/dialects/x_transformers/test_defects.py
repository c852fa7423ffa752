"""What upstream gets wrong, one test each, and the mistakes of beginners: right numbers, or an error that helps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from variform.dialects.x_transformers import (
    Decoder,
    TransformerWrapper,
)
from variform.errors import ShapeError

SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 4}


def language(stack: type = Decoder, model: dict[str, Any] | None = None, **layers: Any) -> TransformerWrapper:
    """A model in float64, every parameter of which counts."""
    torch.manual_seed(0)
    chosen = {name: x for name, x in {**SMALL, **layers}.items() if x is not None}
    given = {"num_tokens": 11, "max_seq_len": 32, **(model or {})}
    built = TransformerWrapper(attn_layers=stack(**chosen), **given).double().eval()
    with torch.no_grad():
        for param in built.parameters():
            param += 0.1 * torch.randn_like(param)
    return built


def ids(length: int = 9, batch: int = 2) -> Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(1))


# Memories that upstream leaves out.


@pytest.mark.parametrize("layers", [{"shift_tokens": 1}, {"attn_selective": True}, {"attn_use_cope": True}])
@torch.no_grad()
def test_what_goes_from_token_to_token_goes_through_memories(layers: dict[str, Any]) -> None:
    model = language(model={"max_mem_len": 32, "use_abs_pos_emb": False}, depth=None, custom_layers=("a",), **layers)
    text = ids(12)
    _, mems = model(text[:, :7], return_mems=True)
    found = model(text[:, 7:], mems=mems)
    torch.testing.assert_close(found, model(text)[:, 7:], rtol=0, atol=1e-10)


@torch.no_grad()
def test_learned_keys_stand_where_memories_begin() -> None:
    layers = {"rotary_pos_emb": True, "attn_num_mem_kv": 2}
    model = language(model={"max_mem_len": 32}, depth=None, custom_layers=("a",), **layers)
    text = ids(12)
    _, mems = model(text[:, :7], return_mems=True)
    torch.testing.assert_close(model(text[:, 7:], mems=mems), model(text)[:, 7:], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "layers", [{"integrate_layers": True}, {"attn_aggregated_residuals": True, "dim": 80, "attn_dim_head": 20}]
)
def test_views_of_earlier_layers_are_not_remembered(layers: dict[str, Any]) -> None:
    model = language(model={"max_mem_len": 8}, **layers)
    _, mems = model(ids(), return_mems=True)
    with pytest.raises(ShapeError, match="earlier steps were given cannot have memories"):
        model(ids(), mems=mems)
