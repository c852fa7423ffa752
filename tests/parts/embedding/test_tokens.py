"""Token embedding against its formula."""

import pytest
import torch

import variform as vf
from variform.errors import ShapeError
from variform.parts.embedding.tokens import TokenEmbedding

IDS = torch.tensor([[3, 1, 4], [1, 5, 0]])


def test_tokens_scale_positions_and_norm() -> None:
    spec = TokenEmbedding.spec(position="learned", norm="layer_norm", scale=True)
    part = vf.build(spec, vocab_size=6, dim=4, max_seq_len=9).double()
    for positions in (None, torch.tensor([[2, 3, 4], [0, 0, 8]])):
        places = torch.arange(3) if positions is None else positions
        x = part.weight[IDS] * 2.0 + part.position.weight[places]
        mean = x.mean(-1, keepdim=True)
        x = (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(part(IDS, {"positions": positions}), x, rtol=1e-10, atol=1e-10)


def test_initial_spread() -> None:
    assert vf.build(TokenEmbedding.spec(), vocab_size=100, dim=64).weight.std().item() == pytest.approx(0.02, rel=0.1)
    wide = vf.build(TokenEmbedding.spec(init_std=1.0), vocab_size=100, dim=64)
    assert wide.weight.std().item() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.tensor([[0, 6]]), r"must lie in \[0, 6\); these lie in \[0, 6\]"),
        (torch.tensor([[-1, 2]]), r"these lie in \[-1, 2\]"),
        (torch.zeros(2, 3), "integers of shape .batch, length., not torch.float32"),
        (torch.zeros(3, dtype=torch.long), r"not torch.int64 of shape \[3\]"),
        (torch.zeros(1, 2, dtype=torch.bool), "not torch.bool"),
    ],
)
def test_what_are_no_tokens(ids: torch.Tensor, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        vf.build(TokenEmbedding.spec(), vocab_size=6, dim=4)(ids, {})


def test_small_integers_are_tokens_too() -> None:
    part = vf.build(TokenEmbedding.spec(), vocab_size=6, dim=4)
    assert torch.equal(part(IDS.int(), {}), part(IDS, {}))
