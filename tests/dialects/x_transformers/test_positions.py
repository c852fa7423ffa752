import math
from typing import Any

import pytest
import torch

from variform.dialects.x_transformers import Decoder, Encoder
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.parts.position.bias import AlibiBias
from variform.parts.position.polar import PolarRotation
from variform.parts.position.some_heads import SomeHeads

SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 4}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rotary_pos_emb": True, "polar_pos_emb": True}, "only one rotation"),
        ({"alibi_pos_bias": True, "dynamic_pos_bias": True}, "only one bias"),
        ({"rotate_num_heads": 2}, "no effect without rotary_pos_emb"),
        ({"rotary_pos_emb": True, "rotate_num_heads": 5}, "must lie in 1..heads = 4"),
        ({"rotary_pos_emb": True, "rotate_num_heads": 3, "attn_kv_heads": 2}, "a multiple of 2"),
        ({"rotary_xpos_scale_base": 100}, "no effect without rotary_xpos"),
        ({"polar_bias_uniform_init": True}, "no effect without polar_pos_emb"),
        ({"dynamic_pos_bias_norm": True}, "no effect without dynamic_pos_bias"),
        ({"dynamic_pos_bias": True, "dynamic_pos_bias_mlp_depth": 0}, "one layer at least"),
        ({"dynamic_pos_bias": True, "attn_kv_heads": (1, 2)}, "cannot share the bias"),
        ({"alibi_pos_bias": True, "rel_pos_kwargs": {"slope": [1]}}, "did you mean 'slopes'"),
        ({"alibi_pos_bias": True, "rel_pos_kwargs": {"slopes": [1.0]}}, "one slope for each of the 4"),
        ({"rel_pos_bias": True, "rel_pos_kwargs": {"num_buckets": 8}}, "rel_pos_num_buckets"),
    ],
)
def test_what_does_not_fit(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(KeywordError, match=message):
        Decoder(**SMALL, **keywords)


def test_fading_is_for_decoders() -> None:
    with pytest.raises(KeywordError, match="towards the future"):
        Encoder(**SMALL, rotary_xpos=True)


def test_buckets_of_two_directions_are_even() -> None:
    Decoder(**SMALL, rel_pos_bias=True, rel_pos_num_buckets=7)
    with pytest.raises(KeywordError, match=r"rel_pos_num_buckets: .*an even number"):
        Encoder(**SMALL, rel_pos_bias=True, rel_pos_num_buckets=7)


@torch.no_grad()
def test_xpos_goes_by_places_and_no_lengths() -> None:
    counted = {"attn_use_cope": True, "cross_attn_use_cope": False}
    layers = Decoder(**SMALL, rotary_xpos=True, rotary_xpos_scale_base=8, cross_attend=True, **counted).double()
    for name, param in layers.named_parameters():
        param.data += 0.1 * torch.randn(param.shape) * name.endswith("embedding")
    draw = torch.Generator().manual_seed(2)
    x, context = (torch.randn(2, length, 16, generator=draw, dtype=torch.float64) for length in (9, 4))
    given = {"context": context, "context_pos": torch.arange(4)}
    torch.testing.assert_close(layers(x[:, :3], **given), layers(x, **given)[:, :3], rtol=0, atol=1e-12)


def test_uniform_phases() -> None:
    layers = Decoder(**SMALL, polar_pos_emb=True, polar_bias_uniform_init=True)
    (phase,) = (part.phase.detach() for part in layers.modules() if isinstance(part, PolarRotation))
    assert -2 * math.pi <= float(phase.min()) < -1 < float(phase.max()) <= 0
    assert layers.disable_abs_pos_emb


def test_heads_are_rotated_with_the_keys_that_they_read() -> None:
    layers = Decoder(**SMALL, rotary_pos_emb=True, rotate_num_heads=2, attn_kv_heads=2)
    (part, _) = (part for part in layers.modules() if isinstance(part, SomeHeads))
    assert (part.q_heads, part.k_heads) == ([2, 3], [1])


def test_positions_of_a_context_are_asked_for_by_name() -> None:
    x, context = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    placed = Decoder(**SMALL, rotary_pos_emb=True, cross_attend=True)
    assert placed(x, context=context, context_pos=torch.arange(4)).shape == (2, 5, 16)
    for layers, given in ((Decoder(**SMALL, cross_attend=True), torch.arange(4)), (placed, torch.rand(4))):
        with pytest.raises(InputError, match="context_pos"):
            layers(x, context=context, context_pos=given)


def test_learned_slopes_begin_as_told() -> None:
    given = {"slopes": [0.5, 0.25, 0.1, 0.0], "learned": True}
    layers = Encoder(**SMALL, alibi_pos_bias=True, rel_pos_kwargs=given)
    parts = [part for part in layers.modules() if isinstance(part, AlibiBias)]
    assert all(part.slopes.requires_grad for part in parts)
    torch.testing.assert_close(parts[0].slopes.detach(), torch.tensor(given["slopes"]))
