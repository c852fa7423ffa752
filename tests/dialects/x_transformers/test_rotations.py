"""Angles that a call gives: those of positions change nothing, mistakes, compilation."""

from typing import Any

import pytest
import torch

from variform.dialects.x_transformers import Decoder, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError


def built(**layers: Any) -> TransformerWrapper:
    torch.manual_seed(0)
    own = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, **layers)
    return TransformerWrapper(num_tokens=11, max_seq_len=16, attn_layers=own).double().eval()


IDS = torch.tensor([[1, 5, 3, 8, 2, 7]])
ROTARY = (torch.arange(6.0).double()[:, None] * 10000 ** -(torch.arange(4) / 4)).repeat_interleave(2, -1)[None]
POLAR = (torch.arange(6.0).double()[:, None] * 10000 ** -(torch.arange(8) / 8))[None]


def test_angles_of_positions_change_nothing_and_others_do() -> None:
    for model, keyword, angles, second in (
        (built(rotary_pos_emb=True, rotary_emb_dim=8), "rotary_pos_emb", ROTARY, 1.0),
        (built(polar_pos_emb=True), "polar_pos_emb", POLAR, torch.zeros(1, 1, 8)),
    ):
        expected = model(IDS)
        torch.testing.assert_close(model(IDS, **{keyword: (angles, second)}), expected, rtol=0, atol=1e-6)
        assert not torch.allclose(model(IDS, **{keyword: (2 * angles, second)}), expected, atol=1e-4)


def test_compiled_whole() -> None:
    model = built(rotary_pos_emb=True)
    compiled = torch.compile(lambda x: model(x, rotary_pos_emb=(ROTARY, 1.0)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(IDS), model(IDS, rotary_pos_emb=(ROTARY, 1.0)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("layers", "call", "message"),
    [
        ({"rotary_pos_emb": True}, {"rotary_pos_emb": ROTARY}, "a pair"),
        ({"rotary_pos_emb": True}, {"rotary_pos_emb": (ROTARY[:, :5], 1.0)}, r"\[1, 6\] are to be turned"),
        ({"rotary_pos_emb": True}, {"rotary_pos_emb": (ROTARY, 1.0), "polar_pos_emb": (POLAR, 0)}, "exclude"),
        ({"polar_pos_emb": True}, {"rotary_pos_emb": (ROTARY, 1.0)}, "another rotation"),
        ({"rotary_pos_emb": True}, {"polar_pos_emb": (POLAR, torch.zeros(1, 1, 8))}, "built with polar_pos_emb"),
        ({"polar_pos_emb": True}, {"polar_pos_emb": (POLAR, torch.zeros(3, 1, 8))}, "one for each key head"),
        ({"rotary_pos_emb": True}, {"rotary_pos_emb": (POLAR.repeat(1, 1, 3), 1.0)}, "at most a head's"),
    ],
)
def test_what_does_not_fit(layers: dict[str, Any], call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        built(**layers)(IDS, **call)


def test_caches_know_no_given_angles() -> None:
    model = built(rotary_pos_emb=True)
    _, told = model(IDS, return_intermediates=True, rotary_pos_emb=(ROTARY, 1.0))
    with pytest.raises(InputError, match="return_intermediates"):
        model(torch.cat((IDS, IDS[:, :1]), 1), cache=told)
    _, told = model(IDS, return_intermediates=True)
    with pytest.raises(InputError, match="without cache"):
        model(torch.cat((IDS, IDS[:, :1]), 1), cache=told, rotary_pos_emb=(ROTARY, 1.0))
