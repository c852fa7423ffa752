"""A prefix that is seen both ways: by the formula, while decoding, and what is refused."""

from typing import Any

import pytest
import torch

import variform as vf
from variform.errors import ConfigError, ShapeError
from variform.parts.attention.prefix import PrefixAttention
from variform.parts.attention.softmax import LocalAttention, SoftmaxAttention
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.kinds import Sides
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

FACTS = {"dim": 6, "heads": 2, "dim_head": 3, "causal": True}
IDS = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))


def model() -> Any:
    torch.manual_seed(0)
    layers = [Sublayer.spec(body=MultiHead.spec(attention=PrefixAttention.spec(), rotation="rotary"))] * 2
    spec = Transformer.spec(
        embedding=TokenEmbedding.spec(),
        stacks=[LayerStack.spec(layers=layers)],
        dim=8,
        heads=2,
        vocab_size=11,
        causal=True,
    )
    return vf.build(spec).double().eval()


def test_the_formula() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 3, dtype=torch.float64) for _ in range(3))
    part = vf.build(PrefixAttention.spec(), **FACTS)
    for lengths in (None, torch.tensor([0, 3])):
        seen = torch.ones(2, 1, 5, 5).tril().bool()
        if lengths is not None:
            seen = seen | (torch.arange(5) < lengths.view(2, 1, 1, 1))
        expected = (q @ k.mT / 3**0.5).masked_fill(~seen, -torch.inf).softmax(-1) @ v
        found = part(q, k, v, Sides(streams={} if lengths is None else {"two_way": lengths}))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_what_follows_changes_nothing_and_decoding_is_equal() -> None:
    built, lengths = model(), torch.tensor([4, 2])
    whole = built(IDS, two_way=lengths)
    assert torch.equal(built(IDS[:, :6], two_way=lengths), whole[:, :6]) or torch.allclose(
        built(IDS[:, :6], two_way=lengths), whole[:, :6], rtol=0, atol=1e-12
    )
    state = built.init_state(2, 9)
    first, state = built(IDS[:, :5], two_way=lengths, state=state)
    outs = [first]
    for at in range(5, 9):
        out, state = built(IDS[:, at : at + 1], state=state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_prefix_whose_tokens_stand_far_from_one_another() -> None:
    """Where positions are given, they are what the prefix ends before, with a state as without."""
    built, places, ends = model(), torch.arange(9) * 2 + 3, torch.tensor([11, 7])
    whole = built(IDS, positions=places, two_way=ends)
    assert not torch.allclose(whole, built(IDS, positions=places))
    state, found = built.init_state(2, 9), []
    for chunk, own in zip(IDS.split([5, 1, 3], 1), places.split([5, 1, 3]), strict=True):
        out, state = built(chunk, positions=own, two_way=ends, state=state)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=0, atol=1e-10)
    with pytest.raises(ShapeError, match="lies in its first call"):
        built(IDS[:, :3], positions=places[:3], two_way=ends, state=built.init_state(2, 9))


@torch.no_grad()
def test_a_prefix_in_pieces_is_refused() -> None:
    built = model()
    with pytest.raises(ShapeError, match="lies in its first call"):
        built(IDS[:, :3], two_way=torch.tensor([4, 2]), state=built.init_state(2, 9))
    _, state = built(IDS[:, :3], state=built.init_state(2, 9))
    with pytest.raises(ShapeError, match="lies in its first call"):
        built(IDS[:, 3:6], two_way=torch.tensor([4, 2]), state=state)
    with pytest.raises(ShapeError, match=r"two_way is integers \[2\]"):
        built(IDS, two_way=torch.tensor([4]))


def test_attentions_with_a_structure_of_their_own_are_refused() -> None:
    for inner, message in (
        (SoftmaxAttention.spec(causal=True), "a prefix would be cut by it"),
        (LocalAttention.spec(window=3), "does not take the mask"),
        ("linear", "does not take the mask"),
    ):
        with pytest.raises(ConfigError, match=message):
            vf.resolve(PrefixAttention.spec(attention=inner), **FACTS)
