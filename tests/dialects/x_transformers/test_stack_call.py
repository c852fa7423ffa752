"""What a call of a stack alone may be given."""

import pytest
import torch

from variform.dialects.x_transformers import Decoder
from variform.dialects.x_transformers.errors import InputError

X, POS = torch.randn(2, 5, 16), torch.arange(5)
IDS, VECTORS = torch.zeros(2, 5, dtype=torch.long), torch.randn(9, 2, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seq_pos_offset": 2, "pos": POS}, "seq_pos_offset and pos exclude"),
        ({"seq_pos_offset": 2, "seq_start_pos": torch.tensor([0, 1])}, "seq_pos_offset and seq_start_pos exclude"),
        ({"seq_pos_offset": -1}, "at least 0, not -1"),
        ({"deep_embeds_and_ids": (VECTORS[:, :1], IDS)}, r"\[tokens, 2, 16\], a vector for each feedforward"),
        ({"deep_embeds_and_ids": (VECTORS, IDS[:, :4])}, r"integers \[2, 5\], not \[2, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, object], message: str) -> None:
    layers = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, rotary_pos_emb=True)
    with pytest.raises(InputError, match=message):
        layers(X, **given)
    torch.testing.assert_close(layers(X, seq_pos_offset=0, pos=POS), layers(X))
