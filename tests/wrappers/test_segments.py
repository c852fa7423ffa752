"""Texts in segments: the loss and what is generated are those of one pass under the mask of what is remembered."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import variform as vf
from tests.stack.test_remembering import VOCAB, ids, model, remembered_pairs
from variform.errors import ConfigError, ShapeError
from variform.ops.masks import Dense
from variform.parts.memories import Memories
from variform.stack.model import Transformer
from variform.wrappers.segments import Segments

SIZE, MEMORY = 4, 6


def segments(depth: int = 2, **options: Any) -> Segments:
    return Segments(model(depth), **{"length": SIZE, "memory": MEMORY, **options})


def absolute() -> Transformer:
    torch.manual_seed(0)
    spec = vf.models.gpt(vocab_size=VOCAB, dim=24, depth=2, heads=3, max_seq_len=SIZE, init_std=0.5)
    return vf.build(spec).double()  # type: ignore[return-value]


def in_one_pass(net: Transformer, x: Tensor) -> Tensor:
    cuts = list(range(SIZE, x.shape[1], SIZE))
    logits: Tensor = net(x, mask=Dense(remembered_pairs(cuts, MEMORY, x.shape[1])))
    return logits


def greedily(net: Transformer, prompt: Tensor, count: int) -> Tensor:
    x = prompt
    for _ in range(count):
        x = torch.cat((x, in_one_pass(net.eval(), x)[:, -1:].argmax(-1)), 1)
    return x[:, prompt.shape[1] :]


def test_the_loss_is_that_of_one_pass() -> None:
    text = segments().eval()
    x = ids(3, 11)
    expected = F.cross_entropy(in_one_pass(text.model, x[:, :-1]).transpose(1, 2), x[:, 1:])
    torch.testing.assert_close(text(x), expected)
    assert (text(x, forget=True) - expected).abs() > 1e-4
    first, memories = text.model(x[:, :4], memories=text.begin())
    rest = text(x[:, 4:], memories=memories)
    own = F.cross_entropy(first.transpose(1, 2), x[:, 1:5])
    torch.testing.assert_close(own * 0.4 + rest * 0.6, expected)


def test_ignored_targets_do_not_count() -> None:
    text = segments().eval()
    x = ids(2, 9)
    marked = x.clone()
    marked[:, 5:] = -100
    assert text(marked).isfinite()
    torch.testing.assert_close(text(marked) * 2, text(x[:, :5]))  # the second of two segments has no target


@pytest.mark.parametrize("backward", [1, 2, 9])
def test_gradients_flow_through_as_many_segments_as_told(backward: int) -> None:
    text = segments(1, backward=backward)
    x = ids(1, 13)
    embedding = text.model.embedding.weight  # type: ignore[union-attr]
    reached = []
    for place in range(3):  # of what was read in segment `place`, by the loss of the last segment alone
        memories, total = text.begin(), None
        marked: list[Tensor] = []
        hook = text.model.embedding.register_forward_hook(lambda *call, to=marked: to.append(call[-1]))  # type: ignore[union-attr]
        for read, wanted, _, constant in text.cut(x):
            logits, left = text.model(read, memories=memories)
            memories = left.detached() if constant else left
            total = text.loss_of_rows(logits, wanted).sum()
        hook.remove()
        assert total is not None
        (found,) = torch.autograd.grad(total, marked[place], allow_unused=True)
        reached.append(found is not None and bool(found.abs().max() > 0))
    assert embedding.requires_grad
    # With memories of 6 tokens the third segment remembers the second and half of the first.
    assert reached == {1: [False, False, True], 2: [False, False, True], 9: [True, True, True]}[backward]


@pytest.mark.parametrize("length", [1, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE, 11])
@pytest.mark.parametrize("count", [1, SIZE, 9])
def test_generation_at_and_around_the_ends_of_segments(length: int, count: int) -> None:
    text, prompt = segments(), ids(2, length)
    expected = greedily(text.model, prompt, count)
    for use_cache in (True, False):
        assert torch.equal(text.generate(prompt, count, greedy=True, use_cache=use_cache), expected)
    assert torch.equal(text.generate(prompt[0], count, greedy=True), expected[0])


def test_absolute_positions_begin_anew() -> None:
    text, prompt = Segments(absolute(), memory=MEMORY), ids(2, 6)
    slow, fast = (text.generate(prompt, 11, greedy=True, use_cache=cache) for cache in (False, True))
    assert torch.equal(slow, fast)
    memories, outs = text.begin(), []
    whole = torch.cat((prompt, fast), 1)
    for segment in whole.split(SIZE, 1):
        out, memories = text.model(segment, memories=memories)
        outs.append(out)
    assert torch.equal(torch.cat(outs, 1)[:, 5:-1].argmax(-1), fast)


def test_rows_of_unequal_length_and_ends() -> None:
    text, rows = segments(), [ids(1, n)[0] for n in (7, 4, 1, 7)]
    together = text.generate(rows, 6, greedy=True)
    alone = torch.stack([text.generate(row, 6, greedy=True) for row in rows])
    assert torch.equal(together, alone)
    eos = int(alone[0, 2])
    ended = text.generate(rows, 6, greedy=True, eos=eos)
    for row, free in zip(ended.tolist(), alone.tolist(), strict=True):
        cut = free[: free.index(eos) + 1] if eos in free else free
        assert row == (cut + [0] * 6)[: len(row)]


def test_memories_of_what_came_before() -> None:
    text, x = segments(), ids(2, 8)
    _, memories = text.model.eval()(x[:, :4], memories=text.begin())
    found = text.generate(x[:, 4:], 5, greedy=True, memories=memories)
    assert torch.equal(found, text.generate(x, 5, greedy=True))


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="give the tokens of a segment"):
        Segments(model(1))
    with pytest.raises(ConfigError, match="at least 1"):
        segments(length=-1)
    with pytest.raises(ShapeError, match="two tokens"):
        segments()(ids(2, 1))
    with pytest.raises(ShapeError, match="at least one token"):
        segments().generate(ids(1, 3)[:, :0], 2)
    with pytest.raises(ShapeError, match="one length"):
        segments().generate([ids(1, 3)[0]], 2, memories=Memories(3))
