import pytest
import torch

from variform.parts.position.rotary import RotaryRotation


@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize("longest", [None, 40])
def test_pairs_fade_with_the_distance(layout: str, longest: int | None) -> None:
    plain = RotaryRotation(dim_head=6, max_seq_len=longest, rotary_dim=4, layout=layout).double()  # type: ignore[arg-type]
    fading = RotaryRotation(dim_head=6, max_seq_len=longest, rotary_dim=4, layout=layout, xpos=10.0).double()  # type: ignore[arg-type]
    q, k = torch.randn(1, 1, 9, 6, dtype=torch.float64), torch.randn(1, 1, 9, 6, dtype=torch.float64)
    at = torch.tensor([0, 1, 2, 4, 5, 9, 17, 30, 39])
    turned_q, turned_k = plain(q, k, at, at)
    pairs = [(0, 1), (2, 3)] if layout == "interleaved" else [(0, 2), (1, 3)]
    expected = turned_q[..., 4:] @ turned_k[..., 4:].mT
    for place, pair in enumerate(pairs):
        z = (2 * place + 0.4 * 4) / (1.4 * 4)
        factor = z ** ((at[:, None] - at[None, :]).double() / 10)
        expected = expected + (turned_q[..., list(pair)] @ turned_k[..., list(pair)].mT) * factor
    found_q, found_k = fading(q, k, at, at)
    torch.testing.assert_close(found_q @ found_k.mT, expected)
    late_q, late_k = fading(q[:, :, 5:7], k, at[5:7].expand(1, 2), at.expand(1, 9))
    torch.testing.assert_close(late_q @ late_k.mT, expected[:, :, 5:7])
