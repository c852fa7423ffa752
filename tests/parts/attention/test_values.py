"""What is done to values, against formulas in float64."""

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ConfigError
from variform.parts.attention.gated import GatedAttention
from variform.parts.attention.memory import LearnedMemory
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.attention.values import ExponentialMemory, LaserAttention, NormedValues, OrthogonalValues
from variform.parts.kinds import Sides
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.mixer.projected import ProjectedAttention

FACTS = {"dim": 6, "heads": 4, "kv_heads": 2, "dim_head": 3, "causal": True}


def given(length: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 3, dtype=torch.float64) for heads in (4, 2, 2))
    return q, k, v


def weights(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.repeat_interleave(2, 1).mT / 3**0.5
    return scores.masked_fill(torch.ones(q.shape[2], q.shape[2]).triu(1).bool(), -torch.inf).softmax(-1)


def test_values_are_normed_before_they_are_attended() -> None:
    q, k, v = given()
    part = vf.build(NormedValues.spec(), **FACTS).double()
    normed = v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = weights(q, k) @ normed.repeat_interleave(2, 1)
    torch.testing.assert_close(part(q, k, v, Sides()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clamp", [None, 1.5])
def test_laser(clamp: float | None) -> None:
    q, k, v = given()
    part = vf.build(LaserAttention.spec(clamp=clamp), **FACTS).double()
    bounded = v if clamp is None else clamp * (v / clamp).tanh()
    expected = (weights(q, k) @ bounded.exp().repeat_interleave(2, 1)).log()
    torch.testing.assert_close(part(q, k, v, Sides()), expected, rtol=0, atol=1e-12)


def test_laser_exponentiates_its_memory_too() -> None:
    q, k, v = given()
    memory = ExponentialMemory.spec(memory=LearnedMemory.spec(count=2, std=1.0), clamp=2.0)
    spec = LaserAttention.spec(attention=SoftmaxAttention.spec(memory=memory), clamp=2.0)
    part = vf.build(spec, **{**FACTS, "causal": False}).double()
    learned = part.attention.memory.memory
    keys = torch.cat((learned.keys.expand(2, -1, -1, -1), k), 2)
    values = torch.cat((learned.values.expand(2, -1, -1, -1), v), 2)
    shares = (q @ keys.repeat_interleave(2, 1).mT / 3**0.5).softmax(-1)
    expected = (shares @ (2 * (values / 2).tanh()).exp().repeat_interleave(2, 1)).log()
    torch.testing.assert_close(part(q, k, v, Sides()), expected, rtol=0, atol=1e-12)


def test_values_that_are_no_exponentials_are_not_taken_for_some() -> None:
    attention = SoftmaxAttention.spec(memory=LearnedMemory.spec(count=2))
    with pytest.raises(ConfigError, match="taken for exponentials"):
        vf.build(LaserAttention.spec(attention=attention), **{**FACTS, "causal": False})


def test_laser_of_nothing_is_zero_with_finite_gradients() -> None:
    q, k, v = (x.requires_grad_() for x in given())
    part = vf.build(LaserAttention.spec(), **FACTS).double()
    valid = torch.tensor([[False] * 5, [True] * 5])
    out = part(q, k, v, Sides(k_valid=valid))
    assert not out[0].any()
    assert out[1].any()
    out.sum().backward()
    assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in (q, k, v))


@pytest.mark.parametrize("over", ["head", "token"])
def test_results_are_orthogonal_to_the_own_value_and_see_no_future(over: str) -> None:
    q, k, v = given()
    part = vf.build(OrthogonalValues.spec(over=over), **FACTS).double()
    out, own = part(q, k, v, Sides()), v.repeat_interleave(2, 1)
    attended = weights(q, k) @ own
    dims = (3,) if over == "head" else (1, 3)
    assert float((out * own).sum(dims).abs().max()) < 1e-12
    removed = attended - out  # along the own value, and nothing else
    share = (removed * own).sum(dims, keepdim=True) / own.square().sum(dims, keepdim=True)
    torch.testing.assert_close(removed, share * own, rtol=0, atol=1e-12)
    assert float(share.abs().max()) > 0.1
    changed = torch.cat((v[:, :, :3], v[:, :, 3:] + 1), 2)
    assert torch.equal(part(q, k, changed, Sides())[:, :, :3], out[:, :, :3])


def test_both_projections_stand_one_behind_the_other() -> None:
    q, k, v = given()
    both, token, head = (
        vf.build(OrthogonalValues.spec(over=over), **FACTS).double()(q, k, v, Sides())
        for over in ("both", "token", "head")
    )
    assert torch.equal(both, torch.cat((token, head), -1))
    part = vf.build(ProjectedAttention.spec(attention=OrthogonalValues.spec(over="both"), dim_head=3), dim=8, heads=2)
    assert part.output.out.weight.shape == (8, 12)
    assert part(torch.randn(2, 5, 8), {}).shape == (2, 5, 8)
    for around in (MultiHead.spec(), ProjectedAttention.spec()):
        inner = OrthogonalValues.spec(over="both")
        inner = inner if around.part is MultiHead else GatedAttention.spec(attention=inner)
        with pytest.raises(ConfigError, match="gives more features than a value has"):
            vf.resolve(around.replace(attention=inner), dim=8, heads=2)


def test_a_value_of_zero_leaves_results_as_they_are() -> None:
    q, k, v = given()
    part = vf.build(OrthogonalValues.spec(over="head"), **FACTS).double()
    v[:, :, 2] = 0
    torch.testing.assert_close(part(q, k, v, Sides())[:, :, 2], (weights(q, k) @ v.repeat_interleave(2, 1))[:, :, 2])


def test_another_sequence_has_no_value_of_a_token() -> None:
    with pytest.raises(ConfigError, match="cannot attend to another sequence"):
        vf.build(CrossMultiHead.spec(attention=OrthogonalValues.spec()), dim=8, heads=2)
