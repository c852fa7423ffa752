"""`LatentAutoregressive` against the installed x-transformers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair
from tests.parity.x_transformers.test_layers import wrapped


@pytest.fixture(autouse=True)
def draws_in_float64() -> Iterator[None]:
    """Upstream draws in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def built(probe: bool = False, **keywords: Any) -> Any:
    def build(package: Any) -> nn.Module:
        file = __import__(f"{package.__name__}.gpt_lejepa", fromlist=["LatentAutoregressive"])
        net = wrapped("Decoder", {})(package)
        more = {"ce_probe_module": nn.Linear(24, 24)} if probe else {}
        options = {"sigreg_loss_kwargs": {"num_slices": 9, "domain": (-4, 4), "num_knots": 7}, **more, **keywords}
        made: nn.Module = file.LatentAutoregressive(net, dim=24, **options)
        return made

    return build


def ids() -> Tensor:
    found = torch.randint(0, 37, (2, 9), generator=torch.Generator().manual_seed(3))
    return found.masked_fill(torch.arange(9) >= torch.tensor([[9], [6]]), -100)


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"num_rollouts": 3, "rollout_loss_weights": (1.0, 0.5, 0.25)},
        {"predict_next_embed_no_action": True, "num_rollouts": 2, "frac_gradient": 0.3},
        {"predict_next_embed_with_action": False, "predict_next_embed_no_action": True, "detach_target": False},
        {"predict_next_cosine_sim": False, "predictor_input_hiddens_index": 0, "sigreg_loss_weight": 0.4},
        {"predictor_input_hiddens_index": None, "l2_loss_weight": 0.3},
        {"probe": True},
        {"num_rollouts": 20},
    ],
    ids=lambda keywords: "-".join(keywords) or "plain",
)
def test_losses(keywords: dict[str, Any]) -> None:
    theirs, mine = pair(built(**keywords))

    def run(model: nn.Module) -> Tensor:
        torch.manual_seed(4)
        loss, parts = model(ids(), return_loss_breakdown=True)
        return torch.stack([loss, *parts])

    agree(theirs, mine, run)


def test_the_model_answers_by_the_probe() -> None:
    theirs, mine = pair(built())
    agree(theirs, mine, lambda model: model.net(ids().clamp(min=0)))
