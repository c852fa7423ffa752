"""`FullBandwidth` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair
from tests.parity.x_transformers.test_gpt_lejepa import draws_in_float64
from tests.parity.x_transformers.test_layers import wrapped

__all__ = ["draws_in_float64"]


def built(depth: int = 3, **keywords: Any) -> Any:
    def build(package: Any) -> nn.Module:
        try:
            file = __import__(f"{package.__name__}.full_bandwidth", fromlist=["FullBandwidth"])
        except ModuleNotFoundError:
            pytest.skip("new in 2.31")
        options = {"depth": depth, "depth_scale_residual": True, "rotary_pos_emb": True}
        net = wrapped("Decoder", options, tie_embedding=True, post_emb_norm=True)(package)
        made: nn.Module = file.FullBandwidth(net, **keywords)
        return made

    return build


def ids(batch: int = 2, length: int = 8) -> Tensor:
    return torch.randint(0, 37, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"temporal_parallel_passes": 3, "recirc_pairs": "prev", "transition": "residual"},
        {"recirc_pairs": ((3, 1), (2, 2, "gru"), (3, 2)), "transitions": {1: "linear", (3, 2): "residual_glu"}},
        {"recirc_pairs": "dense", "feedback_pass_weight": 0.3, "depth": 2},
        {"temporal_parallel_passes": 3, "dynamic_rollout_loss_weight": True, "dynamic_loss_decay": 0.3},
    ],
    ids=lambda keywords: "-".join(keywords) or "plain",
)
@pytest.mark.parametrize("training", [False, True])
def test_losses(keywords: dict[str, Any], training: bool) -> None:
    theirs, mine = (model.train(training) for model in pair(built(**keywords)))

    def run(model: nn.Module) -> Tensor:
        torch.manual_seed(4)
        loss, breakdown = model(ids(), return_loss_breakdown=True)
        return torch.stack([loss, *breakdown.all_pass_losses])

    agree(theirs, mine, run)


def test_logits_and_single_tokens() -> None:
    theirs, mine = pair(built())
    found, expected = (model(ids(), return_loss=False, return_all=True) for model in (mine, theirs))
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.all_pass_logits, expected.all_pass_logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(mine(ids()[:, :2]), theirs(ids()[:, :2]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"temporal_parallel_passes": 1},
        {"temporal_parallel_passes": 3},
        {"process_prompt": False},
        {"should_fuse_latent": lambda step: step % 2 == 0},
    ],
)
@pytest.mark.parametrize("pairs", [None, "prev"])
def test_generation(call: dict[str, Any], pairs: str | None) -> None:
    theirs, mine = pair(built(recirc_pairs=pairs))
    made = [model.generate(ids(length=3), 7, temperature=0.0, **call) for model in (theirs, mine)]
    assert torch.equal(*made)
