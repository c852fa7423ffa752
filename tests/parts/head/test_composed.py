"""Heads around heads, against the formulas written out."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import variform as vf
from variform.parts.head.heads import LMHead
from variform.parts.head.mixture import MixtureHead, SigsoftmaxHead
from variform.parts.head.pooled import AttentionPoolHead, PooledHead
from variform.parts.head.readouts import NextEmbeddingHead, Readouts, SqueezedHead
from variform.parts.mixer.cross import CrossMultiHead

LM = LMHead.spec(vocab_size=11)


def built(spec: Any, **facts: Any) -> Any:
    torch.manual_seed(0)
    return vf.build(spec, dim=16, **facts).double()


def features() -> Tensor:
    return torch.randn(2, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


VALID = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])


def same(found: Tensor, expected: Tensor, part: Any, x: Tensor) -> None:
    """Values and gradients."""
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    leaves = [x, *part.parameters()]
    for a, b in zip(
        torch.autograd.grad((found * direction).sum(), leaves, retain_graph=True),
        torch.autograd.grad((expected * direction).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_mixture_of_softmaxes() -> None:
    part, x = built(MixtureHead.spec(head=LM, components=3)), features()
    chances = torch.zeros(2, 7, 11, dtype=torch.float64)
    weights = F.linear(x, part.weigh.weight).softmax(-1)
    for k, weight in enumerate(part.expand.weight.split(16)):
        chances = chances + weights[..., k : k + 1] * F.linear(F.linear(x, weight), part.head.project.weight).softmax(
            -1
        )
    same(part(x, {}), chances.log(), part, x)
    one = part(x[:, 0], {})
    torch.testing.assert_close(one, part(x, {})[:, 0])


def test_a_mixture_does_not_underflow() -> None:
    part = built(MixtureHead.spec(head=LM, components=2))
    assert part(features() * 1e4, {}).isfinite().all()


def test_sigsoftmax() -> None:
    part, x = built(SigsoftmaxHead.spec(head=LM)), features()
    z = F.linear(x, part.head.project.weight)
    found = part(x, {})
    same(found, z + z.sigmoid().log(), part, x)
    weights = z.exp() * z.sigmoid()
    torch.testing.assert_close(found.softmax(-1), weights / weights.sum(-1, keepdim=True))
    assert part(x * 1e4, {}).isfinite().all()


@pytest.mark.parametrize("pool", ["mean", "first", "last"])
def test_pooled(pool: str) -> None:
    part, x = built(PooledHead.spec(head=LM, pool=pool)), features()
    rows = [x[0], x[1, :4]]
    picked = [row.mean(0) if pool == "mean" else row[0 if pool == "first" else -1] for row in rows]
    same(part(x, {"valid": VALID}), part.head(torch.stack(picked), {}), part, x)
    bare = built(PooledHead.spec(pool=pool))
    torch.testing.assert_close(bare(x, {"valid": VALID}), torch.stack(picked))


@pytest.mark.parametrize("residual", [False, True])
def test_pooling_by_attention(residual: bool) -> None:
    body = CrossMultiHead.spec(heads=2, dim_head=4)
    spec = AttentionPoolHead.spec(body=body, queries=3, dim_query=8, residual=residual)
    part, x = built(spec), features()
    rows = []
    for row, count in ((x[0], 7), (x[1], 4)):
        q = F.linear(part.queries, part.body.q.weight).view(3, 2, 4).transpose(0, 1)
        k, v = (
            F.linear(row[:count], w).view(count, 2, 4).transpose(0, 1) for w in (part.body.k.weight, part.body.v.weight)
        )
        mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        rows.append(F.linear(mixed.transpose(0, 1).flatten(1), part.body.out.weight) + residual * part.queries)
    same(part(x, {"valid": VALID}), torch.stack(rows), part, x)
    assert vf.build(spec.replace(head=LM), dim=16)(torch.zeros(2, 7, 16), {}).shape == (2, 3, 11)


def test_what_a_pool_reads_is_not_the_models() -> None:
    pool = AttentionPoolHead.spec(body="cross_attention")
    stack = {"part": "stack", "layers": [{"part": "sublayer", "body": "multi_head"}]}
    model = vf.build({"part": "transformer", "embedding": "tokens", "stacks": [stack]}, vocab_size=11, dim=16, heads=4)
    assert "context" not in model.reads_below
    spec = model.spec.replace(head=pool)
    pooled = vf.build(spec)
    assert pooled(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 1, 16)
    assert "context" not in pooled.reads_below
    with pytest.raises(vf.ShapeError, match="context was given, and no part of this model reads it"):
        pooled(torch.zeros(2, 5, dtype=torch.long), context=torch.zeros(2, 3, 16))


def test_an_axis_of_one_is_left_out() -> None:
    part, x = built(SqueezedHead.spec(head=LMHead.spec(vocab_size=1))), features()
    same(part(x, {}), part.head(x, {})[..., 0], part, x)


def test_further_heads_answer_on_request() -> None:
    part, x = built(Readouts.spec(main=LM, further=[NextEmbeddingHead.spec(), PooledHead.spec()])), features()
    torch.testing.assert_close(part(x, {}), part.main(x, {}))
    guess = F.linear(F.silu(F.linear(x, part.further[0].up.weight)), part.further[0].down.weight)
    torch.testing.assert_close(part.answer(0, x, {}), guess)
    torch.testing.assert_close(part.answer(1, x, {}), x.mean(1))


def test_a_model_with_further_heads_decodes() -> None:
    stack = {"part": "stack", "layers": [{"part": "sublayer", "body": "multi_head"}]}
    model = {"part": "transformer", "embedding": "tokens", "stacks": [stack], "causal": True, "vocab_size": 11}
    spec = {**model, "head": Readouts.spec(main=LM, further=[PooledHead.spec()]), "dim": 16, "heads": 4}
    built_model = vf.build(spec)
    assert vf.generate(built_model, [1, 2, 3], 4, greedy=True).shape == (4,)
    with pytest.raises(vf.ConfigError, match="has no decode state"):
        vf.build({**spec, "head": PooledHead.spec(head=LM)}).init_state(1, 9)
