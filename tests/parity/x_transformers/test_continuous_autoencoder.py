"""`ContinuousTransformerAutoencoder` against the installed x-transformers.

Upstream compares the answer at feature i with feature i, which it has read; what is compared here are the parts, and
the loss with its answers in the right places.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair

SIZE: dict[str, Any] = {
    "dim": 16,
    "enc_depth": 1,
    "dec_depth": 1,
    "max_seq_len": 10,
    "attn_dim_head": 8,
    "heads": 2,
    "latents_dropout_prob": 0.0,
}


def built(**keywords: Any) -> Any:
    def build(package: Any) -> nn.Module:
        file = __import__(f"{package.__name__}.continuous_autoencoder", fromlist=["ContinuousTransformerAutoencoder"])
        made: nn.Module = file.ContinuousTransformerAutoencoder(**{**SIZE, **keywords})
        return made

    return build


def features(width: int = 16) -> Tensor:
    return torch.randn(2, 7, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"dim_input": 5, "dim_latent": 6},
        {"bottleneck_type": "variational"},
        {"deterministic_bottleneck_kwargs": {"activation": nn.Tanh()}},
        {"rotary_pos_emb": True, "enc_kwargs": {"ff_glu": True}, "dec_kwargs": {"use_rmsnorm": True}},
    ],
    ids=lambda keywords: "-".join(keywords) or "plain",
)
@pytest.mark.parametrize("lens", [None, [4, 7]])
def test_latents_and_losses(keywords: dict[str, Any], lens: list[int] | None) -> None:
    theirs, mine = pair(built(**keywords))
    x = features(keywords.get("dim_input", 16))
    lengths = None if lens is None else torch.tensor(lens)

    def run(model: nn.Module) -> Tensor:
        torch.manual_seed(5)
        latents, penalty = model.encode(x, lens=lengths, return_aux_loss=True, return_unreduced_loss=True)
        torch.manual_seed(5)
        if model is mine:
            loss = model(x, lens=lengths, return_unreduced_loss=True)
        else:
            token = model.from_latent_to_prepend_token(latents)
            errors = (model.decoder(x, prepend_embeds=token)[:, :-1] - x).square().mean(-1)
            kept = torch.arange(7) < torch.tensor(lens or [7, 7]).unsqueeze(1)
            loss = (errors * kept).sum(1) / kept.sum(1) + (0.0 if penalty is None else penalty)
        return torch.cat((latents.flatten(), loss))

    agree(theirs, mine, run)
