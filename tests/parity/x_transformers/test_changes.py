"""Calls that change features on their way, `transform_block_inputs`, against the installed x-transformers."""

from typing import Any

import pytest
from torch import Tensor

from tests.parity.x_transformers.harness import agree, pair, unlike
from tests.parity.x_transformers.test_layers import tokens, wrapped

pytestmark = unlike("calls change nothing", TypeError)


def change(depth: int, x: Tensor) -> Tensor:
    return x * (1 + 0.1 * depth) + 0.3 * x.roll(1, -1)


@pytest.mark.parametrize(
    ("stack", "layers", "model"),
    [
        ("Decoder", {}, {}),
        ("Decoder", {"depth": 3}, {"post_emb_norm": True, "num_memory_tokens": 2}),
        ("Encoder", {"macaron": True, "rotary_pos_emb": True}, {}),
        ("Decoder", {"weight_tie_layers": True}, {}),
        ("Decoder", {"sandwich_coef": 1}, {}),
        ("Decoder", {"depth": 3, "unet_skips": True}, {}),
        ("Decoder", {"depth": 3, "reinject_input": True, "integrate_layers": True}, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_changed_features(stack: str, layers: dict[str, Any], model: dict[str, Any]) -> None:
    theirs, mine = pair(wrapped(stack, layers, **model))
    agree(theirs, mine, lambda net: net(tokens(length=7), transform_block_inputs=change))
    table = {1: lambda x: x * 2, 2: lambda x: x.flip(-1)}
    theirs, mine = pair(wrapped(stack, layers, **model))
    agree(theirs, mine, lambda net: net(tokens(length=7), transform_block_inputs=table))


def test_changed_vectors_of_tokens() -> None:
    theirs, mine = pair(wrapped("Decoder", {}))
    agree(theirs, mine, lambda net: net(tokens(length=7), transform_token_embeds=lambda x: x * 3))
