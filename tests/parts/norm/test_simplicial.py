"""Features as points on simplices."""

import pytest
import torch

import variform as vf
from variform.parts.norm.simplicial import SimplicialNorm


def test_each_chunk_is_a_softmax() -> None:
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    before = x.clone()
    y = vf.build(SimplicialNorm.spec(chunks=3, temperature=0.5, dim=12))(x)
    expected = torch.cat([(chunk / 0.5).softmax(-1) for chunk in x.split(4, -1)], -1)
    torch.testing.assert_close(y, expected)
    assert torch.equal(x, before)


def test_chunks_divide_the_features() -> None:
    with pytest.raises(vf.ConfigError, match=r"chunks: must divide dim = 12 .*4 or 6"):
        vf.build(SimplicialNorm.spec(chunks=5, dim=12))
