"""Calls that change features on their way."""

from typing import Any

import pytest
import torch

from variform.dialects.x_transformers import Decoder, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError


def net(**model: Any) -> TransformerWrapper:
    torch.manual_seed(0)
    layers = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, **model.pop("layers", {}))
    return TransformerWrapper(num_tokens=11, max_seq_len=16, attn_layers=layers, **model).double()


IDS = torch.tensor([[1, 5, 3, 8, 2, 7]])


def test_changes_that_cannot_be_made() -> None:
    model = net()
    layers: Decoder = model.__dict__["attn_layers"]
    with pytest.raises(InputError, match=r"blocks are 1\.\.2"):
        model(IDS, transform_block_inputs={3: lambda x: x})
    with pytest.raises(InputError, match="give one"):
        model(IDS, transform_block_inputs={1: lambda x: x}, transform_token_embeds=lambda x: x)
    with pytest.raises(InputError, match="caller's"):
        layers(torch.zeros(1, 3, 16), transform_block_inputs={1: lambda x: x})
    _, cache = model(IDS, return_intermediates=True)
    with pytest.raises(InputError, match="cache"):
        model(IDS, cache=cache, transform_block_inputs={2: lambda x: x})
    _, changed = model(IDS, return_intermediates=True, transform_block_inputs={2: lambda x: 2 * x})
    with pytest.raises(InputError, match="return_intermediates"):  # what was changed would be read again unchanged
        model(torch.cat((IDS, IDS[:1, :1]), 1), cache=changed)


def test_changes_under_compilation() -> None:
    model = net().eval()
    compiled = torch.compile(
        lambda ids: model(ids, transform_block_inputs={2: torch.tanh}), backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(IDS), model(IDS, transform_block_inputs={2: torch.tanh}))
    assert not torch.allclose(compiled(IDS), model(IDS))


def test_orders_and_causality_of_calls_under_compilation() -> None:
    model = net().eval()
    for options in ({"layers_execute_order": (0, 1, 0, 1, 2, 3)}, {"repeat_blocks": (1, 2)}, {"causal": False}):
        compiled = torch.compile(
            lambda ids, options=options: model(ids, **options), backend="aot_eager", fullgraph=True
        )
        torch.testing.assert_close(compiled(IDS), model(IDS, **options), rtol=0, atol=1e-12)
        assert not torch.allclose(compiled(IDS), model(IDS))
