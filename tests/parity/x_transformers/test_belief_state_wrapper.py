"""`BeliefStateWrapper` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair
from tests.parity.x_transformers.test_layers import wrapped


def built(one: bool = False, **keywords: Any) -> Any:
    def build(package: Any) -> nn.Module:
        nets = [wrapped("Decoder", {})(package) for _ in range(1 if one else 2)]
        made: nn.Module = package.BeliefStateWrapper(*nets, **keywords)
        return made

    return build


def ids(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randint(0, 37, (batch, length), generator=torch.Generator().manual_seed(3))


def by_distance(pairs: Tensor) -> Tensor:
    return 1.0 / (pairs[:, 1] - pairs[:, 0]).double()


def by_both(pairs: Tensor) -> Tensor:
    return torch.stack((by_distance(pairs), pairs[:, 0].double()), -1)


@pytest.mark.parametrize(
    ("keywords", "weights"),
    [
        ({}, None),
        ({"one": True}, None),
        ({"train_frac_forward_backward_pairs": 0.4}, None),
        ({"pred_distance": True, "pred_distance_loss_weight": 0.3}, None),
        ({"pred_distance": True, "max_pred_distance": 4}, None),
        ({"backward_ar_loss_weight": 0.3}, None),
        ({"backward_ar_loss_weight": 0.3}, by_distance),
        ({"backward_ar_loss_weight": 0.3}, by_both),
        ({"text_head": nn.Linear(48, 74)}, None),
    ],
)
def test_the_loss(keywords: dict[str, Any], weights: Any) -> None:
    theirs, mine = pair(built(**keywords))

    def run(model: nn.Module) -> Tensor:
        torch.manual_seed(4)
        loss: Tensor = model(ids(), loss_weight_by_fb_indices=weights)
        return loss * torch.tensor([1.0, 2.0])

    agree(theirs, mine, run)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("prompt", [ids(length=3), ids()[0, :3]])
@pytest.mark.parametrize(
    "options", [{"suffix": ids(1, 4)[0]}, {}, {"decode_backwards": True}], ids=["suffix", "end", "backwards"]
)
def test_generation(prompt: Tensor, options: dict[str, Any], cached: bool) -> None:
    made = []
    for model in pair(built()):
        torch.manual_seed(2)
        made.append(model.generate_with_suffix_cond(prompt, 5, temperature=0.0, cache_kv=cached, **options))
    assert torch.equal(*made)
