"""What layers read beyond the residual stream, where upstream fails."""

from typing import Any

import pytest
import torch

from variform.dialects.x_transformers import Decoder, PrefixDecoder, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError

SMALL: dict[str, Any] = {"dim": 16, "depth": 4, "heads": 4, "attn_dim_head": 4}
IDS = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(0))


def model(**keywords: Any) -> Any:
    torch.manual_seed(0)
    layers = Decoder(**{**SMALL, **keywords})
    return TransformerWrapper(num_tokens=11, max_seq_len=8, attn_layers=layers).double().eval()


@pytest.mark.parametrize("keywords", [{"cross_attend": True}, {"macaron": True}, {"only_attn": True}, {"depth": 5}])
def test_skips_join_blocks_of_any_make(keywords: dict[str, Any]) -> None:
    built = model(unet_skips=True, **keywords)
    given = {"context": torch.randn(2, 3, 16, dtype=torch.float64)} if "cross_attend" in keywords else {}
    names = [name for name, _ in built.native.named_parameters() if "combine" in name]
    assert len(names) == 2, "each block of the second half joins one of the first"
    out = built(IDS, **given)
    out.sum().backward()
    assert all(built.native.get_parameter(name).grad.any() for name in names)
    assert torch.equal(built(IDS[:, :5], **given), built(IDS, **given)[:, :5]) or torch.allclose(
        built(IDS[:, :5], **given), out[:, :5], rtol=0, atol=1e-12
    )


def test_values_are_mixed_for_each_key_head() -> None:
    built = model(add_value_residual=True, attn_kv_heads=2)
    mixes = [p for name, p in built.native.named_parameters() if name.endswith("mix.weight")]
    assert [tuple(mix.shape) for mix in mixes] == [(2, 16)] * 3, "the first layer mixes nothing"
    built(IDS).square().sum().backward()
    assert all(mix.grad is not None and bool(mix.grad.any()) for mix in mixes)


def test_a_condition_joins_the_injected_input() -> None:
    built = model(reinject_input=True, learned_reinject_input_gate=True)
    condition = torch.randn(2, 16, dtype=torch.float64)
    assert not torch.allclose(built(IDS, in_attn_cond=condition), built(IDS))
    torch.testing.assert_close(built(IDS, in_attn_cond=0 * condition), built(IDS), rtol=0, atol=0)


@torch.no_grad()
def test_three_views_are_shifted_by_the_amount_however_many_rows_there_are() -> None:
    built = model(integrate_layers=True, shift_tokens=3)
    torch.testing.assert_close(built(IDS[:1]), built(IDS)[:1], rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_prefix_decoder_shifts_from_the_past_alone() -> None:
    layers = PrefixDecoder(**SMALL, shift_tokens=1, rotary_pos_emb=True)
    built = TransformerWrapper(num_tokens=11, max_seq_len=8, attn_layers=layers).double().eval()
    whole = built(IDS, prefix_attn_len=3)
    torch.testing.assert_close(built(IDS[:, :5], prefix_attn_len=3), whole[:, :5], rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="around a PrefixDecoder"):
        model()(IDS, prefix_attn_len=3)
    crossed = PrefixDecoder(**SMALL, cross_attend=True, only_cross=True)
    built = TransformerWrapper(num_tokens=11, max_seq_len=8, attn_layers=crossed)
    with pytest.raises(InputError, match="prefix_attn_len has no effect"):
        built(IDS, context=torch.randn(len(IDS), 4, 16), prefix_attn_len=3)
