"""Limits of distance: by the formula, over sequences of other lengths, under padding, while decoding."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ConfigError
from variform.ops.masks import Dense, Window
from variform.parts.attention.limited import EndsTogether, LimitedAttention
from variform.parts.attention.prefix import PrefixAttention
from variform.parts.kinds import Sides
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

FACTS = {"dim": 6, "heads": 2, "dim_head": 3, "causal": False}


def drawn(queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 3, dtype=torch.float64, generator=draw) for n in (queries, keys, keys))
    return q, k, v


def attended(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention where `seen`; zeros where nothing is."""
    weights = (q @ k.mT / 3**0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.nan_to_num(weights) @ v


@pytest.mark.parametrize(("back", "ahead"), [(2, None), (None, 1), (1, 2), (0, 0)])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (5, 9), (9, 5)])
def test_the_formula_with_gradients(back: int | None, ahead: int | None, queries: int, keys: int) -> None:
    part = vf.build(LimitedAttention.spec(back=back, ahead=ahead), **FACTS)
    ends = vf.build(EndsTogether.spec(attention=LimitedAttention.spec(back=back, ahead=ahead)), **FACTS)
    for one, shift in ((part, 0), (ends, keys - queries)):
        given = [t.requires_grad_() for t in drawn(queries, keys)]
        distance = torch.arange(queries)[:, None] + shift - torch.arange(keys)
        seen = (distance <= (99 if back is None else back)) & (distance >= -(99 if ahead is None else ahead))
        found, expected = one(*given, Sides()), attended(*given, seen)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        direction = torch.randn_like(found)
        for mine, plain in zip(
            torch.autograd.grad((found * direction).sum(), given),
            torch.autograd.grad((expected.masked_fill(~seen.any(-1)[:, None], 0) * direction).sum(), given),
            strict=True,
        ):
            torch.testing.assert_close(mine, plain.nan_to_num(), rtol=0, atol=1e-12)


def test_positions_that_are_told() -> None:
    part = vf.build(LimitedAttention.spec(back=2), **FACTS)
    q, k, v = drawn(4, 5)
    places, others = torch.tensor([0, 5, 6, 20]), torch.tensor([3, 4, 9, 18, 30])
    seen = places[:, None] - others <= 2
    found = part(q, k, v, Sides(q_positions=places, k_positions=others))
    torch.testing.assert_close(found, attended(q, k, v, seen), rtol=0, atol=1e-12)


def test_padding_is_not_counted_from_the_ends_and_masks_keep_their_places() -> None:
    part = vf.build(EndsTogether.spec(attention=LimitedAttention.spec(back=1, ahead=2)), **FACTS)
    q, k, v = drawn(6, 8)
    real, keys = torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 8, dtype=torch.bool)
    real[1, 4:], keys[1, :3] = False, False
    allowed = torch.rand(6, 8, generator=torch.Generator().manual_seed(1)) > 0.3
    for mask, seen in ((Dense(allowed), allowed), (Window(5, 3), Window(5, 3).dense(torch.arange(6), torch.arange(8)))):
        found = part(q, k, v, Sides(k_valid=keys, mask=mask, streams={"valid": real}))
        alone = part(q[1:, :, :4], k[1:, :, 3:], v[1:, :, 3:], Sides(mask=Dense(seen[:4, 3:])))
        torch.testing.assert_close(found[1:, :, :4], alone, rtol=0, atol=1e-12)
        whole = part(q[:1], k[:1], v[:1], Sides(mask=mask))
        torch.testing.assert_close(found[:1], whole, rtol=0, atol=1e-12)


def model(attention: Any, across: Any = None) -> Any:
    torch.manual_seed(0)
    steps = [Sublayer.spec(body=MultiHead.spec(attention=attention, rotation="rotary"))]
    if across is not None:
        steps.append(Sublayer.spec(body=CrossMultiHead.spec(attention=across)))
    stack = LayerStack.spec(layers=[*steps, *steps])
    spec = Transformer.spec(embedding="tokens", stacks=[stack], dim=8, heads=2, vocab_size=11, causal=True)
    return vf.build(spec).double().eval()


@torch.no_grad()
def test_prefixes_and_contexts_decode_within_limits() -> None:
    limited = LimitedAttention.spec(back=2)
    built = model(PrefixAttention.spec(attention=limited), across=limited)
    ids = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))
    context, lengths = torch.randn(2, 7, 8, dtype=torch.float64), torch.tensor([4, 2])
    whole = built(ids, two_way=lengths, context=context)
    state = built.init_state(2, 9, context=context)
    first, state = built(ids[:, :5], two_way=lengths, state=state)
    outs = [first]
    for at in range(5, 9):
        out, state = built(ids[:, at : at + 1], state=state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-10)
    far = built(ids, two_way=lengths, context=torch.cat((context[:, :-1], context[:, -1:] + 1), 1))
    assert not torch.equal(far, whole)
    near = built(ids, two_way=lengths, context=torch.cat((context[:, :1] + 1, context[:, 1:]), 1))
    assert not torch.equal(near[:, :3], whole[:, :3])


def test_what_does_not_fit() -> None:
    for spec, message in (
        (LimitedAttention.spec(back=None), "there is no limit"),
        (LimitedAttention.spec(back=2, attention="linear"), "does not take a mask of pairs"),
        (LimitedAttention.spec(back=-1), "greater than or equal to 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            vf.resolve(spec, **FACTS)
    with pytest.raises(ConfigError, match="has no causal form"):
        model(EndsTogether.spec())
