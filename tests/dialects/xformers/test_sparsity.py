from typing import Any

import pytest
import torch
from torch import Tensor

from variform.dialects.xformers.components import MultiHeadDispatch
from variform.dialects.xformers.components.attention import AttentionMask, ScaledDotProduct
from variform.ops.attention import Call, attention, candidates, metering, pattern
from variform.ops.masks import Dense


def served_by(run: Any) -> list[str]:
    """The backends of the attention calls that are made."""
    seen: list[str] = []
    with metering(lambda call, backend: seen.append(candidates(call, backend)[0].name)):
        run()
    return seen


def scattered(length: int, density: float) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(length, length) < density


def additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)


@pytest.mark.parametrize("form", ["bool", "numbers", "half", "additive", "AttentionMask", "rows"])
def test_a_sparse_mask_makes_scaled_dot_product_sparse(form: str) -> None:
    mask, x = scattered(600, 0.05), torch.randn(2, 600, 64)
    forms: dict[str, Any] = {
        "bool": mask,
        "numbers": mask.long(),
        "half": mask.half(),
        "additive": additive(mask),
        "AttentionMask": AttentionMask.from_bool(mask),
        "rows": mask.expand(2, -1, -1).clone(),
    }
    sdp = ScaledDotProduct()
    given = forms[form]
    assert served_by(lambda: sdp(q=x, k=x, v=x, mask=given)) == ["sparse"]
    heads = x[:, None]
    wanted = attention(Call(heads, heads, heads, mask=Dense(mask)), "reference")[:, 0]
    torch.testing.assert_close(sdp(q=x, k=x, v=x, att_mask=given), wanted, rtol=0, atol=1e-5)


def test_a_mask_with_many_pairs_stays_dense() -> None:
    x, sdp = torch.randn(2, 600, 64), ScaledDotProduct()
    mask = scattered(600, 0.9)
    assert served_by(lambda: sdp(q=x, k=x, v=x, mask=mask)) == ["sdpa"]


def test_numbers_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Any] = []
    look = pattern._look
    monkeypatch.setattr(pattern, "_look", lambda mask, *sizes: (looks.append(mask), look(mask, *sizes))[1])
    x, sdp = torch.randn(2, 600, 64), ScaledDotProduct()
    for mask in (scattered(600, 0.05).half(), additive(scattered(600, 0.05)), scattered(600, 0.05)):
        looks.clear()
        for _ in range(3):
            sdp(q=x, k=x, v=x, mask=mask)
        assert len(looks) == 1
        mask[0] = 0
        out = sdp(q=x, k=x, v=x, mask=mask)
        assert len(looks) == 2
        if mask.dtype == torch.bool:
            assert not out[:, 0].any()


def test_through_multi_head_dispatch_with_padding() -> None:
    x, mask = torch.randn(2, 600, 64), scattered(600, 0.05)
    module = MultiHeadDispatch(dim_model=64, num_heads=2, attention=ScaledDotProduct())
    padding = torch.arange(600) < torch.tensor([[600], [400]])
    assert served_by(lambda: module(x, att_mask=mask, key_padding_mask=padding)) == ["sparse"]
    short = module(x[1:, :400], att_mask=mask[:400, :400])
    torch.testing.assert_close(module(x, att_mask=mask, key_padding_mask=padding)[1:, :400], short, rtol=0, atol=1e-5)
