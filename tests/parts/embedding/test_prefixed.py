from typing import Any

import pytest
import torch

import variform as vf
from variform.core.spec import Shared, Spec
from variform.parts.embedding.placed import PlacedEmbedding
from variform.parts.embedding.prefixed import PrefixedEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.position.absolute import LearnedPosition


def prefixed(dropout: float = 0.0, **changes: Any) -> Any:
    spec = vf.models.gpt(vocab_size=11, dim=16, depth=2, heads=4, max_seq_len=9, **changes)
    return spec.replace(embedding=PrefixedEmbedding.spec(embedding=spec["embedding"], dropout=dropout))


def built(spec: Spec) -> Any:
    return vf.build(spec).double().eval()


IDS = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 1, 2]])


def front() -> torch.Tensor:
    return torch.randn(2, 3, 16, dtype=torch.float64)


def test_without_a_prefix_it_is_the_embedding() -> None:
    model = built(prefixed())
    torch.testing.assert_close(model(IDS), model(IDS, prefix=front()[:, :0]))
    assert model.vocab_size == 11


def test_tokens_see_the_prefix_and_keep_their_positions() -> None:
    model, first, second = built(prefixed()), front(), front()
    out = model(IDS, prefix=first)
    assert out.shape == (2, 9, 11)
    assert not torch.allclose(out[:, 3:], model(IDS, prefix=second)[:, 3:])
    x = model.embedding(IDS, {"prefix": first, "positions": None})
    torch.testing.assert_close(x[:, 3:], model.embedding(IDS, {"positions": None}))


def test_it_does_not_use_up_the_length() -> None:
    model = built(prefixed())
    assert model(torch.ones(1, 9, dtype=torch.long), prefix=front()[:1]).shape == (1, 12, 11)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_tokens_and_prefix_changes_nothing(side: str) -> None:
    model, prefix = built(prefixed()), front()
    alone = model(IDS[:1, :4], prefix=prefix[:1, :2])
    pads = torch.zeros(1, 2, dtype=torch.long)
    ids = torch.cat((pads, IDS[:1, :4]) if side == "left" else (IDS[:1, :4], pads), 1)
    valid = torch.ones(1, 6, dtype=torch.bool)
    valid[:, : 2 if side == "left" else None] = side != "left"
    valid[:, 4 if side == "right" else 6 :] = False
    prefix_valid = torch.tensor([[True, True, False]])
    out = model(ids, prefix=prefix[:1], prefix_valid=prefix_valid, valid=valid)
    whole = torch.cat((prefix_valid, valid), 1)
    torch.testing.assert_close(out[whole], alone[0])


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ({"prefix": torch.zeros(2, 3, 8)}, r"shape \[2, length, 16\]"),
        ({"prefix": torch.zeros(2, 16)}, r"\[batch, length, dim\]"),
        ({"prefix": torch.zeros(2, 3, 16), "prefix_valid": torch.ones(2, 4).bool()}, r"\[2, 3\]"),
        ({"prefix": torch.zeros(2, 3, 16), "segments": torch.zeros(2, 6).long()}, "belongs to no document"),
    ],
)
def test_what_does_not_fit(streams: dict[str, Any], message: str) -> None:
    with pytest.raises(vf.ShapeError, match=message):
        vf.build(prefixed())(IDS, **streams)


def test_a_prefix_belongs_to_the_first_call_with_a_state() -> None:
    model = built(prefixed())
    _, state = model(IDS, state=model.init_state(2, 9, ahead=3))
    with pytest.raises(vf.ShapeError, match="a prefix belongs to the first call"):
        model(IDS[:, :1], prefix=front(), state=state)
    with pytest.raises(vf.ShapeError, match="larger max_len"):
        model(IDS, prefix=front(), state=model.init_state(2, IDS.shape[1]))
    with pytest.raises(vf.ShapeError, match="prefix_valid was given without a prefix"):
        model(IDS, prefix_valid=torch.ones(2, 3, dtype=torch.bool), state=model.init_state(2, 9))


def test_a_prefix_is_refused_where_nothing_reads_it() -> None:
    with pytest.raises(vf.ShapeError, match="prefix was given, and no part"):
        vf.build(vf.models.gpt(vocab_size=11, dim=16, depth=1, heads=4, max_seq_len=9))(IDS, prefix=front().float())


def test_dropout_covers_the_prefix() -> None:
    model = vf.build(prefixed(dropout=0.5)).train()
    x = model.embedding(IDS, {"prefix": torch.ones(2, 3, 16), "positions": None})
    assert (x[:, :3] == 0).any()


def test_shared_tokens_with_positions_of_their_own() -> None:
    tokens = Shared("tokens", TokenEmbedding.spec(vocab_size=11, dim=4))
    specs = [PlacedEmbedding.spec(embedding=tokens, position=LearnedPosition.spec(max_seq_len=n)) for n in (5, 9)]
    short, long = (vf.build(spec, dim=4) for spec in specs)
    long.embedding = short.embedding
    ids = torch.tensor([[1, 2]])
    difference = short(ids, {}) - long(ids, {})
    torch.testing.assert_close(difference[0], short.position.weight[:2] - long.position.weight[:2])
