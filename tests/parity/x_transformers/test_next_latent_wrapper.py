"""`NextLatentWrapper` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair, unlike
from tests.parity.x_transformers.test_layers import wrapped


def built(**keywords: Any) -> Any:
    def build(package: Any) -> nn.Module:
        net = wrapped("Decoder", {})(package)
        made: nn.Module = package.NextLatentWrapper(net, dim=net.attn_layers.dim, **keywords)
        return made

    return build


def ids() -> Tensor:
    found = torch.randint(0, 37, (2, 9), generator=torch.Generator().manual_seed(3))
    return found.masked_fill(torch.arange(9) >= torch.tensor([[9], [6]]), -100)


STEPS: list[dict[str, Any]] = [
    {},
    {"num_rollouts": 3},
    {"num_rollouts": 3, "rollout_weights": (1.0, 0.5, 0.25), "loss_type": "mse", "dynamic_loss_decay": 0.3},
    {"num_rollouts": 2, "loss_type": "mse_and_cosine_sim", "dynamic_rollout_loss_weight": False},
    {"num_rollouts": 2, "dynamics_type": "gru", "kl_loss_weight": 0.3},
    {"num_rollouts": 2, "dynamics_hidden_dim": 7, "dynamics_num_layers": 2, "next_latent_loss_weight": 0.5},
    {"num_rollouts": 2, "kl_loss_weight": 0.0},
]
WEIGHED = unlike("weights of steps are sigmoid(-decay (loss - threshold)) there")


@pytest.mark.parametrize(
    "keywords",
    [
        pytest.param(
            keywords,
            marks=WEIGHED if keywords.get("dynamic_rollout_loss_weight", True) else (),
            id="-".join(keywords) or "plain",
        )
        for keywords in STEPS
    ],
)
def test_losses(keywords: dict[str, Any]) -> None:
    theirs, mine = pair(built(**keywords))

    def run(model: nn.Module) -> Tensor:
        loss, parts = model(ids(), return_loss_breakdown=True)
        return torch.stack([loss, *(part.to(loss.dtype) for part in parts)])

    agree(theirs, mine, run)


def test_the_statistic_of_gaussians() -> None:
    theirs, mine = pair(built())
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)) * 2
    made = []
    for model in (theirs, mine):
        torch.manual_seed(2)
        made.append(model.sigreg_loss(x, num_slices=9, domain=(-4, 3), num_knots=7))
    torch.testing.assert_close(*made, rtol=0, atol=1e-6)
