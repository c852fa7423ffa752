import pytest
import torch

from variform.ops.drop_tokens import drop_tokens


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.9])
def test_a_part_of_the_real_tokens_is_kept(rate: float) -> None:
    torch.manual_seed(0)
    length, counts = 12, torch.tensor([12, 7, 1])
    x = torch.arange(1, length + 1).double().expand(3, length).unsqueeze(-1)
    valid = torch.arange(length) < counts.unsqueeze(1)
    kept, seen = drop_tokens(x, valid, rate)
    assert seen is not None
    assert kept.shape[1] == max(1, int(length * (1 - rate)))
    for row, count in enumerate(counts.tolist()):
        tokens = kept[row, seen[row], 0].tolist()
        assert len(set(tokens)) == len(tokens) == min(-(-count * (1 - rate) // 1), kept.shape[1])
        assert max(tokens) <= count


def test_every_token_is_kept_as_often() -> None:
    torch.manual_seed(0)
    x = torch.arange(8).double().expand(4000, 8).unsqueeze(-1)
    kept, seen = drop_tokens(x, None, 0.5)
    assert seen is None
    counts = kept.flatten().long().bincount(minlength=8) / 4000
    torch.testing.assert_close(counts, torch.full((8,), 0.5), rtol=0, atol=0.03)
