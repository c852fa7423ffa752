"""Norms of groups against their formula, in float64."""

import pytest
import torch

import variform as vf
from variform.errors import ConfigError
from variform.parts.norm.grouped import GroupedRMSNorm


def test_each_group_has_a_mean_square_of_one() -> None:
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    norm = vf.build(GroupedRMSNorm.spec(groups=3, per_head=3), dim=6).double()
    norm.weight.data.normal_()
    parts = [p / (p.square().mean(-1, keepdim=True) + 1e-6).sqrt() for p in x.split(2, -1)]
    torch.testing.assert_close(norm(x), torch.cat(parts, -1) * norm.weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("fields", "message"), [({"groups": 4}, "must divide"), ({"groups": 6}, "sign alone")])
def test_groups_that_do_not_fit_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vf.build(GroupedRMSNorm.spec(**fields), dim=6)
