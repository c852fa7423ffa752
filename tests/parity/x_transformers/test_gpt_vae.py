"""`GPTVAE` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair

SIZE: dict[str, Any] = {
    "num_tokens": 11,
    "dim": 16,
    "depth": 1,
    "enc_depth": 1,
    "max_seq_len": 12,
    "attn_dim_head": 8,
    "heads": 2,
    "latents_dropout_prob": 0.0,
}


def built(**keywords: Any) -> Any:
    def build(package: Any) -> nn.Module:
        file = __import__(f"{package.__name__}.gpt_vae", fromlist=["GPTVAE"])
        made: nn.Module = file.GPTVAE(**{**SIZE, **keywords})
        return made

    return build


def ids(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"dim_latent": 5, "vae_kl_loss_weight": 0.3},
        {"vae_kl_div_floor": 0.2},
        {"rotary_pos_emb": True, "enc_kwargs": {"ff_glu": True}, "dec_kwargs": {"use_rmsnorm": True}},
        {"latents_dropout_prob": 0.6, "rotary_pos_emb": True},
    ],
    ids=lambda keywords: "-".join(keywords) or "plain",
)
def test_losses(keywords: dict[str, Any]) -> None:
    theirs, mine = pair(built(**keywords))
    theirs, mine = theirs.train(), mine.train()

    def run(model: nn.Module) -> Tensor:
        torch.manual_seed(5)
        total, parts = model(ids(), seq_for_latents=ids(2, 5), return_all_losses=True)
        return torch.stack([total, *parts])

    agree(theirs, mine, run)


@pytest.mark.parametrize(
    "call", [{}, {"seq_for_latents": ids(2, 5)}, {"latents": torch.full((16,), 0.3, dtype=torch.float64)}]
)
def test_generation(call: dict[str, Any]) -> None:
    made = []
    for model in pair(built()):
        torch.manual_seed(9)
        made.append(model.generate(ids(length=3), 5, temperature=0.0, cache_kv="latents" not in call, **call))
    assert torch.equal(*made)
