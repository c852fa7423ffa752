from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.ops.masks import Dense
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.interspersed import InterspersedStack
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

COUNT, EVERY = 2, 3


def stack(causal: bool = True, **mixer: Any) -> Any:
    torch.manual_seed(0)
    inner = LayerStack.spec(layers=[Sublayer.spec(body=MultiHead.spec(**mixer))] * 2, dim=16, heads=4, causal=causal)
    spec = InterspersedStack.spec(stack=inner, count=COUNT, every=EVERY, std=1.0)
    return vf.build(spec, dim=16, causal=causal).double().eval()


def features(length: int = 7, rows: int = 2) -> Tensor:
    return torch.randn(rows, length, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("length", [1, 3, 4, 7])
@pytest.mark.parametrize("causal", [False, True])
def test_groups_with_tokens_before_each(length: int, causal: bool) -> None:
    part = stack(causal, rotation="rotary")
    x = features(length)
    pieces: list[Tensor] = []
    for start in range(0, length, EVERY):
        pieces += [part.tokens.expand(2, -1, -1), x[:, start : start + EVERY]]
    whole = part.stack(torch.cat(pieces, 1), {})
    kept = torch.cat([one for place, one in enumerate(whole.split([p.shape[1] for p in pieces], 1)) if place % 2], 1)
    torch.testing.assert_close(part(x, {}), kept)
    torch.testing.assert_close(part(x, {"positions": torch.arange(length)}), kept)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    part = stack(rotation="rotary")
    x = features()
    lengths, valid = (7, 4), torch.zeros(2, 7, dtype=torch.bool)
    places = [slice(7 - n, 7) if side == "left" else slice(0, n) for n in lengths]
    batch = torch.full_like(x, torch.nan)
    for row, (place, count) in enumerate(zip(places, lengths, strict=True)):
        batch[row, place], valid[row, place] = x[row, :count], True
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)
    found = part(batch, {"valid": valid, "positions": positions})
    for row, (place, count) in enumerate(zip(places, lengths, strict=True)):
        torch.testing.assert_close(found[row, place], part(x[row : row + 1, :count], {})[0])


def test_no_token_sees_a_later_one() -> None:
    part = stack(rotation="rotary")
    x = features()
    changed = x.clone()
    changed[:, 4:] += 1.0
    assert torch.equal(part(changed, {})[:, :4], part(x, {})[:, :4])


def test_every_memory_gets_a_gradient() -> None:
    part = stack()
    part(features(), {}).square().sum().backward()
    assert part.tokens.grad.abs().amin(-1).min() > 0


def test_what_says_nothing_about_added_tokens_is_refused() -> None:
    with pytest.raises(vf.ShapeError, match="segments cannot be combined with added tokens"):
        stack()(features(), {"segments": torch.zeros(2, 7).long()})


@pytest.mark.parametrize("stream", ["mask", "bias"])
def test_pairs_are_of_tokens_and_memories_are_always_attended(stream: str) -> None:
    part, x = stack(), features()
    length = x.shape[1]
    rooms = part._room(length)
    order = [i for i in range(rooms) if i % (part.every + part.count) >= part.count]
    allowed = torch.rand(length, length) < 0.5
    bias = torch.randn(length, length, dtype=torch.float64)
    among = torch.ones(rooms, rooms, dtype=torch.bool)
    more = torch.zeros(rooms, rooms, dtype=torch.float64)
    grid = torch.meshgrid(torch.tensor(order), torch.tensor(order), indexing="ij")
    among[grid], more[grid] = allowed, bias
    given, both = (Dense(allowed), Dense(among)) if stream == "mask" else (bias, more)
    found = part(x, {stream: given})
    torch.testing.assert_close(found, part(x, {stream: both}))
    assert (found - part(x, {})).abs().max() > 1e-3
    valid = torch.ones(x.shape[:2], dtype=torch.bool)  # room before each token, as for rows of different lengths
    torch.testing.assert_close(part(x, {stream: given, "valid": valid}), found)
