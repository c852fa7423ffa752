"""`EntropyBasedTokenizer`: padding, modes, errors, copies."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from variform.dialects.x_transformers import Decoder, Encoder, EntropyBasedTokenizer, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

SIZE: dict[str, Any] = {"dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}


def model(layers: Any = Decoder, **keywords: Any) -> EntropyBasedTokenizer:
    torch.manual_seed(0)
    net = TransformerWrapper(num_tokens=9, max_seq_len=16, attn_layers=layers(**SIZE), tie_embedding=True)
    for param in net.parameters():
        torch.nn.init.normal_(param, std=0.4)
    return EntropyBasedTokenizer(net, **{"entropy_threshold": 1.7, **keywords})


def ids(batch: int = 2, length: int = 11) -> Tensor:
    return torch.randint(0, 9, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("more", [{}, {"accumulate_entropy": True, "entropy_threshold": 4.0}, {"max_token_size": 2}])
def test_padding_changes_nothing(more: dict[str, Any]) -> None:
    cut = model(**more)
    alone = cut(ids()[:1, :7])
    padded = cut(ids(), lens=torch.tensor([7, 11]))[0]
    assert torch.equal(padded[: alone.shape[1]], alone[0])
    assert not padded[alone.shape[1] :].any()
    assert padded.sum() == 7


def test_the_mode_of_the_decoder_is_kept() -> None:
    cut = model().train()
    cut(ids())
    assert cut.decoder.training


def test_an_empty_row_has_no_pieces() -> None:
    rows = model()(ids(), lens=torch.tensor([0, 11]), return_segmented_seq=True)
    assert rows[0] == ()
    assert torch.equal(torch.cat(rows[1]), ids()[1])


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"entropy_treshold": 1.0}, "entropy_threshold"),
        ({"layers": Encoder}, "layers that see it"),
        ({"ignore_entropy_below": 0.5}, "no effect"),
        ({"accumulate_entropy": True, "ignore_entropy_below": 5.0}, "above the threshold"),
        ({"max_token_size": 0}, "positive"),
    ],
)
def test_keywords_are_checked(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        model(**keywords)


def test_calls_are_checked() -> None:
    with pytest.raises(InputError, match="one length a row"):
        model()(ids(), lens=torch.tensor([3]))
    with pytest.raises(InputError, match="at least one"):
        model()(ids()[:, :0])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda cut: pickle.loads(pickle.dumps(cut))])
def test_copies_and_weights(again: Any) -> None:
    cut = model()
    before, twin, tensors = cut(ids()), again(cut), to_x_transformers(cut)
    with torch.no_grad():
        for param in cut.parameters():
            param.zero_()
    assert torch.equal(twin(ids()), before)
    load_x_transformers(cut, tensors)
    assert torch.equal(cut(ids()), before)
