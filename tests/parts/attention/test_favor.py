"""FAVOR as a part: its fields, its buffers, redraws, and models that hold it."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.parts.attention.decoders import decoder, generates_as_uncached, learns
from variform.parts.attention.favor import FavorAttention
from variform.parts.attention.random_features import RandomFeatures, default_count
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.kinds import Sides


def qkv(length: int = 12, dim: int = 8) -> list[Tensor]:
    return [torch.randn(2, 3, length, dim) for _ in range(3)]


def favor(**fields: Any) -> Any:
    torch.manual_seed(0)
    return FavorAttention(**{"dim_head": 8, "causal": False, **fields})


@pytest.mark.parametrize("feature_map", ["sm_orf", "sm_hyp", "sm_reg"])
@pytest.mark.parametrize("causal", [False, True])
def test_more_features_come_closer_to_the_softmax(feature_map: str, causal: bool) -> None:
    torch.manual_seed(1)
    q, k, v = (0.5 * t for t in qkv(40))
    exact = SoftmaxAttention(causal=causal)(q, k, v, Sides())
    assert isinstance(exact, Tensor)
    errors = []
    for count in (8, 4096):
        found = favor(dim_features=count, feature_map=feature_map, causal=causal)(q, k, v, Sides())
        errors.append(float((found - exact).square().mean() / exact.square().mean()))
    assert errors[1] < 0.02  # the regularised softmax stays a little apart
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize(
    "change",
    [
        {"dim_features": 6},
        {"feature_map": "sm_orf"},
        {"feature_map": "sm_hyp"},
        {"normalize_inputs": True},
        {"epsilon": 0.1},
        {"causal": True},
    ],
)
def test_every_field_changes_the_output(change: dict[str, Any]) -> None:
    q, k, v = qkv()
    assert not torch.allclose(favor(**change)(q, k, v, Sides()), favor()(q, k, v, Sides()), atol=1e-4)


def test_dropout_is_of_the_output_in_training() -> None:
    q, k, v = qkv()
    part = favor(dropout=0.5)
    whole = part.eval()(q, k, v, Sides())
    dropped = part.train()(q, k, v, Sides())
    gone = dropped == 0
    assert 0.3 < gone.float().mean() < 0.7
    torch.testing.assert_close(dropped[~gone], 2 * whole[~gone])


@pytest.mark.parametrize(("dim", "count"), [(8, 32), (16, 80), (12, 56), (64, 448), (1, 2)])
def test_the_default_number_of_features(dim: int, count: int) -> None:
    assert default_count(dim) == count
    assert RandomFeatures(dim)(torch.randn(3, dim))[0][0].shape == (3, count)
    assert RandomFeatures(dim, 5, "sm_hyp").count == 6  # pairs
    assert RandomFeatures(dim, 5, "sm_orf").count == 5


def test_normalised_inputs_bound_the_features() -> None:
    q, k, v = qkv()
    part = favor(normalize_inputs=True)
    torch.testing.assert_close(part(100 * q, 0.01 * k, v, Sides()), part(q, k, v, Sides()), rtol=1e-3, atol=1e-4)


# ---- redraws ----


def drawn_over(part: Any, calls: int) -> list[Tensor]:
    q, k, v = qkv()
    seen = []
    for _ in range(calls):
        part(q, k, v, Sides())
        seen.append(part.feature_map.features.clone())
    return seen


def test_features_are_drawn_anew_every_so_many_training_calls() -> None:
    part = favor(iter_before_redraw=3).train()
    seen = drawn_over(part, 8)
    new = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert new == [False, False, True, False, False, True, False]  # one call counts once, not once for q and k
    assert int(part.feature_map.calls) == 8
    assert (seen[3] - seen[2]).abs().max() > 0.1


def test_eval_neither_draws_nor_counts() -> None:
    part = favor(iter_before_redraw=1).eval()
    seen = drawn_over(part, 4)
    assert all(torch.equal(features, seen[0]) for features in seen)
    assert int(part.feature_map.calls) == 0
    kept = favor().train()
    assert torch.equal(*drawn_over(kept, 2))


def test_a_reloaded_part_goes_on_as_the_saved_one_would() -> None:
    part = favor(iter_before_redraw=2).train()
    drawn_over(part, 3)
    saved = copy.deepcopy(part.state_dict())
    assert set(saved) == {"feature_map.features", "feature_map.calls"}
    torch.manual_seed(5)
    other = FavorAttention(dim_head=8, iter_before_redraw=2, causal=False).train()
    other.load_state_dict(saved)
    copied = copy.deepcopy(part)
    wanted = drawn_over(part, 5)
    torch.manual_seed(6)
    for one in (other, copied):
        assert all(torch.equal(a, b) for a, b in zip(drawn_over(one, 5), wanted, strict=True))


def test_a_draw_leaves_the_generator_alone() -> None:
    part = favor(iter_before_redraw=1).train()
    q, k, v = qkv()
    part(q, k, v, Sides())
    before = torch.get_rng_state()
    part(q, k, v, Sides())
    assert torch.equal(torch.get_rng_state(), before)


def test_an_older_graph_keeps_its_features() -> None:
    """Two calls with a draw between them, then both backward passes."""
    part = favor(iter_before_redraw=1).train()
    q, k, v = qkv()
    q.requires_grad_()
    first = part(q, k, v, Sides())
    (wanted,) = torch.autograd.grad(first.sum(), q, retain_graph=True)
    part(q, k, v, Sides())
    (found,) = torch.autograd.grad(first.sum(), q)
    assert torch.equal(found, wanted)


def test_a_call_that_is_computed_again_is_no_other_call() -> None:
    models = [decoder({"part": "favor", "iter_before_redraw": 1}, executor=e).train() for e in ("plain", "checkpoint")]
    ids = torch.randint(0, 11, (2, 9))
    for step in range(3):
        grads = []
        for model in models:
            model.zero_grad()
            model(ids).square().mean().backward()
            grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
            counts = [int(b) for name, b in model.named_buffers() if name.endswith("calls")]
            assert counts == [step + 1] * 2
        for name, wanted in grads[0].items():
            torch.testing.assert_close(grads[1][name], wanted, rtol=1e-9, atol=1e-12, msg=name)


def test_a_shared_layer_is_computed_again_with_the_features_of_each_use() -> None:
    grads = []
    for executor in ("plain", "checkpoint"):
        spec = decoder({"part": "favor", "iter_before_redraw": 1}, executor=executor).spec
        layer = vf.Shared("layer", spec["stacks"][0]["layers"][0])
        torch.manual_seed(0)
        model = vf.build(spec.replace(stacks=(spec["stacks"][0].replace(layers=(layer,) * 3),))).double().train()
        loss = sum(model(ids).square().mean() for ids in torch.arange(36).view(2, 2, 9) % 31)
        loss.backward()  # type: ignore[union-attr]
        grads.append([p.grad for p in model.parameters()])
        assert [int(b) for name, b in model.named_buffers() if name.endswith("calls")] == [6]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_draws_in_a_compiled_model() -> None:
    torch._dynamo.reset()
    plain = favor(iter_before_redraw=2).train()
    compiled = torch.compile(copy.deepcopy(plain), fullgraph=True, backend="aot_eager")
    q, k, v = qkv()
    for _ in range(5):
        torch.testing.assert_close(compiled(q, k, v, Sides()), plain(q, k, v, Sides()))
    assert int(compiled.feature_map.calls) == 5
    assert torch.equal(compiled.feature_map.features, plain.feature_map.features)


def test_the_size_of_a_head_may_come_with_the_first_call() -> None:
    part = FavorAttention(dim_head=None, causal=False)
    q, k, v = qkv()
    out = part(q, k, v, Sides())
    assert part.feature_map.features.shape == (8, 16)
    other = FavorAttention(dim_head=None, causal=False)
    other.load_state_dict(part.state_dict())
    assert torch.equal(other(q, k, v, Sides()), out)  # type: ignore[arg-type]
    with pytest.raises(vf.ShapeError, match="drawn for 8 features"):
        part(*qkv(dim=4), Sides())


# ---- models ----


@pytest.mark.parametrize("feature_map", ["sm_orf", "sm_hyp", "sm_reg"])
def test_a_decoder_generates_as_it_computes(feature_map: str) -> None:
    generates_as_uncached({"part": "favor", "feature_map": feature_map})


def test_a_decoder_learns() -> None:
    learns({"part": "favor", "iter_before_redraw": 5})
