"""Masks and biases of pairs beside memory tokens, memories and learned keys, against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.parity.x_transformers.harness import agree, pair
from tests.parity.x_transformers.test_layers import tokens, wrapped

LENGTH, BEHIND = 8, 5
OPTIONS: list[dict[str, Any]] = [{}, {"rotary_pos_emb": True, "attn_flash": True}, {"attn_pre_talking_heads": True}]


def pairs(*sizes: int) -> Tensor:
    """A drawn mask in which every token sees itself and the first."""
    mask = torch.rand(*sizes, generator=torch.Generator().manual_seed(6)) < 0.6
    mask[..., 0] = True
    return mask | torch.eye(sizes[-1], dtype=torch.bool)[-sizes[-2] :]


def floats(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def memories() -> list[Tensor]:
    return list(floats(2, 2, BEHIND, 24))


def keys(length: int) -> Tensor:
    """Keys that may be attended, the first of a row always."""
    mask = torch.rand(2, length, generator=torch.Generator().manual_seed(8)) < 0.7
    return mask.index_fill(1, torch.tensor([0]), True)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda given: "-".join(given) or "plain")
@pytest.mark.parametrize("stack", ["Decoder", "Encoder"])
@pytest.mark.parametrize(
    "given",
    [
        {"attn_mask": pairs(LENGTH + 2, LENGTH + 2)},
        {"attn_mask": pairs(4, LENGTH + 2, LENGTH + 2)},
        {"attn_mask": pairs(2, 4, LENGTH + 2, LENGTH + 2), "self_attn_kv_mask": keys(LENGTH + 2)},
        {"self_attn_kv_mask": keys(LENGTH + 2)},
        {"attn_bias": floats(4, LENGTH + 2, LENGTH + 2)},
    ],
    ids=["pairs", "heads", "rows", "keys", "bias"],
)
def test_memory_tokens_among_the_pairs(stack: str, options: dict[str, Any], given: dict[str, Tensor]) -> None:
    theirs, mine = pair(wrapped(stack, options, num_memory_tokens=2))
    agree(theirs, mine, lambda net: net(tokens(2, LENGTH), **given))


@pytest.mark.parametrize("given", [{"attn_mask": pairs(12, 12)}, {"self_attn_kv_mask": keys(12)}], ids="-".join)
def test_interspersed_memory_tokens_among_the_pairs(given: dict[str, Tensor]) -> None:
    model = {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 4}
    theirs, mine = pair(wrapped("Decoder", {"rotary_pos_emb": True}, **model))
    agree(theirs, mine, lambda net: net(tokens(2, LENGTH), **given))


@pytest.mark.parametrize("side", ["attn_mask", "self_attn_kv_mask", "attn_bias"])
@pytest.mark.parametrize("padded", [False, True])
def test_pairs_of_tokens_leave_memory_tokens_alone(side: str, padded: bool) -> None:
    theirs, mine = pair(wrapped("Encoder", {}, num_memory_tokens=2))
    given = {
        "attn_mask": pairs(2, 4, LENGTH, LENGTH),
        "self_attn_kv_mask": keys(LENGTH),
        "attn_bias": floats(4, LENGTH, LENGTH),
    }[side]
    wide = F.pad(given, (2, 0) if given.dim() == 2 else (2, 0, 2, 0), value=side != "attn_bias")
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [5]]) if padded else None
    if padded and side == "self_attn_kv_mask":  # which takes the place of the mask there
        wide = wide & F.pad(mask, (2, 0), value=True)

    def run(net: nn.Module) -> Tensor:
        logits: Tensor = net(tokens(2, LENGTH), **{side: wide if net is theirs else given}, mask=mask)
        return logits

    agree(theirs, mine, run, keep=mask)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda given: "-".join(given) or "plain")
@pytest.mark.parametrize("stack", ["Decoder", "Encoder"])
@pytest.mark.parametrize(
    "given",
    [
        {"attn_mask": pairs(LENGTH, BEHIND + LENGTH)},
        {"attn_mask": pairs(4, LENGTH, BEHIND + LENGTH)},
        {"self_attn_kv_mask": keys(BEHIND + LENGTH)},
        {"attn_bias": floats(4, LENGTH, BEHIND + LENGTH)},
        {"mem_masks": [keys(BEHIND), ~keys(BEHIND)]},
        {"mem_masks": [None, keys(BEHIND)]},
    ],
    ids=["pairs", "heads", "keys", "bias", "masks", "one mask"],
)
def test_pairs_reach_memories(stack: str, options: dict[str, Any], given: dict[str, Any]) -> None:
    theirs, mine = pair(wrapped(stack, options, max_mem_len=4))
    agree(theirs, mine, lambda net: net(tokens(2, LENGTH), mems=memories(), **given))


@pytest.mark.parametrize("side", ["attn_mask", "attn_bias"])
def test_pairs_leave_learned_keys_alone(side: str) -> None:
    theirs, mine = pair(wrapped("Decoder", {"attn_num_mem_kv": 3}, num_memory_tokens=2))
    given = {"attn_mask": pairs(4, LENGTH, LENGTH), "attn_bias": floats(4, LENGTH, LENGTH)}[side]
    wide = F.pad(given, (3 + 2, 0, 2, 0), value=side == "attn_mask")

    def run(net: nn.Module) -> Tensor:
        logits: Tensor = net(tokens(2, LENGTH), **{side: wide if net is theirs else given})
        return logits

    agree(theirs, mine, run)


def test_masks_of_keys_hide_together() -> None:
    theirs, mine = pair(wrapped("Encoder", {}, max_mem_len=4))
    real, some, kept = torch.arange(LENGTH) < torch.tensor([[LENGTH], [5]]), keys(BEHIND), keys(BEHIND + LENGTH)
    given = {"mask": real, "mem_masks": [some, some]}

    def run(net: nn.Module) -> Tensor:
        x, mems = tokens(2, LENGTH), memories()
        if net is mine:
            return net(x, mems=mems, self_attn_kv_mask=kept, **given)  # type: ignore[no-any-return]
        return net(x, mems=mems, self_attn_kv_mask=kept & torch.cat((some, real), 1))  # type: ignore[no-any-return]

    agree(theirs, mine, run, keep=real)
