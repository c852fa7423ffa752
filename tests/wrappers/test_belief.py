"""Reading from both sides: turning rows, pairs, one model for both sides, models that do not go together."""

import pytest
import torch
from torch import nn

from variform.core.build import build
from variform.errors import ConfigError
from variform.models import gpt
from variform.parts.embedding.prefixed import PrefixedEmbedding
from variform.stack.model import Transformer
from variform.wrappers.belief import BeliefState, pairs_of, turned


def model(dim: int = 16) -> Transformer:
    torch.manual_seed(0)
    spec = gpt(vocab_size=7, dim=dim, depth=1, heads=2, max_seq_len=12)
    return build(spec.replace(embedding=PrefixedEmbedding.spec(embedding=spec["embedding"])))


def test_turned_rows() -> None:
    x = torch.tensor([[1, 2, 3, 0], [1, 2, 3, 4]])
    assert turned(x, torch.tensor([3, 4])).tolist() == [[3, 2, 1, 0], [4, 3, 2, 1]]
    assert turned(x).tolist() == [[0, 3, 2, 1], [4, 3, 2, 1]]


def test_pairs() -> None:
    assert pairs_of(3).tolist() == [[0, 2], [0, 3], [1, 3]]


@pytest.mark.parametrize("several", [True, False])
def test_a_model_of_the_core(several: bool) -> None:
    objective = BeliefState(model(), model() if several else None, distances=5).double()
    ids = torch.randint(0, 7, (2, 6))
    ahead, back = objective.states(ids)
    assert ahead.shape == (2, 6, 16)
    assert back.shape == (2, 7, 16)
    later = ids.clone()
    later[:, 3] = (later[:, 3] + 1) % 7
    moved_ahead, moved_back = objective.states(later)
    assert torch.equal(moved_ahead[:, :3], ahead[:, :3])
    assert torch.equal(moved_back[:, 4:], back[:, 4:])
    assert not torch.allclose(moved_back[:, 3], back[:, 3])
    objective(ids).backward()


def test_models_that_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="same dim"):
        BeliefState(model(), model(32))
    with pytest.raises(ConfigError, match="with a head"):
        BeliefState(nn.Linear(2, 2))
