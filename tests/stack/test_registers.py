from typing import Any

import pytest
import torch
from torch.nn import functional as F

import variform as vf
from variform.ops.masks import Dense, KeyPadding, Padding, Window
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.registers import RegisterStack
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer


def stack(side: str, causal: bool, **mixer: Any) -> Any:
    inner = LayerStack.spec(layers=[Sublayer.spec(body=MultiHead.spec(**mixer))], dim=16, heads=4, causal=causal)
    return vf.build(RegisterStack.spec(stack=inner, count=3, side=side, std=1.0), dim=16).double().eval()


@pytest.mark.parametrize("side", ["front", "back"])
@pytest.mark.parametrize("causal", [False, True])
def test_it_runs_the_stack_on_both_and_gives_x_back(side: str, causal: bool) -> None:
    part = stack(side, causal, rotation="rotary")
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    tokens = part.tokens.expand(2, -1, -1)
    whole = part.stack(torch.cat((tokens, x) if side == "front" else (x, tokens), 1), {})
    torch.testing.assert_close(part(x, {}), whole[:, 3:] if side == "front" else whole[:, :5])


@pytest.mark.parametrize("side", ["front", "back"])
def test_padding_changes_nothing(side: str) -> None:
    part = stack(side, False)
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    valid = torch.tensor([[True, True, True, False, False]])
    torch.testing.assert_close(part(x, {"valid": valid})[:, :3], part(x[:, :3], {}))


def test_given_positions_move_along() -> None:
    part = stack("front", True, rotation="rotary")
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(part(x, {"positions": torch.arange(5)}), part(x, {}))
    torch.testing.assert_close(part(x, {"positions": torch.arange(5).expand(2, 5)}), part(x, {}))
    back = stack("back", False, rotation="rotary")
    torch.testing.assert_close(back(x, {"positions": torch.arange(5)}), back(x, {}))


def test_what_says_nothing_about_added_tokens_is_refused() -> None:
    with pytest.raises(vf.ShapeError, match="segments cannot be combined with added tokens"):
        stack("front", True)(torch.zeros(1, 5, 16).double(), {"segments": torch.zeros(1, 5).long()})
    inner = LayerStack.spec(layers=[Sublayer.spec(body=MultiHead.spec())])
    plain = vf.models.llama(vocab_size=9, dim=16, depth=1, heads=4, max_seq_len=None)
    net = vf.build(vf.override(plain, {"stacks.0": RegisterStack.spec(stack=inner, count=2)}))
    with pytest.raises(vf.ShapeError, match="mask cannot be combined with added tokens and a decode state"):
        net(torch.zeros(1, 3).long(), state=net.init_state(1, 8), mask=Dense(torch.ones(3, 3, dtype=torch.bool)))


@pytest.mark.parametrize("side", ["front", "back"])
@pytest.mark.parametrize("causal", [False, True])
def test_masks_and_biases_are_of_the_tokens_or_of_both(side: str, causal: bool) -> None:
    part, pads = stack(side, causal), (3, 0, 3, 0) if side == "front" else (0, 3, 0, 3)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    allowed, bias = torch.rand(4, 5, 5) < 0.6, torch.randn(4, 5, 5, dtype=torch.float64)
    keep = torch.tensor([[True, True, False, True, True], [True] * 5])
    wide = F.pad(allowed, pads, value=True)
    found = part(x, {"mask": Dense(allowed, per="head") & KeyPadding(keep), "bias": bias})
    both = Dense(wide, per="head") & KeyPadding(F.pad(keep, pads[:2], value=True))
    torch.testing.assert_close(found, part(x, {"mask": both, "bias": F.pad(bias, pads)}))
    assert (found - part(x, {"bias": bias})).abs().max() > 1e-3
    assert (found - part(x, {"mask": both})).abs().max() > 1e-3
    lengths = Padding(torch.tensor([3, 5]))
    torch.testing.assert_close(
        part(x, {"mask": lengths}), part(x, {"valid": torch.arange(5) < lengths.lengths[:, None]})
    )
    near = torch.tensor([[abs(i - j) <= 1 for j in range(5)] for i in range(5)])
    torch.testing.assert_close(part(x, {"mask": Window(1, 1)}), part(x, {"mask": Dense(near)}))
    for stream in ({"mask": Dense(torch.ones(6, 6, dtype=torch.bool))}, {"bias": torch.zeros(6, 6)}):
        with pytest.raises(vf.ShapeError, match="nor 8 with what was added"):
            part(x, stream)


@pytest.mark.parametrize("options", [{"side": "back"}, {"keep": "added", "side": "back"}])
def test_what_stands_behind_or_is_kept_does_not_decode(options: dict[str, Any]) -> None:
    inner = LayerStack.spec(layers=[Sublayer.spec(body=MultiHead.spec())], dim=16, heads=4, causal=True)
    part = vf.build(RegisterStack.spec(stack=inner, count=3, **options), dim=16)
    with pytest.raises(vf.ConfigError, match="does not decode"):
        part.init_state(1, 9, {})


@pytest.mark.parametrize("side", ["front", "back"])
def test_added_tokens_can_be_what_is_kept(side: str) -> None:
    inner = LayerStack.spec(layers=[Sublayer.spec(body=MultiHead.spec(rotation="rotary"))], dim=16, heads=4)
    part = vf.build(RegisterStack.spec(stack=inner, count=3, side=side, keep="added"), dim=16).double().eval()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    tokens = part.tokens.expand(2, -1, -1)
    whole = part.stack(torch.cat((tokens, x) if side == "front" else (x, tokens), 1), {})
    kept, published = part(x, {"valid": torch.ones(2, 5, dtype=torch.bool)})
    torch.testing.assert_close(kept, whole[:, :3] if side == "front" else whole[:, 5:])
    assert published["valid"].shape == (2, 3)
    valid = torch.tensor([[True, True, True, False, False]])
    positions = torch.tensor([[0, 1, 2, 2, 2]])
    padded = part(x[:1], {"valid": valid, "positions": positions})
    torch.testing.assert_close(padded[0], part(x[:1, :3], {})[0])


def test_kept_tokens_must_see_the_others() -> None:
    inner = LayerStack.spec(layers=[Sublayer.spec(body=MultiHead.spec())], dim=16, heads=4, causal=True)
    with pytest.raises(vf.ConfigError, match="would not depend on them"):
        vf.build(RegisterStack.spec(stack=inner, count=3, keep="added"), dim=16, causal=True)
