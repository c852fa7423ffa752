from typing import Any

import pytest
import torch

import variform as vf
from variform.parts.attention.rotated import RotatedAttention
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.kinds import Sides
from variform.parts.position.rotary import RotaryRotation

SPEC: dict[str, Any] = {
    "part": "transformer",
    "embedding": "tokens",
    "head": "lm",
    "causal": True,
    "dim": 8,
    "heads": 2,
    "vocab_size": 11,
    "stacks": [
        {
            "part": "stack",
            "layers": [
                {"part": "sublayer", "body": "multi_head"},
                {
                    "part": "sublayer",
                    "body": {
                        "part": "cross_attention",
                        "attention": {"part": "rotated", "rotation": {"part": "rotary", "max_seq_len": None}},
                    },
                },
            ],
        }
    ],
}


def test_both_sides_are_rotated_where_the_keys_positions_are_told() -> None:
    rotary = RotaryRotation(dim_head=4, max_seq_len=None)
    inner = SoftmaxAttention(causal=False)
    part = RotatedAttention(rotary, inner)
    q, k, v = (torch.randn(1, 2, n, 4) for n in (3, 5, 5))
    at = torch.tensor([0, 2, 3, 7, 9])
    turned = rotary(q, k, None, at)
    torch.testing.assert_close(part(q, k, v, Sides(k_positions=at)), inner(*turned, v, Sides()))
    torch.testing.assert_close(part(q, k, v, Sides()), inner(q, k, v, Sides()))


def test_a_decode_state_keeps_where_the_context_stands() -> None:
    torch.manual_seed(0)
    model = vf.build(SPEC).double()
    ids, context = torch.randint(0, 11, (2, 6)), torch.randn(2, 5, 8, dtype=torch.float64)
    for at in (torch.tensor([0, 2, 3, 7, 9]), torch.tensor([[0, 2, 3, 7, 9], [4, 3, 2, 1, 0]]), None):
        whole = model(ids, context=context, context_positions=at)
        given = {} if at is None else {"context_positions": at}
        state, outs = model.init_state(2, 6, context=context, **given), []
        for start in range(0, 6, 2):
            out, state = model(ids[:, start : start + 2], state=state)
            outs.append(out)
        torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-10)
    assert not torch.allclose(whole, model(ids, context=context, context_positions=torch.arange(5) * 3))


def test_what_does_not_fit() -> None:
    model = vf.build(SPEC)
    ids, context = torch.randint(0, 11, (2, 6)), torch.randn(2, 5, 8)
    for wrong in (torch.arange(4), torch.arange(5).float()):
        with pytest.raises(vf.ShapeError, match="context_positions are integers"):
            model(ids, context=context, context_positions=wrong)
    with pytest.raises(vf.ConfigError, match="for the keys of another sequence"):
        vf.build({"part": "multi_head", "attention": {"part": "rotated", "rotation": "rotary"}}, dim=8, heads=2)
    cross = {"part": "cross_attention", "attention": {"part": "rotated", "rotation": "polar"}}
    with pytest.raises(vf.ConfigError, match="other features"):
        vf.build(cross, dim=8, heads=2)
