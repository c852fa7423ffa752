"""`MultiInputTransformerWrapper` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair, unlike
from tests.parity.x_transformers.test_layers import BASE

SIZES = {"notes": 7, "velocity": 4, "speaker": 3}


def ids(batch: int = 2, length: int = 9) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    found = {name: torch.randint(0, size, (batch, length), generator=generator) for name, size in SIZES.items()}
    return {name: found[name] for name in sorted(found)}  # in another order


def built(stack: str = "Decoder", layers: dict[str, Any] | None = None, **model: Any) -> Any:
    def build(package: Any) -> nn.Module:
        own = getattr(package, stack)(**{**BASE, **(layers or {})})
        keywords = {"num_tokens": dict(SIZES), "max_seq_len": 16, **model}
        made: nn.Module = package.MultiInputTransformerWrapper(attn_layers=own, **keywords)
        return made

    return build


def joined(answer: Any) -> Tensor:
    return answer if isinstance(answer, Tensor) else torch.cat([answer[name] for name in SIZES], -1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"emb_dim": 12},
        {"post_emb_norm": True},
        {"emb_dim": 12, "post_emb_norm": True, "emb_dropout": 0.2},
        {"num_memory_tokens": 3},
        pytest.param(
            {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 4},
            marks=unlike("a name is not imported", NameError),
            id="interspersed",
        ),
        {"return_only_embed": True},
        {"use_abs_pos_emb": False},
        {"scaled_sinu_pos_emb": True},
        {"emb_frac_gradient": 0.3},
        {"max_seq_len": 0},
        {"layers": {"rotary_pos_emb": True}},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_options(options: dict[str, Any]) -> None:
    theirs, mine = pair(built(**options))
    agree(theirs, mine, lambda model: joined(model(ids())))


def test_one_kind_of_tokens() -> None:
    theirs, mine = pair(built(num_tokens={"notes": 7}))
    agree(theirs, mine, lambda model: model({"notes": ids()["notes"]})["notes"])


@unlike("a name is not imported", NameError)
def test_what_a_call_takes_and_returns() -> None:
    theirs, mine = pair(built("Encoder"))
    mask = torch.arange(9) < torch.tensor([[6], [9]])
    front, more = (torch.randn(2, n, 24, dtype=torch.float64) for n in (4, 9))
    agree(theirs, mine, lambda model: joined(model(ids(), mask=mask)), keep=mask)
    agree(theirs, mine, lambda model: joined(model(ids(), prepend_embeds=front, sum_embeds=more)))
    for model in (theirs, mine):
        logits, hidden = model(ids(), return_logits_and_embeddings=True)
        torch.testing.assert_close(joined(logits), joined(model(ids())))
        torch.testing.assert_close(hidden, model(ids(), return_embeddings=True))
    (a, one), (b, other) = (model(ids(), return_attn=True) for model in (theirs, mine))
    torch.testing.assert_close(joined(b), joined(a), rtol=0, atol=1e-6)
    for expected, found in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    losses = [model(ids(), return_attn_z_loss=True, attn_z_loss_weight=0.1)[1].attn_z_loss for model in (theirs, mine)]
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-6)


def test_segments() -> None:
    theirs, mine = pair(built(max_mem_len=6, shift_mem_down=1, layers={"rotary_pos_emb": True}))

    def run(model: nn.Module) -> Tensor:
        first, mems = model(ids(), return_mems=True)
        second, mems = model(ids(2, 7), mems=list(mems), return_mems=True)
        return torch.cat((joined(first), joined(second), joined(model(ids(2, 7), mems=list(mems)))), 1)

    agree(theirs, mine, run)
