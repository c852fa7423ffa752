"""What callers add to attention, and further keys and values, against formulas in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ShapeError
from variform.parts.attention.delta import DeltaAttention
from variform.parts.beside import Beside, Deltas
from variform.parts.kinds import Sides
from variform.parts.mixer.multi_head import MultiHead

FACTS: dict[str, Any] = {"kv_heads": 2, "dim_head": 3, "causal": False}


def given(length: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 3, dtype=torch.float64) for heads in (4, 2, 2))
    return q, k, v


def weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.repeat_interleave(2, 1).mT / 3**0.5).softmax(-1)


def test_added_weights() -> None:
    q, k, v = given()
    more = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    part = vf.build(DeltaAttention.spec(of="weights"), **FACTS)
    out = part(q, k, v, Sides(streams={"deltas": Deltas(weights=more)}))
    torch.testing.assert_close(out, (weights(q, k) + more) @ v.repeat_interleave(2, 1))
    with pytest.raises(ShapeError, match="added weights have shape"):
        part(q, k, v, Sides(streams={"deltas": Deltas(weights=more[:, :1])}))


def test_added_results() -> None:
    q, k, v = given()
    more = torch.randn(2, 5, 12, dtype=torch.float64)
    part = vf.build(DeltaAttention.spec(), **FACTS)
    out = part(q, k, v, Sides(streams={"deltas": Deltas(out=more)}))
    expected = weights(q, k) @ v.repeat_interleave(2, 1) + more.view(2, 5, 4, 3).transpose(1, 2)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_further_keys_and_values(heads: int, causal: bool) -> None:
    """Seen by every query, whatever the masks, where they are valid."""
    q, k, v = given()
    more_k, more_v = (torch.randn(2, heads, 3, 3, dtype=torch.float64) for _ in range(2))
    valid = torch.tensor([[True, False, True], [False, False, True]])
    part = vf.build({"part": "softmax", "causal": causal})
    out = part(q, k, v, Sides(beside=Beside(more_k, more_v, valid)))
    k, v, more_k, more_v = (x.repeat_interleave(4 // x.shape[1], 1) for x in (k, v, more_k, more_v))
    scores = q @ torch.cat((more_k, k), 2).mT / 3**0.5
    own = torch.ones(5, 5, dtype=torch.bool).tril() if causal else torch.ones(5, 5, dtype=torch.bool)
    seen = torch.cat((valid[:, None, None].expand(2, 1, 5, 3), own.expand(2, 1, 5, 5)), -1)
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ torch.cat((more_v, v), 2)
    torch.testing.assert_close(out, expected)


def test_an_attention_without_keys_refuses_further_ones() -> None:
    mixer = vf.build(MultiHead.spec(attention="linear"), dim=8, heads=2, causal=False)
    k = torch.randn(1, 2, 3, 4)
    with pytest.raises(ShapeError, match="takes no further keys"):
        mixer(torch.randn(1, 5, 8), {"beside": {mixer: Beside(k, k)}})


def test_further_keys_are_given_with_their_values() -> None:
    mixer = vf.build(MultiHead.spec(), dim=8, heads=2, causal=False)
    k = torch.randn(1, 2, 3, 4)
    for given in (Beside(k=k), Beside(v=k), Beside(valid=torch.ones(1, 3, dtype=torch.bool))):
        with pytest.raises(ShapeError, match="given together"):
            mixer(torch.randn(1, 5, 8), {"beside": {mixer: given}})


@torch.no_grad()
def test_further_keys_are_for_attentions_of_the_model() -> None:
    layers = [{"part": "sublayer", "body": {"part": body}} for body in ("cross_attention", "gru")]
    stack = {"part": "stack", "layers": layers}
    model = vf.build(
        {"part": "transformer", "dim": 8, "heads": 2, "causal": True, "embedding": None, "stacks": [stack]}
    )
    cross, gru = (
        next(m for m in model.modules() if getattr(m, "name", "") == name) for name in ("cross_attention", "gru")
    )
    x, context, k = torch.randn(1, 5, 8), torch.randn(1, 3, 8), torch.randn(1, 2, 3, 4)
    assert not torch.equal(model(x, context=context, beside={cross: Beside(k, k)}), model(x, context=context))
    for other in (gru, torch.nn.Linear(1, 1)):
        with pytest.raises(ShapeError, match="none of them"):
            model(x, context=context, beside={other: Beside(k, k)})
    state = model.init_state(1, 5, context=context)
    found, _ = model(x, state=state, beside={cross: Beside(k, k)})
    torch.testing.assert_close(found, model(x, context=context, beside={cross: Beside(k, k)}))
    with pytest.raises(ShapeError, match="before decoding began"):
        model(x, state=model.init_state(1, 5, context=context), beside={cross: Beside(added=context)})


@pytest.mark.parametrize("name", ["multi_head", "cross_attention", "compositional", "cross_compositional"])
def test_mixers_without_deltas_refuse_them(name: str) -> None:
    mixer = vf.build({"part": name}, dim=8, heads=2, causal=False)
    streams = {"deltas": Deltas(q=torch.randn(1, 5, 8)), "context": torch.randn(1, 3, 8)}
    with pytest.raises(ShapeError, match="reads no deltas"):
        mixer(torch.randn(1, 5, 8), streams)


@pytest.mark.parametrize("name", ["projected_attention", "projected_cross_attention"])
@pytest.mark.parametrize("of", ["weights", "output"])
def test_deltas_that_no_attention_adds_are_refused(name: str, of: str) -> None:
    sizes: dict[str, Any] = {"dim": 8, "heads": 2, "causal": False}
    delta = torch.randn(1, 2, 5, 5) if of == "weights" else torch.randn(1, 5, 8)
    streams = {"deltas": Deltas(**{"weights" if of == "weights" else "out": delta}), "context": torch.randn(1, 5, 8)}
    x = torch.randn(1, 5, 8)
    other = "output" if of == "weights" else "weights"
    for attention in ("softmax", {"part": "delta", "of": other}):
        with pytest.raises(ShapeError, match=f"'delta' with of='{of}'"):
            vf.build({"part": name, "attention": attention}, **sizes)(x, streams)
    mixer = vf.build({"part": name, "attention": {"part": "delta", "of": of}}, **sizes)
    assert not torch.equal(mixer(x, streams), mixer(x, {"context": streams["context"]}))
