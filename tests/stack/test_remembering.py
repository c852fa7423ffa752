"""Segments that remember: equal to one pass over the whole text under the mask that says what is remembered."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ShapeError
from variform.ops.masks import Dense, Window
from variform.parts.attention.hybrid import HybridAttention
from variform.parts.attention.limited import LimitedAttention
from variform.parts.feedforward.mlp import MLP
from variform.parts.memories import Memories
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.gru import GatedRecurrentUnit
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.position.bias import AlibiBias, T5Bias
from variform.parts.stream_ops.token_shift import TokenShift
from variform.stack.interspersed import InterspersedStack
from variform.stack.model import Transformer
from variform.stack.recurrent import LoopedStack, RecycledStack
from variform.stack.registers import RegisterStack
from variform.stack.sublayer import Sublayer

VOCAB, LENGTH = 17, 13
BODY = "stacks.0.layers.{}.sublayers.0.body"


def model(depth: int = 3, bias: Any = None, **changes: Any) -> Transformer:
    torch.manual_seed(0)
    spec = vf.models.llama(vocab_size=VOCAB, dim=24, depth=depth, heads=3, max_seq_len=None, init_std=0.5)
    given = {f"{BODY.format(i)}.position_bias": bias for i in range(depth)} if bias is not None else {}
    built: Transformer = vf.build(vf.override(spec, {**given, **changes})).double()  # type: ignore[assignment]
    return built


def ids(rows: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


def in_segments(net: Transformer, x: Tensor, cuts: list[int], limit: int, detach: bool = False) -> Tensor:
    memories, outs = Memories(limit), []
    for start, end in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        out, memories = net(x[:, start:end], memories=memories)
        memories = memories.detached() if detach else memories
        outs.append(out)
    return torch.cat(outs, 1)


def remembered_pairs(cuts: list[int], limit: int, length: int = LENGTH) -> Tensor:
    """[L, L], what a token of one pass may attend to: its segment so far, and `limit` tokens before the segment."""
    begins = torch.tensor([max(cut for cut in (0, *cuts) if cut <= place) for place in range(length)])
    places = torch.arange(length)
    return (places <= places.unsqueeze(1)) & (places >= (begins - limit).unsqueeze(1))


@pytest.mark.parametrize("limit", [0, 1, 4, 100])
@pytest.mark.parametrize("bias", [None, AlibiBias.spec(), T5Bias.spec(buckets=8, max_distance=9, std=1.0)])
def test_one_pass_under_the_mask_of_what_is_remembered(limit: int, bias: Any) -> None:
    net, x, cuts = model(bias=bias).eval(), ids(), [5, 7, 12]
    expected = net(x, mask=Dense(remembered_pairs(cuts, limit)))
    torch.testing.assert_close(in_segments(net, x, cuts, limit), expected, rtol=0, atol=1e-10)
    if limit < 12:
        assert (net(x) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("executor", ["plain", "checkpoint"])
def test_gradients_flow_until_memories_are_constants(executor: str) -> None:
    net, x, cuts = model(**{"stacks.0.executor": executor}).train(), ids(), [5, 9]
    whole = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    pieces = torch.autograd.grad(in_segments(net, x, cuts, 100).square().sum(), list(net.parameters()))
    for found, expected in zip(pieces, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    embedding = net.embedding.weight  # type: ignore[union-attr]
    _, memories = net(x[:, :5], memories=Memories(9))
    second, _ = net(x[:, 5:], memories=memories.detached())
    (found,) = torch.autograd.grad(second.square().sum(), embedding)
    absent = sorted(set(x[:, :5].flatten().tolist()) - set(x[:, 5:].flatten().tolist()))
    assert absent
    assert found[absent].abs().max() == 0


def test_rows_of_unequal_length_remember_what_each_remembers_alone() -> None:
    net, limit = model().eval(), 4
    lengths = [[5, 2, 1], [4, 4, 3], [3, 1, 5]]  # of each row in each segment
    rows = [ids(1, sum(own))[0] for own in lengths]
    alone = [
        in_segments(net, row.unsqueeze(0), [own[0], own[0] + own[1]], limit)[0]
        for row, own in zip(rows, lengths, strict=True)
    ]
    for side in ("left", "right"):
        memories, seen, outs = Memories(limit), [0, 0, 0], [[], [], []]  # type: Memories, list[int], list[list[Tensor]]
        for turn in range(3):
            width = max(own[turn] for own in lengths)
            chunk, valid = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.bool)
            places = [slice(0, own[turn]) if side == "right" else slice(width - own[turn], width) for own in lengths]
            for row, place in enumerate(places):
                chunk[row, place] = rows[row][seen[row] : seen[row] + lengths[row][turn]]
                valid[row, place] = True
                seen[row] += lengths[row][turn]
            out, memories = net(chunk, valid=valid, memories=memories)
            for row, place in enumerate(places):
                outs[row].append(out[row, place])
        for row in range(3):
            torch.testing.assert_close(torch.cat(outs[row]), alone[row], rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_decoding_behind_memories(ragged: bool, absolute: bool) -> None:
    if absolute:
        spec = vf.models.gpt(vocab_size=VOCAB, dim=24, depth=2, heads=3, max_seq_len=8, init_std=0.5)
        net: Transformer = vf.build(spec).double().eval()  # type: ignore[assignment]
    else:
        net = model().eval()
    x, valid = ids(), None
    if ragged:
        valid = torch.ones(2, 5, dtype=torch.bool)
        valid[1, 3:] = False
    _, memories = net(x[:, :5], valid=valid, memories=Memories(4))
    expected, _ = net(x[:, 5:], memories=memories)
    state = net.init_state(2, 8, ahead=memories.length)
    outs, start = [], 5
    for count in (3, 1, 1, 3):
        given = {"memories": memories} if start == 5 else {}
        out, state = net(x[:, start : start + count], state=state, **given)
        outs.append(out)
        start += count
    torch.testing.assert_close(torch.cat(outs, 1), expected, rtol=0, atol=1e-10)


def test_each_layer_may_remember_the_one_above() -> None:
    marked = tuple(torch.full((1, 2, 3), float(i)) for i in range(4))
    memories = Memories(9, shift=1, features=marked)
    assert [float(x[0, 0, 0]) for x in memories.recalled] == [1, 2, 3, 0]
    net, x = model().eval(), ids()
    _, plain = net(x[:, :4], memories=Memories(9))
    _, shifted = net(x[:, :4], memories=Memories(9, shift=1))
    for one, other in zip(plain.features, shifted.features, strict=True):
        assert torch.equal(one, other)  # what is kept is each step's own, so that nothing moves twice
    out, shifted = net(x[:, 4:8], memories=shifted)
    again, _ = net(x[:, 4:8], memories=plain._replace(features=(*plain.features[1:], plain.features[0])))
    torch.testing.assert_close(out, again)
    assert (out - net(x[:, 4:8], memories=plain)[0]).abs().max() > 1e-3
    for one, other in zip(plain.features, shifted.features, strict=True):
        assert torch.equal(one, other[:, :4])


def test_what_cannot_be_remembered_is_refused() -> None:
    net, x = model(1).eval(), ids()
    _, memories = net(x, memories=Memories(5))
    for given, message in (
        ({"mask": Window(3)}, "cannot be combined with memories: give its pairs"),
        ({"memories": memories._replace(valid=(None, None))}, "memories for 1 steps, and 2 valid"),
        ({"segments": torch.zeros_like(x)}, "segments cannot be combined"),
        ({"memories": memories._replace(features=memories.features * 2)}, "memories for 2 steps, and 1 mix"),
        ({"memories": memories._replace(features=(memories.features[0][:1],))}, "memory of this step is"),
        ({"memories": memories.features}, "what the call before returned"),
        ({"losses": True}, "losses"),
    ):
        with pytest.raises(ShapeError, match=message):
            net(x, **{"memories": memories, **given})
    _, state = net(x, state=net.init_state(2, 40))
    with pytest.raises(ShapeError, match="first call"):
        net(x, state=state, memories=memories)
    reversible = model(1, **{"stacks.0.executor": "reversible"})
    with pytest.raises(ShapeError, match="reversible"):
        reversible(x, memories=Memories(5))


def test_pairs_of_tokens_leave_memories_alone() -> None:
    net, x = model(2).eval(), ids()
    _, memories = net(x, memories=Memories(4))
    allowed = (torch.rand(LENGTH, LENGTH) < 0.5) | torch.eye(LENGTH, dtype=torch.bool)
    wide = torch.cat((torch.ones(LENGTH, 4, dtype=torch.bool), allowed), 1)
    found, _ = net(x, memories=memories, mask=Dense(allowed))
    torch.testing.assert_close(found, net(x, memories=memories, mask=Dense(wide))[0])
    assert (found - net(x, memories=memories)[0]).abs().max() > 1e-3
    with pytest.raises(ShapeError, match="mask cannot be combined with memories and a decode state"):
        net(x, state=net.init_state(2, 40), memories=memories, mask=Dense(allowed))


def test_each_step_may_remember_other_tokens() -> None:
    net, x = model(2).eval(), ids()
    _, memories = net(x, memories=Memories(4))
    some, all_ = (
        torch.tensor([[True, False, True, True], [False, False, True, True]]),
        torch.ones(2, 4, dtype=torch.bool),
    )
    one, left = net(x, memories=memories._replace(valid=(some, some)))
    other, kept = net(x, memories=memories._replace(valid=some))
    torch.testing.assert_close(one, other)
    assert isinstance(left.valid, tuple)
    assert len(left.valid) == 2
    torch.testing.assert_close(left.features, kept.features)
    mixed, _ = net(x, memories=memories._replace(valid=(some, None)))
    torch.testing.assert_close(mixed, net(x, memories=memories._replace(valid=(some, all_)))[0])
    assert (mixed - one).abs().max() > 1e-6
    turned, _ = net(x, memories=memories._replace(shift=1, valid=(some, None)))
    features = memories.features[::-1]
    torch.testing.assert_close(turned, net(x, memories=memories._replace(features=features, valid=(None, some)))[0])
    with pytest.raises(ShapeError, match="one valid for all steps"):
        net(x, state=net.init_state(2, 40), memories=memories._replace(valid=(some, None)))


def in_chunks(net: Any, x: Tensor, state: Any, memories: Memories) -> Tensor:
    """What a decode state makes of 8 tokens behind memories."""
    outs, given = [], {"memories": memories}
    for chunk in x.split([3, 1, 1, 3], 1):
        out, state = net(chunk, state=state, **given)
        outs.append(out)
        given = {}
    return torch.cat(outs, 1)


BESIDE = HybridAttention.spec(attention=LimitedAttention.spec(back=3), mixer=GatedRecurrentUnit.spec(dim_out=24))


@torch.no_grad()
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("attention", [LimitedAttention.spec(back=3), BESIDE], ids=["limited", "beside"])
def test_a_context_begins_with_the_segment_also_behind_memories(attention: vf.Spec, ragged: bool) -> None:
    body = CrossMultiHead.spec(attention=attention)
    sublayers = [Sublayer.spec(body=MultiHead.spec()), Sublayer.spec(body=body)]
    net = model(1, **{"stacks.0.layers.0.sublayers": sublayers}).eval()
    x, context, valid = ids(), torch.randn(2, 9, 24, dtype=torch.float64), None
    if ragged:
        valid = torch.ones(2, 5, dtype=torch.bool)
        valid[1, 3:] = False
    _, memories = net(x[:, :5], context=context, valid=valid, memories=Memories(4))
    expected, _ = net(x[:, 5:], context=context, memories=memories)
    state = net.init_state(2, 8, ahead=memories.length, context=context)
    torch.testing.assert_close(in_chunks(net, x[:, 5:], state, memories), expected, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("every", [None, 3])
def test_added_tokens_among_padding_are_remembered(every: int | None) -> None:
    net = model(2).eval()
    around = RegisterStack.spec if every is None else partial(InterspersedStack.spec, every=every)
    net = model(2, **{"stacks.0": around(stack=net.spec.args["stacks"][0], count=2)}).eval()
    torch.nn.init.normal_(net.stacks[0].tokens)
    x, valid = ids(), torch.arange(LENGTH) < torch.tensor([[LENGTH], [8]])
    _, memories = net(x, valid=valid, memories=Memories(9))
    for row, length in enumerate((LENGTH, 8)):
        _, alone = net(x[row : row + 1, :length], memories=Memories(9))
        expected, _ = net(x[row : row + 1], memories=alone)
        own = memories._replace(features=tuple(one[row : row + 1] for one in memories.features))
        assert memories.valid is not None
        found, _ = net(x[row : row + 1], memories=own._replace(valid=memories.valid[row : row + 1]))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("passes", [None, 3])
@pytest.mark.parametrize("around", [LoopedStack, RecycledStack])
def test_stacks_that_run_again_decode_behind_memories(around: Any, passes: int | None) -> None:
    net = model(2).eval()
    net = model(2, **{"stacks.0": around.spec(stack=net.spec.args["stacks"][0], passes=2)}).eval()
    x = ids()
    _, memories = net(x[:, :5], memories=Memories(4), passes=passes)
    expected, _ = net(x[:, 5:], memories=memories, passes=passes)
    state = net.init_state(2, 8, ahead=memories.length, passes=passes)
    torch.testing.assert_close(in_chunks(net, x[:, 5:], state, memories), expected, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("ragged", [False, True])
def test_shifted_tokens_decode_behind_memories(ragged: bool) -> None:
    bodies = [TokenShift.spec(body=MultiHead.spec(rotation="rotary")), TokenShift.spec(body=MLP.spec(), amount=2)]
    sublayers = [Sublayer.spec(body=body) for body in bodies]
    net = model(2, **{f"stacks.0.layers.{i}.sublayers": sublayers for i in range(2)}).eval()
    x, valid = ids(), None
    if ragged:
        valid = torch.arange(5) < torch.tensor([[5], [3]])
    _, memories = net(x[:, :5], valid=valid, memories=Memories(4))
    expected, _ = net(x[:, 5:], memories=memories)
    state, seen, given = net.init_state(2, 8, ahead=memories.length), torch.tensor([0, 0]), {"memories": memories}
    found: list[list[Tensor]] = [[], []]
    for counts in ((3, 1), (0, 2), (1, 1), (4, 4)):  # padded on the left and on the right in turn
        width, left = max(counts), len(found[0]) % 2
        chunk, real = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.bool)
        places = [slice(width - n, width) if left else slice(0, n) for n in counts]
        for row, (place, n) in enumerate(zip(places, counts, strict=True)):
            chunk[row, place], real[row, place] = x[row, 5 + seen[row] : 5 + seen[row] + n], True
        out, state = net(chunk, valid=real, state=state, **given)
        seen, given = seen + torch.tensor(counts), {}
        for row, place in enumerate(places):
            found[row].append(out[row, place])
    torch.testing.assert_close(torch.stack([torch.cat(row) for row in found]), expected, rtol=0, atol=1e-10)
