"""Checks of head-level attentions alone: masked keys, empty rows, grouped heads, another sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from variform.core.resolve import examine
from variform.ops.masks import Dense
from variform.parts.kinds import Sides
from variform.parts.mixer.cross import CrossMultiHead
from variform.testing.case import Case, seeded
from variform.testing.hosts import FACTS, Setting
from variform.testing.numbers import same
from variform.testing.report import NotApplicable, check
from variform.testing.samples import Sample
from variform.testing.sequence import padded_context_equals_short


@check("attention")
def attention(case: Case) -> None:
    """Head level: masked keys count as if they were not there, and a query that sees none gets zeros."""
    if case.part.kind != "attention":
        raise NotApplicable("it is no attention")
    part = Case(case.sample, {**case.facts, "causal": False}).alone().eval()
    (q, k, v), x = heads(6, 7), tokens(6)
    args = dict(case.resolved.args)
    by_keys = case.can.cross and case.part.own_abilities(args) is None  # what it reads of the queries is no key
    if by_keys and case.can.key_padding:
        keep = torch.tensor([[True, False, True, True, False, True, False], [False] * 7])
        out = part(q, k, v, Sides(k_valid=keep, x=x, **placed(part)))
        fewer = part(q[:1], k[:1, :, keep[0]], v[:1, :, keep[0]], Sides(x=x[:1], **placed(part, keys=keep[0])))
        same(out[:1], fewer, "keys that are not valid, against fewer keys")
        same(out[1], torch.zeros_like(out[1]), "a row without valid keys", 0.0)
    if by_keys and case.can.attention_mask and not part.queries_mixed(args):
        allowed = torch.rand(2, 4, 6, 7) > 0.4
        allowed[0, :, 2] = False
        allowed[1, :, 4, 1:] = False
        if _heads_mix(part, q, k, v, x):
            allowed = allowed[:, :1].expand(-1, 4, -1, -1)
        out = part(q, k, v, Sides(mask=Dense(allowed), x=x, **placed(part)))
        same(out[0, :, 2], torch.zeros_like(out[0, :, 2]), "a query whose mask allows nothing", 0.0)
        for row, head, step in ((0, 1, 0), (1, 3, 4), (1, 0, 5)):
            keep = allowed[row, head, step]
            if keep.any():
                at, one = slice(row, row + 1), slice(step, step + 1)
                known = Sides(x=x[at, one], **placed(part, step, keep))
                fewer = part(q[at, :, one], k[at][:, :, keep], v[at][:, :, keep], known)
                same(out[row, head, step], fewer[0, head, 0], "a masked query, against fewer keys")
    length = case.fit(6)
    q, k, v = heads(length, length)
    x = tokens(length)
    grouped = part(q, k[:, :2], v[:, :2], Sides(x=x))
    repeated = part(q, *(t[:, :2].repeat_interleave(2, 1) for t in (k, v)), Sides(x=x))
    same(grouped, repeated, "two key heads for four query heads, against repeated key heads")


def placed(part: Any, query: int | None = None, keys: Tensor | None = None) -> dict[str, Any]:
    """Where six queries and seven keys stand, or one and some of them, for attentions that go by it."""
    if not part.takes_positions:
        return {}
    places = torch.arange(7)
    return {
        "q_positions": places[:6] if query is None else places[query : query + 1],
        "k_positions": places if keys is None else places[keys],
    }


def _heads_mix(part: Any, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> bool:
    """Whether what one head gives depends on the queries of another."""
    other = torch.cat((q[:, :1], q[:, 1:] + 1), 1)
    return not torch.equal(part(q, k, v, Sides(x=x))[:, 0], part(other, k, v, Sides(x=x))[:, 0])


def heads(queries: int, keys: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v of 2 rows, 4 heads and 4 features."""
    with seeded(11):
        return tuple(torch.randn(2, 4, n, 4, dtype=torch.float64).to(dtype) for n in (queries, keys, keys))  # type: ignore[return-value]


def tokens(length: int) -> Tensor:
    """What such queries were made of: 2 rows of features."""
    with seeded(12):
        return torch.randn(2, length, FACTS["dim"], dtype=torch.float64)


@check("cross")
def cross(case: Case) -> None:
    """Attends to a sequence of another length where it says so, and is refused there where it says not."""
    if case.part.kind != "attention":
        raise NotApplicable("it is no attention")
    if not case.stands_alone:
        raise NotApplicable("it reads what other layers publish")
    across = Case(Sample(CrossMultiHead.spec(attention=case.spec)), case.facts)
    if not case.can.cross:
        found = examine(across.host(Setting(causal=True)))[1]
        assert found, "it cannot attend to another sequence, and cross attention accepts it"
        return
    model = across.model().eval()
    for context in (1, 5, 12):
        out = across.run(model, across.inputs(2, 5, context=context))
        assert out.shape[1] == 5, f"a context of {context} tokens: shape {list(out.shape)}"
        assert bool(torch.isfinite(out).all()), f"a context of {context} tokens: not finite"
    if case.can.key_padding:
        padded_context_equals_short(across, model)
