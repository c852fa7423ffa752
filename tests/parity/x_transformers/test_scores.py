"""What calls ask for of scores, beside the option sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.parity.x_transformers.harness import agree, pair


@pytest.mark.parametrize(
    ("stack", "causal"), [("Decoder", False), ("Encoder", True)], ids=["a decoder both ways", "an encoder backwards"]
)
def test_a_causality_of_a_call(stack: str, causal: bool) -> None:
    def build(package: Any) -> nn.Module:
        layers = getattr(package, stack)(
            dim=16, depth=2, heads=4, attn_dim_head=8, attn_head_learned_sink=True, rotary_pos_emb=True
        )
        made: nn.Module = package.TransformerWrapper(num_tokens=11, max_seq_len=12, attn_layers=layers)
        return made

    theirs, mine = pair(build)
    ids = torch.randint(0, 11, (2, 9))
    agree(theirs, mine, lambda model: model(ids, causal=causal))
