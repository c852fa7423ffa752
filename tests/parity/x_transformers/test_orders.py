"""Orders of execution that a call asks for, against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair, unlike
from variform.dialects.x_transformers import Decoder, TransformerBlock, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError

BASE: dict[str, Any] = {"dim": 24, "depth": 3, "heads": 4, "attn_dim_head": 8}
IDS = torch.randint(0, 37, (2, 9), generator=torch.Generator().manual_seed(3))
RANK: dict[str, Any] = {"attn_aggregated_residuals": True, "attn_aggregated_residual_kwargs": {"lora_rank": 5}}
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "order": ({}, {"layers_execute_order": (4, 5, 0, 1, 0, 1)}),
    "blocks": ({"rotary_pos_emb": True, "macaron": True}, {"repeat_blocks": (((0, 1), 2), (2, 3))}),
    "one-block": ({}, {"repeat_blocks": (1, 3)}),
    "history": (
        {"add_value_residual": True, "reinject_input": True, "shift_tokens": 1},
        {"layers_execute_order": (2, 3, 0, 0)},
    ),
    "aggregated": (RANK, {"layers_execute_order": (0, 1, 2, 3, 2, 3)}),
    "streams": ({"gated_multi_residual": True, "num_residual_streams": 2}, {"layers_execute_order": (0, 1, 2, 2)}),
}


SINCE = {"aggregated": unlike("no ranks", TypeError), "streams": unlike("no such keyword")}
NAMES = [pytest.param(name, marks=SINCE.get(name, ())) for name in CALLS]


def wrapped(keywords: dict[str, Any]) -> Any:
    options = {"residual_fn_kwargs": {"read_gate_rank": 5}} if "gated_multi_residual" in keywords else {}

    def build(package: Any) -> nn.Module:
        layers = package.Decoder(**BASE, **keywords, **options)
        model: nn.Module = package.TransformerWrapper(num_tokens=37, max_seq_len=20, attn_layers=layers)
        return model

    return build


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients(name: str) -> None:
    keywords, call = CALLS[name]
    theirs, mine = pair(wrapped(keywords))
    agree(theirs, mine, lambda model: model(IDS, **call))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_model_in_another_order_decodes(name: str) -> None:
    keywords, call = CALLS[name]
    _, mine = pair(wrapped(keywords))
    whole = mine(IDS, **call)
    model = mine.reordered(call.get("layers_execute_order"), call.get("repeat_blocks")).native
    state, outs = model.init_state(2, 9), []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        out, state = model(IDS[:, start:stop], state=state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-10)


def test_a_stack_alone_takes_orders_too() -> None:
    layers = Decoder(**BASE).eval()
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(layers(x, layers_execute_order=tuple(range(6))), layers(x), rtol=0, atol=0)
    assert not torch.allclose(layers(x, repeat_blocks=(0, 2)), layers(x))


@pytest.mark.parametrize(
    ("keywords", "call", "message"),
    [
        ({}, {"layers_execute_order": (0, 6)}, "indices 0..5"),
        ({}, {"layers_execute_order": ()}, "indices 0..5"),
        ({}, {"repeat_blocks": (3, 2)}, "blocks are 0..2"),
        ({}, {"repeat_blocks": (0, 2), "layers_execute_order": (0,)}, "exclude one another"),
        ({"sandwich_coef": 1}, {"repeat_blocks": (0, 2)}, "an order of their own"),
        ({"integrate_layers": True}, {"layers_execute_order": (0, 1)}, "made for one order"),
        ({"unet_skips": True}, {"layers_execute_order": (0, 1)}, "made for one order"),
    ],
)
def test_what_cannot_be(keywords: dict[str, Any], call: dict[str, Any], message: str) -> None:
    layers = Decoder(**{**BASE, **keywords})
    model = TransformerWrapper(num_tokens=37, max_seq_len=20, attn_layers=layers)
    with pytest.raises(InputError, match=message):
        model(IDS, **call)


def test_a_block_has_no_final_norm() -> None:
    def build(package: Any) -> nn.Module:
        module = package.x_transformers if hasattr(package, "x_transformers") else package
        block: nn.Module = module.TransformerBlock(24, heads=4, attn_dim_head=8, causal=True, rotary_pos_emb=True)
        return block

    theirs, mine = pair(build)
    assert isinstance(mine, TransformerBlock)
    x = torch.randn(2, 7, 24, dtype=torch.float64)

    def run(model: nn.Module) -> Tensor:
        out: Tensor = model(x)
        return out

    agree(theirs, mine, run)
