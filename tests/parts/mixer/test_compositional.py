"""Compositional attention written out head by head and rule by rule, values and gradients, and each of its fields."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ConfigError
from variform.ops.masks import Dense
from variform.parts.attention.across_layers import ValueResidual
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.mixer.compositional import Compositional, CrossCompositional

DIM, HEADS = 12, 4


def built(part: Any = Compositional, **more: Any) -> Any:
    torch.manual_seed(1)
    return vf.build(part.spec(**more), dim=DIM, heads=HEADS).double()


def inputs(length: int = 7) -> Tensor:
    return torch.randn(2, length, DIM, dtype=torch.float64, requires_grad=True)


def written_out(part: Any, x: Tensor, source: Tensor, allowed: Tensor | None = None) -> Tensor:
    """`allowed` is bool [Lq, Lk]."""
    part = part.maps
    select, outputs = part.selection, []
    keys, values = (part.k or part.q)(source), (part.v or part.q)(source)
    for head in range(part.heads):
        own = slice(head * part.dim_head, (head + 1) * part.dim_head)
        query = part.q(x)[..., own]
        scores = query @ keys[..., own].transpose(1, 2) / part.dim_head**0.5
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        size = part.value_q.out_features // (1 if part.compose else part.heads)
        chooser = part.value_q(query) if part.compose else part.value_q(x)[..., head * size : (head + 1) * size]
        found, told = [], []
        for rule in range(part.rules):
            value = values[..., rule * part.dim_value : (rule + 1) * part.dim_value]
            found.append(scores.softmax(-1) @ value)
            if select.score == "dot":
                told.append((chooser * select.key(found[-1])).sum(-1) / size**0.5)
            elif select.score == "mlp":
                hidden = torch.relu(select.hidden_query(chooser) + select.hidden_value(found[-1]))
                told.append(select.last(hidden)[..., 0])
            else:
                told.append(select.query_score(chooser)[..., rule] + select.value_score(found[-1])[..., 0])
        weights = torch.stack(told, -1).softmax(-1)
        outputs.append(sum(weights[..., r : r + 1] * y for r, y in enumerate(found)))
    return part.out(torch.cat(outputs, -1))


def agree(part: Any, got: Tensor, wanted: Tensor, *inputs: Tensor) -> None:
    leaves = [*inputs, *part.parameters()]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)
    weights = torch.randn_like(wanted)
    found, right = (torch.autograd.grad((y * weights).sum(), leaves) for y in (got, wanted))
    for gradient, other in zip(found, right, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-10)
    assert all(bool(gradient.abs().max() > 1e-9) for gradient in found), "a parameter that changes nothing"


VARIANTS = [
    {},
    {"rules": 3},
    {"rules": 6, "dim_value": 18},
    {"dim_attn": 8},
    {"dim_value": 20},
    {"dim_selection": 5},
    {"q_compose": True},
    {"bias": False},
    {"tied": True},
    {"tied": True, "rules": 3},
    {"rules": 2, "dim_attn": 8, "dim_value": 6, "dim_selection": 3, "q_compose": True, "bias": False},
]


@pytest.mark.parametrize("score", ["dot", "mlp", "linear"])
@pytest.mark.parametrize("more", VARIANTS)
def test_equals_searches_and_retrievals_written_out(score: str, more: dict[str, Any]) -> None:
    part, x, source = built(score=score, **more), inputs(), inputs(5)
    if part.maps.k is not None:  # its offset cancels in the softmax over keys, as in every attention
        torch.nn.Module.register_parameter(part.maps.k, "bias", None)
    agree(part, part(x, {}), written_out(part, x, x), x)
    cross = built(CrossCompositional, score=score, **more)
    cross.load_state_dict(part.state_dict(), strict=False)
    torch.testing.assert_close(cross(x, {"context": source}), written_out(cross, x, source), rtol=0, atol=1e-11)


@pytest.mark.parametrize("length", [1, 6])
def test_causal_masked_and_padded(length: int) -> None:
    part, x = built(attention={"part": "softmax", "causal": True}), inputs(length)
    past = torch.ones(length, length).tril().bool()
    torch.testing.assert_close(part(x, {}), written_out(part, x, x, past), rtol=0, atol=1e-11)
    plain, near = built(), past & past.triu(-1)
    torch.testing.assert_close(plain(x, {"mask": Dense(near)}), written_out(plain, x, x, near), rtol=0, atol=1e-11)
    if length > 2:
        valid = torch.arange(length).expand(2, length) < 4
        out = plain(x, {"valid": valid})[:, :4]
        torch.testing.assert_close(out, written_out(plain, x[:, :4], x[:, :4]), rtol=0, atol=1e-11)


@pytest.mark.parametrize("score", ["dot", "mlp", "linear"])
@pytest.mark.parametrize("q_compose", [True, False])
def test_rows_of_a_batch_stay_apart(score: str, q_compose: bool) -> None:
    part, x = built(score=score, q_compose=q_compose), inputs()
    for row in range(2):
        torch.testing.assert_close(part(x, {})[row], part(x[row : row + 1], {})[0], rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="heads: must divide dim_attn = 10"):
        built(dim_attn=10)
    with pytest.raises(ConfigError, match=r"rules: must divide dim_value = 10.*got 3.*or give dim_value"):
        built(dim_value=10, rules=3)
    with pytest.raises(ConfigError, match="rules: must divide dim_value = dim = 12"):
        built(rules=5)
    with pytest.raises(ConfigError, match="one map cannot read 12 features of the tokens and 6 of the context"):
        built(CrossCompositional, tied=True, dim_context=6)
    with pytest.raises(ConfigError, match="cannot attend to another sequence"):
        built(CrossCompositional, attention={"part": "local", "window": 3})
    with pytest.raises(vf.ShapeError, match="context must have 6 features, and has 12"):
        built(CrossCompositional, dim_context=6)(inputs(), {"context": inputs()})
    with pytest.raises(vf.ShapeError, match="needs the stream 'context'"):
        built(CrossCompositional)(inputs(), {})


def test_a_norm_on_the_context() -> None:
    part, x, source = built(CrossCompositional, context_norm="layer_norm"), inputs(), inputs(5)
    torch.testing.assert_close(
        part(x, {"context": source}), written_out(part, x, part.context_norm(source)), rtol=0, atol=1e-11
    )


def test_the_attention_in_the_slot_reads_streams_and_tokens_and_hands_on() -> None:
    fade = {"part": "softmax", "causal": True, "scores": [{"part": "forget", "causal": True}]}
    prefixed, first, fading = built(attention={"part": "prefix", "causal": True}), built(), built(attention=fade)
    first.attention = ValueResidual(SoftmaxAttention(causal=False), dim=DIM, kv_heads=HEADS)
    x, two_way = inputs(), torch.tensor([3, 0])
    seen = torch.arange(7) < 3
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    found = prefixed(x, {"two_way": two_way})
    torch.testing.assert_close(found[0], written_out(prefixed, x, x, causal | seen)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], written_out(prefixed, x, x, causal)[1], rtol=0, atol=1e-12)
    assert set(first(x, {})[1]) == {"first_values"}
    assert not torch.equal(fading(x, {}), written_out(fading, x, x, causal))
