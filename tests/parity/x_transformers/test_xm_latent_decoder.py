"""`XMLatentDecoder` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair, unlike
from tests.parity.x_transformers.test_gpt_lejepa import draws_in_float64
from tests.parity.x_transformers.test_layers import wrapped

__all__ = ["draws_in_float64"]


def built(**keywords: Any) -> Any:
    def build(package: Any) -> nn.Module:
        file = __import__(f"{package.__name__}.xm_latent_decoder", fromlist=["XMLatentDecoder"])
        made: nn.Module = file.XMLatentDecoder(wrapped("Decoder", {})(package), **{"num_latents": 2, **keywords})
        return made

    return build


def ids(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randint(0, 37, (batch, length), generator=torch.Generator().manual_seed(3))


def worst(losses: Tensor) -> Tensor:
    return losses.argmax(-1)


def surest(losses: Tensor, told: Any) -> Tensor:
    scores: Tensor = told.logits.amax(-1).mean(-1)
    return scores


OTHER = unlike("no choice of the latent that is explored, and candidates have all of theirs", Exception)


@OTHER
@pytest.mark.parametrize(
    ("keywords", "call"),
    [
        ({}, {}),
        ({"dim": 24, "latent_dim": 5, "candidates": 3}, {}),
        ({"always_latent_proj": True, "candidates": 1}, {}),
        ({"repulsive_loss_weight": 0.3}, {"candidates": 3}),
        ({"max_batch_size": 3}, {"repulsive_loss_weight": 0.2}),
        ({"winner_fn": worst}, {}),
        ({"winner_fns": [worst, surest]}, {}),
        ({}, {"winner_fn": surest}),
        ({"dim": 24, "latent_dim": 5}, {"latents": torch.ones(2, 2, 5, dtype=torch.float64)}),
        ({"dim": 24, "latent_dim": 5}, {"latents": [None, torch.ones(2, 5, dtype=torch.float64)]}),
        ({}, {"mask": torch.arange(7) < torch.tensor([[7], [5]])}),
    ],
)
def test_the_loss(keywords: dict[str, Any], call: dict[str, Any]) -> None:
    theirs, mine = pair(built(**keywords))

    def run(model: nn.Module) -> Tensor:
        losses = []
        for place in (0, 1):
            torch.manual_seed(4)
            losses.append(model(ids(), active_latent_index=place, **call))
        return torch.stack(losses)

    agree(theirs, mine, run)


def by_logits(logits: Tensor) -> Tensor:
    scores: Tensor = logits.amax(-1).mean(-1)
    return scores


@OTHER
@pytest.mark.parametrize("several", [True, False])
def test_generation_behind_the_best_latents(several: bool) -> None:
    found = []
    for model in pair(built(candidates=3)):
        torch.manual_seed(5)
        fns = {"winner_fns": [by_logits, by_logits]} if several else {"winner_fn": by_logits}
        options = {"temperature": 0.0} if model.__module__.startswith("variform") else {}  # upstream's call takes none
        _, (latents, winners) = model.generate_with_candidate_latents(
            ids(length=3), 4, return_best_latents=True, **fns, **options
        )
        found.append((latents, winners, model.generate(ids(length=3), 4, latents=latents[:, 0], temperature=0.0)))
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)
