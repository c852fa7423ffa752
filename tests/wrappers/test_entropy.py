"""Cutting by entropy: each end by hand, models of the core."""

import pytest
import torch
from torch import nn

from tests.stack.test_remembering import ids, model
from variform.errors import ConfigError
from variform.wrappers.entropy import EntropyTokenizer, ends_by_size, ends_by_sum, entropies


def test_entropies() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -torch.inf, -torch.inf, -torch.inf]])
    torch.testing.assert_close(entropies(logits), torch.tensor([4.0, 1.0]).log())


def test_sums_begin_anew_after_each_end() -> None:
    amounts = torch.tensor([[1.0, 1.0, 1.0, 5.0, 0.5, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0]])
    found = ends_by_sum(amounts, 2.0)
    assert found.int().tolist() == [[0, 1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1]]


def test_pieces_have_at_most_so_many() -> None:
    ends = torch.tensor([[0, 0, 0, 1, 0, 1, 0, 0, 0]]).bool()
    assert ends_by_size(ends, 2).int().tolist() == [[0, 1, 0, 1, 0, 1, 0, 1, 0]]


def test_a_model_of_the_core() -> None:
    net = model(1)
    sizes = EntropyTokenizer(net, float(entropies(net(ids(2)).detach()).median()))(ids(2))
    assert sizes.sum(1).tolist() == [ids(2).shape[1]] * 2
    assert sizes.shape[1] > 1


class TwoSided(nn.Module):
    causal = False


def test_what_comes_is_not_seen() -> None:
    with pytest.raises(ConfigError, match="causal=True"):
        EntropyTokenizer(TwoSided(), 1.0)
