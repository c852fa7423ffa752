"""`DPO` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair
from tests.parity.x_transformers.test_layers import wrapped


def built(tied: bool = False, **keywords: Any) -> Any:
    def build(package: Any) -> nn.Module:
        dpo = __import__(f"{package.__name__}.dpo", fromlist=["DPO"]).DPO
        made: nn.Module = dpo(wrapped("Decoder", {}, tie_embedding=tied)(package), **keywords)
        return made

    return build


def ids(seed: int) -> Tensor:
    found = torch.randint(1, 37, (3, 9), generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor([[9], [6], [8]]) - seed
    return found.masked_fill(torch.arange(9) >= lengths, 0)


def moved(mask: Tensor) -> Tensor:
    """Upstream reads the mask of a token at the one before it."""
    return torch.cat((mask[:, 1:], mask[:, :1]), 1)


@pytest.mark.parametrize("keywords", [{}, {"beta": 0.5}])
def test_the_loss(keywords: dict[str, Any]) -> None:
    theirs, mine = pair(built(**keywords))
    prompt = torch.arange(9) < torch.tensor([[2], [3], [1]])
    masks = {"preferred_seq_mask": ids(0) != 0, "unpreferred_seq_mask": ids(1) != 0}

    def run(model: nn.Module) -> Tensor:
        here = (lambda mask: mask) if model is mine else moved
        given = {name: here(mask) for name, mask in masks.items()}
        loss: Tensor = model(ids(0), ids(1), prompt_mask=here(prompt), **given)
        return loss * torch.tensor([1.0, 2.0])

    agree(theirs, mine, run)


def test_padding_is_told_by_its_token() -> None:
    theirs, mine = pair(built(pad_id=0))
    prompt = torch.arange(9) < torch.tensor([[2], [3], [1]])
    masks = {"preferred_seq_mask": moved(ids(0) != 0), "unpreferred_seq_mask": moved(ids(1) != 0)}
    expected = theirs(ids(0), ids(1), prompt_mask=moved(prompt), **masks)
    torch.testing.assert_close(mine(ids(0), ids(1), prompt_mask=prompt), expected, rtol=0, atol=1e-6)


def test_the_reference_of_a_tied_model_does_not_move() -> None:
    """Upstream's copy reads the embedding of the original."""
    theirs, mine = pair(built(tied=True))
    before, others = mine.ref_model(ids(0)), theirs.ref_model(ids(0))
    for model in (theirs, mine):
        with torch.no_grad():
            for param in model.policy_model.parameters():
                param.mul_(2.0)
    assert torch.equal(mine.ref_model(ids(0)), before)
    assert not torch.allclose(theirs.ref_model(ids(0)), others)
