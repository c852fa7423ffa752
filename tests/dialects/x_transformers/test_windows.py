"""Limits on the past where they are no window of a decoder: over contexts, under padding."""

from typing import Any

import pytest
import torch
from torch import Tensor

from variform.dialects.x_transformers import Attention, CrossAttender, Decoder, Encoder, TransformerWrapper

SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}


def model(stack: Any, **keywords: Any) -> Any:
    torch.manual_seed(0)
    layers = stack(**SMALL, **keywords)
    return TransformerWrapper(num_tokens=11, max_seq_len=16, attn_layers=layers).double().eval()


def drawn(rows: int = 2, length: int = 9) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 11, (rows, length), generator=draw), torch.randn(
        rows, 12, 16, generator=draw, dtype=torch.float64
    )


@torch.no_grad()
def test_a_limit_on_a_context_does_not_know_how_many_tokens_follow() -> None:
    built, (ids, context) = model(Decoder, cross_attend=True, cross_attn_max_attend_past=2), drawn()
    whole = built(ids, context=context)
    torch.testing.assert_close(built(ids[:, :5], context=context), whole[:, :5], rtol=0, atol=1e-12)
    cache = None
    for end in range(1, 10):
        found, cache = built(ids[:, :end], context=context, return_intermediates=True, cache=cache)
        torch.testing.assert_close(found[:, -1], whole[:, end - 1], rtol=0, atol=1e-10)
    changed = built(ids, context=torch.cat((context[:, :3] + 1, context[:, 3:]), 1))
    assert not torch.equal(changed[:, 4], whole[:, 4])  # it sees the places 2, 3, 4 and all after them


@pytest.mark.parametrize("stack", [Encoder, CrossAttender, Decoder])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_of_either_sequence_is_not_counted(stack: Any, side: str) -> None:
    across = {} if stack is CrossAttender else {"cross_attend": True}
    built, (ids, context) = model(stack, attn_max_attend_past=3, **across), drawn()
    mask, seen = torch.ones(2, 9, dtype=torch.bool), torch.ones(2, 12, dtype=torch.bool)
    mask[1, 6:] = False
    kept = slice(0, 8) if side == "right" else slice(4, 12)
    seen[1] = False
    seen[1, kept] = True
    together = built(ids, context=context, mask=mask, context_mask=seen)
    torch.testing.assert_close(together[1:, :6], built(ids[1:, :6], context=context[1:, kept]), rtol=0, atol=1e-12)
    torch.testing.assert_close(together[:1], built(ids[:1], context=context[:1]), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_call_that_is_not_causal_limits_the_past_as_layers_that_are_not() -> None:
    decoder, (ids, _) = model(Decoder, attn_max_attend_past=2, rotary_pos_emb=True), drawn()
    encoder = model(Encoder, attn_max_attend_past=2, rotary_pos_emb=True)
    encoder.load_state_dict(decoder.state_dict(), strict=False)
    torch.testing.assert_close(decoder(ids, causal=False), encoder(ids), rtol=0, atol=1e-12)
    torch.testing.assert_close(encoder(ids, causal=True), decoder(ids), rtol=0, atol=1e-12)


@torch.no_grad()
def test_an_attention_by_itself_ends_with_its_context() -> None:
    torch.manual_seed(0)
    attention = Attention(16, heads=2, dim_head=8, max_attend_past=2).double()
    x, context = torch.randn(1, 4, 16).double(), torch.randn(1, 9, 16).double()
    far = torch.cat((context[:, :3] + 1, context[:, 3:]), 1)
    assert torch.equal(attention(x, context=far), attention(x, context=context))  # the first query stands at 5
    near = torch.cat((context[:, :4] + 1, context[:, 4:]), 1)
    assert not torch.equal(attention(x, context=near)[:, 0], attention(x, context=context)[:, 0])
    assert torch.equal(attention(x, context=near)[:, 1:], attention(x, context=context)[:, 1:])
