import pytest
import torch

import variform as vf
from variform.parts.position.rotary import RotaryRotation
from variform.parts.position.some_heads import SomeHeads


def test_only_the_heads_that_are_named() -> None:
    rotary = RotaryRotation(dim_head=4, max_seq_len=None, xpos=9.0)
    part = SomeHeads(rotary, (3, 1), (0,), heads=4, kv_heads=2)
    q, k = torch.randn(2, 4, 5, 4), torch.randn(2, 2, 5, 4)
    turned_q, turned_k = part(q, k, None, None)
    all_q, all_k = rotary(q, k, None, None)
    for head in range(4):
        torch.testing.assert_close(turned_q[:, head], (all_q if head in (1, 3) else q)[:, head])
    torch.testing.assert_close(turned_k, torch.stack((all_k[:, 0], k[:, 1]), 1))


@pytest.mark.parametrize("wrong", [{"q_heads": (0, 4)}, {"q_heads": (1, 1)}, {"k_heads": ()}, {"rotation": "polar"}])
def test_what_does_not_fit(wrong: dict[str, object]) -> None:
    given = {"rotation": "rotary", "q_heads": (1,), "k_heads": (1,), **wrong}
    with pytest.raises(vf.ConfigError, match=f"{next(iter(wrong))}: "):
        vf.build(SomeHeads.spec(**given), heads=4, kv_heads=4, dim_head=4, max_seq_len=8)
