"""`XValTransformerWrapper` and `XValAutoregressiveWrapper` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair, unlike
from tests.parity.x_transformers.test_layers import BASE, tied

NUMBER = 3


def sample(batch: int = 2, length: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 11, (batch, length), generator=generator)
    ids[:, ::3] = NUMBER
    numbers = torch.randn(batch, length, dtype=torch.float64, generator=generator)
    return ids, torch.where(ids == NUMBER, numbers, torch.nan)


def built(stack: str = "Decoder", layers: dict[str, Any] | None = None, **model: Any) -> Any:
    def build(package: Any) -> nn.Module:
        own = getattr(package, stack)(**{**BASE, **(layers or {})})
        if model.get("tie_embedding"):
            model.update(tied(package))
        keywords = {"num_tokens": 11, "max_seq_len": 16, "numerical_token_id": NUMBER, **model}
        made: nn.Module = package.XValTransformerWrapper(attn_layers=own, **keywords)
        return made

    return build


def both(answer: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat((answer[0], answer[1].unsqueeze(-1)), -1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"logits_dim": 7},
        {"emb_dim": 24},
        {"tie_embedding": True},
        {"use_abs_pos_emb": False},
        {"num_memory_tokens": 3},
        {"scaled_sinu_pos_emb": True},
        {"emb_dropout": 0.2},
        {"layers": {"rotary_pos_emb": True, "use_rmsnorm": True}},
    ],
)
def test_options(options: dict[str, Any]) -> None:
    theirs, mine = pair(built(**options))
    ids, numbers = sample()
    agree(theirs, mine, lambda model: both(model(ids, numbers)))
    expected, found = (model(ids, numbers, return_embeddings=True) for model in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@unlike("a name is not imported", NameError)
def test_masks_and_features_in_front() -> None:
    theirs, mine = pair(built("Encoder", num_memory_tokens=2))
    ids, numbers = sample()
    mask = torch.arange(9) < torch.tensor([[6], [9]])
    agree(theirs, mine, lambda model: both(model(ids, numbers, mask=mask)), keep=mask)
    theirs, mine = pair(built())
    front = torch.randn(2, 4, 24, dtype=torch.float64)
    agree(theirs, mine, lambda model: both(model(ids, numbers, prepend_embeds=front)))


def wrapped(loss: dict[str, Any] | None = None, **model: Any) -> Any:
    def build(package: Any) -> nn.Module:
        made: nn.Module = package.XValAutoregressiveWrapper(built(**model)(package), **(loss or {}))
        return made

    return build


@pytest.mark.parametrize("loss", [{}, {"numerical_loss_weight": 0.3}])
@pytest.mark.parametrize("masked", [False, pytest.param(True, marks=unlike("masks of two lengths", RuntimeError))])
def test_losses(loss: dict[str, Any], masked: bool) -> None:
    theirs, mine = pair(wrapped(loss))
    ids, numbers = sample()
    call = {"mask": torch.arange(9) < torch.tensor([[6], [9]])} if masked else {}

    def run(model: nn.Module) -> Tensor:
        total, parts = model(ids, numbers, return_loss_breakdown=True, **call)
        kept = call["mask"][:, 1:] if masked else torch.ones(2, 8, dtype=torch.bool)
        return torch.cat((total.reshape(1), parts.cross_entropy_loss[kept], parts.numerical_mse_loss[kept]))

    agree(theirs, mine, run)
    torch.testing.assert_close(mine(ids, numbers, **call), run(mine)[0])


@pytest.mark.parametrize(
    "options", [{}, {"num_memory_tokens": 2}, {"max_seq_len": 6}, {"layers": {"rotary_pos_emb": True}}]
)
@pytest.mark.parametrize("call", [{}, {"temperature": 0.7, "filter_kwargs": {"k": 4}}])
def test_generation(options: dict[str, Any], call: dict[str, Any]) -> None:
    theirs, mine = pair(wrapped(**options))
    ids, numbers = sample(length=4)
    made = []
    for model in (theirs, mine):
        torch.manual_seed(7)
        made.append(model.generate(ids, numbers, 8, **call))
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6, equal_nan=True)
