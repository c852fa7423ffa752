"""Token shift against the formula, among padding and documents, and what it refuses."""

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ConfigError
from variform.ops.masks import Dense
from variform.parts.feedforward.mlp import MLP
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.stream_ops.token_shift import TokenShift

X = torch.randn(2, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def shifted(x: Tensor, amounts: range) -> Tensor:
    """Piece by piece, token by token; x is [L, dim]."""
    size = x.shape[-1] // len(amounts)
    y = x.clone()
    for place, by in enumerate(amounts):
        own = slice(place * size, (place + 1) * size)
        for token in range(len(x)):
            source = token - by
            y[token, own] = x[source, own] if 0 <= source < len(x) else 0.0
    return y


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("amount", [1, 2, 3])
def test_pieces_come_from_their_places(amount: int, causal: bool) -> None:
    part = vf.build(TokenShift.spec(body=MLP.spec(), amount=amount), dim=8, causal=causal).double()
    amounts = range(0 if causal else -amount, amount + 1)
    expected = torch.stack([shifted(row, amounts) for row in X])
    torch.testing.assert_close(part(X, {}), part.body(expected, {}), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_anywhere_is_passed_over_and_documents_end(causal: bool) -> None:
    part = vf.build(TokenShift.spec(body=MLP.spec(), amount=2), dim=8, causal=causal).double()
    valid = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [1, 1, 0, 1, 0, 0, 1]], dtype=torch.bool)
    segments = torch.tensor([[0, 5, 5, 5, 5, 2, 2], [1, 1, 1, 1, 1, 1, 1]])
    poisoned = X.masked_fill(~valid.unsqueeze(-1), torch.nan)
    found = part(poisoned, {"valid": valid, "segments": segments})
    for row in range(2):
        for document in segments[row][valid[row]].unique():
            own = valid[row] & (segments[row] == document)
            alone = part(X[row : row + 1, own], {})[0]
            torch.testing.assert_close(found[row, own], alone, rtol=0, atol=1e-12)


def test_a_mask_of_pairs_is_for_the_body() -> None:
    """What a mask hides is no key; the neighbour whose features a token is given stays."""
    part = vf.build(TokenShift.spec(body=MultiHead.spec(heads=2)), dim=8, causal=True).double()
    mask = Dense(torch.eye(7, dtype=torch.bool))
    moved = torch.stack([shifted(row, range(2)) for row in X])
    expected = part.body(moved, {"mask": mask})
    torch.testing.assert_close(part(X, {"mask": mask}), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(expected, part(X, {}))


def test_what_looks_ahead_does_not_decode() -> None:
    part = vf.build(TokenShift.spec(body=MLP.spec()), dim=8, causal=False)
    with pytest.raises(ConfigError, match="looks ahead"):
        part.init_state(2, 5, {})


def test_more_pieces_than_features_are_refused() -> None:
    with pytest.raises(ConfigError, match="9 pieces are cut, and there are 8 features"):
        vf.resolve(TokenShift.spec(body=MLP.spec(), amount=8), dim=8, causal=True)
