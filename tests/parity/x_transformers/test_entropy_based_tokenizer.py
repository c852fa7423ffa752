"""`EntropyBasedTokenizer` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import pair
from tests.parity.x_transformers.test_layers import wrapped


def built(**keywords: Any) -> Any:
    def build(package: Any) -> nn.Module:
        net = wrapped("Decoder", {})(package)
        with torch.no_grad():
            net.to(torch.float64)
        file = __import__(f"{package.__name__}.entropy_based_tokenizer", fromlist=["EntropyBasedTokenizer"])
        made: nn.Module = file.EntropyBasedTokenizer(net, **keywords)
        return made

    return build


def ids(batch: int = 3, length: int = 13) -> Tensor:
    return torch.randint(0, 37, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [None, 1, 2, 3])
@pytest.mark.parametrize(
    "keywords",
    [
        {"entropy_threshold": 3.42},
        {"entropy_threshold": 9.0, "accumulate_entropy": True},
        {"entropy_threshold": 7.0, "accumulate_entropy": True, "ignore_entropy_below": 3.35},
    ],
)
def test_the_sizes_of_pieces(keywords: dict[str, Any], size: int | None) -> None:
    theirs, mine = pair(built(max_token_size=size, **keywords), prefix="")
    lens = torch.tensor([13, 7, 1])
    for seq, more in ((ids(), {}), (ids(), {"lens": lens}), (ids()[0], {})):
        expected = theirs(seq, **more)
        assert torch.equal(mine(seq, **more), expected)
        cut, expected_cut = (one(seq, return_segmented_seq=True, **more) for one in (mine, theirs))
        rows = zip(cut, expected_cut, strict=True) if seq.dim() == 2 else [(cut, expected_cut)]
        for row, expected_row in rows:
            assert [piece.tolist() for piece in row] == [piece.tolist() for piece in expected_row]
    if size is None:
        counts = theirs(ids()).ne(0).sum(1)
        assert 1 < counts.float().mean() < 13, "nothing to compare"
