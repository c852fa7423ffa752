from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import variform as vf

SIZES: dict[str, Any] = {"dim": 8, "heads": 2, "dim_condition": 3}
LAYERS = [
    {"part": "sublayer", "body": "multi_head", "norm": "adaptive"},
    {"part": "sublayer", "body": {"part": "mlp", "hidden": 6}, "norm": "adaptive"},
]


def model(stack: dict[str, Any], **more: Any) -> Any:
    spec = {"part": "transformer", "embedding": "tokens", "head": "lm", "stacks": [stack], "vocab_size": 11}
    torch.manual_seed(0)
    built = vf.build({**spec, **SIZES, "causal": True, **more}).double()
    for parameter in built.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return built


STACK = {"part": "stack", "layers": LAYERS, "norm": "adaptive"}
MAPPED = {"part": "conditioned", "stack": STACK, "expansion": 2}


def given(batch: int = 2, length: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 11, (batch, length), generator=generator)
    return ids, torch.randn(batch, length, 3, generator=generator, dtype=torch.float64)


def test_the_map_is_made_once_for_all_layers() -> None:
    mapped = model(MAPPED)
    ids, by_token = given()
    inner = mapped.stacks[0].stack
    x = mapped.embedding(ids, {})
    condition = F.silu(by_token[:, 0] @ mapped.stacks[0].map.weight.T)
    out = inner(x, {"condition": condition})
    torch.testing.assert_close(mapped(ids, condition=by_token[:, 0], hidden=True), out)


@pytest.mark.parametrize("stack", [STACK, MAPPED], ids=["plain", "mapped"])
def test_conditions_of_tokens_in_chunks(stack: dict[str, Any]) -> None:
    built, (ids, by_token) = model(stack), given()
    whole = built(ids, condition=by_token)
    same = built(ids, condition=by_token[:, :1].expand(-1, 7, -1))
    torch.testing.assert_close(same, built(ids, condition=by_token[:, 0]))
    state, outs = built.init_state(2, 7), []
    for start, end in ((0, 3), (3, 4), (4, 7)):
        out, state = built(ids[:, start:end], condition=by_token[:, start:end], state=state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-10)


def test_a_condition_with_a_prefix_and_with_added_tokens() -> None:
    front = model(STACK, embedding={"part": "prefixed", "embedding": "tokens"})
    ids, by_token = given()
    prefix = torch.randn(2, 4, 8, dtype=torch.float64)
    assert front(ids, prefix=prefix, condition=torch.randn(2, 11, 3).double()).shape == (2, 11, 11)
    with pytest.raises(vf.ShapeError, match=r"\[2, 11, features\]"):
        front(ids, prefix=prefix, condition=by_token)
    added = model({"part": "registers", "stack": STACK, "count": 2})
    assert added(ids, condition=by_token[:, 0]).shape == (2, 7, 11)
    with pytest.raises(vf.ShapeError, match="says nothing about added tokens"):
        added(ids, condition=by_token)


def test_what_does_not_fit() -> None:
    ids, by_token = given()
    with pytest.raises(vf.ShapeError, match="needs the stream 'condition'"):
        model(STACK)(ids)
    with pytest.raises(vf.ShapeError, match="need a condition"):
        model(MAPPED)(ids)
    with pytest.raises(vf.ShapeError, match="no part of this model reads it"):
        model({"part": "stack", "layers": [{"part": "sublayer", "body": "multi_head"}]})(ids, condition=by_token)
    with pytest.raises(vf.ShapeError, match="the condition is floats"):
        model(STACK)(ids, condition=by_token[:, :3])


def test_costs_and_generation_know_the_condition() -> None:
    built = model(MAPPED, max_seq_len=16)
    assert vf.describe(built.spec, batch=2, length=7).params == sum(p.numel() for p in built.parameters())
    ids, by_token = given()
    tokens = vf.generate(built, ids, 4, condition=by_token[:, 0], greedy=True)
    again = vf.generate(built, ids, 4, condition=by_token[:, 0], greedy=True, use_cache=False)
    assert torch.equal(tokens, again)
