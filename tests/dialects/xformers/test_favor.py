"""FAVOR in the dialect: upstream's interface, causal for real, features that are saved."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.dialects.xformers.cases import DIM, SEQ, attention, decoder, encoder, ids
from variform.dialects.xformers.components import build_multi_head_attention
from variform.dialects.xformers.components.attention import (
    FavorAttention,
    ScaledDotProduct,
    build_attention,
)
from variform.dialects.xformers.components.attention.feature_maps import (
    FeatureMapConfig,
    FeatureMapType,
    NormDistribution,
    SMHyperbolic,
    SMOrf,
    SMReg,
    build_feature_map,
)
from variform.dialects.xformers.factory import xFormer, xFormerConfig


def qkv(length: int = 12, dim: int = 8, batch: int = 3) -> list[Tensor]:
    return [torch.randn(batch, length, dim) for _ in range(3)]


def favor(**more: Any) -> Any:
    torch.manual_seed(0)
    return build_attention({"name": "favor", "dropout": 0.0, "dim_head": 8, **more})


def test_defaults_are_upstreams() -> None:
    part = FavorAttention()
    assert part.causal is False
    assert part.feature_map_type is FeatureMapType.SMReg
    assert (part.iter_before_redraw, part.normalize_inputs, part.attn_drop.p) == (None, False, 0.0)  # type: ignore[union-attr]
    assert part.dim_features is None  # until a head's size is known
    part(*qkv())
    assert part.dim_features == 32
    assert part.feature_map.features.shape == (8, 16)


@pytest.mark.parametrize("feature", FeatureMapType)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_approximates_the_softmax_and_trains(feature: FeatureMapType, causal: bool, normalize: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (t.requires_grad_() for t in qkv(64, 16, 8))
    part = FavorAttention(causal=causal, dim_head=16, feature_map_type=feature, normalize_inputs=normalize)
    exact = ScaledDotProduct(causal=causal)(q, k, v)
    error = (part(q, k, v) - exact).square().mean()
    assert error < (0.15 if causal else 0.1)
    error.backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in (q, k, v))


def test_causal_reads_the_past_and_nothing_else() -> None:
    q, k, v = (t.requires_grad_() for t in qkv())
    out = favor(causal=True)(q, k, v)
    for grad in torch.autograd.grad(out[:, 6].square().sum(), (k, v)):
        seen = grad.abs().sum((0, 2)) > 0
        assert seen.tolist() == [True] * 7 + [False] * 5


def test_causal_between_two_sequences() -> None:
    torch.manual_seed(0)
    q, k, v = qkv()
    part = favor(causal=True)
    out = part(q, k, v)
    for i in (0, 5, 11):  # ruling: position i sees j <= i
        alone = favor()(q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1])
        torch.testing.assert_close(out[:, i : i + 1], alone)
    with pytest.raises(vf.ShapeError, match="different lengths is not defined"):
        part(q[:, :5], k, v)
    assert favor()(q[:, :5], k, v).shape == (3, 5, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"feature_map": "sm_orf"},
        {"feature_map": FeatureMapType.SMHyp},
        {"feature_map_type": "sm_orf"},
        {"dim_features": 10},
        {"normalize_inputs": True},
        {"causal": True},
    ],
)
def test_every_key_changes_the_output(change: dict[str, Any]) -> None:
    q, k, v = qkv()
    assert not torch.allclose(favor(**change)(q, k, v), favor()(q, k, v), atol=1e-4)


def test_two_names_of_the_feature_map() -> None:
    assert favor(feature_map="sm_hyp").feature_map.kind == "sm_hyp"
    assert favor(feature_map="sm_orf", feature_map_type="sm_orf").feature_map.kind == "sm_orf"
    with pytest.raises(vf.ConfigError, match="another name of feature_map_type"):
        favor(feature_map="sm_hyp", feature_map_type="sm_orf")
    with pytest.raises(vf.ConfigError, match="did you mean 'sm_reg'"):
        favor(feature_map="sm_rg")


@pytest.mark.parametrize("every", [1, 100])
def test_redraws(every: int) -> None:
    part = favor(iter_before_redraw=every, dim_features=128, feature_map="sm_orf")
    q, k, v = qkv()
    part(q, k, v)
    first = part.feature_map.features
    part(q, k, v)
    assert torch.equal(part.feature_map.features, first) == (every == 100)
    assert first.shape == (8, 128)


def test_dropout_drops_the_output() -> None:
    q, k, v = qkv()
    part = favor(dropout=0.5).train()
    assert 0.3 < (part(q, k, v) == 0).float().mean() < 0.7
    part.attn_drop.p = 0.0
    assert torch.equal(part(q, k, v), part.eval()(q, k, v))


def test_masks() -> None:
    q, k, v = qkv()
    part = favor()
    real = torch.arange(12).expand(3, 12) < torch.tensor([[12], [7], [3]])
    out = part(q, k, v, key_padding_mask=real)
    torch.testing.assert_close(out[1:2, :7], part(q[1:2, :7], k[1:2, :7], v[1:2, :7]))
    with pytest.raises(vf.ShapeError, match="does not support attention masks"):
        part(q, k, v, att_mask=torch.ones(12, 12, dtype=torch.bool))


def test_a_reloaded_model_is_equal() -> None:
    config = attention("favor", iter_before_redraw=2) | {"dim_model": DIM}
    one, two = build_multi_head_attention(config), build_multi_head_attention(config)
    x = torch.randn(2, SEQ, DIM)
    for _ in range(3):
        one(x)
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.eval()(x), copy.deepcopy(one).eval()(x))
    assert torch.equal(two.train()(x), one.train()(x))  # the next draw, too


def test_the_number_of_features_is_not_that_of_a_head() -> None:
    part = build_multi_head_attention(attention("favor") | {"dim_model": 32}).attention
    assert part.dim_features == 80  # ceil(16 (1 + log2 16))


def test_causal_cross_attention_in_a_model_trains() -> None:
    model = xFormer.from_config(
        xFormerConfig([encoder(), decoder(multi_head_config_cross=attention("favor", causal=True, seq_len=SEQ))])
    )
    model(src=ids(), tgt=ids()).sum().backward()
    assert all(p.grad is not None for p in model.decoders.parameters())


# ---- feature maps on their own ----


@pytest.mark.parametrize(("cls", "feature"), [(SMOrf, "sm_orf"), (SMHyperbolic, "sm_hyp"), (SMReg, "sm_reg")])
def test_feature_maps_estimate_the_kernel(cls: Any, feature: str) -> None:
    torch.manual_seed(0)
    part = build_feature_map(feature, 20_000)
    assert type(part) is cls
    x = 0.25 * torch.randn(5, 8)
    phi = part(x)
    assert phi.shape == (5, 20_000)
    torch.testing.assert_close(phi @ phi.T, (x @ x.T / 8**0.5).exp(), rtol=0.1, atol=0.0)
    hotter = cls(20_000, softmax_temp=1.0)(x)
    torch.testing.assert_close(hotter @ hotter.T, (x @ x.T).exp(), rtol=0.3, atol=0.0)
    scaled = cls(64, normalize_inputs=True)
    torch.testing.assert_close(scaled(7 * x), scaled(x), rtol=1e-4, atol=1e-6)
    floor = cls(64, epsilon=0.5)(x)
    assert bool((floor >= floor.amax(-1, keepdim=True) / 3.01).all())
    config = FeatureMapConfig(feature, 12, iter_before_redraw=1)
    made = cls.from_config(config)
    made(x)
    before = made.features
    made(x)
    assert made.dim_features == 12
    assert not torch.equal(made.features, before)


def test_random_orthogonal_matrices() -> None:
    torch.manual_seed(0)
    for cls in (SMOrf, SMHyperbolic, SMReg):
        found = cls._get_random_ortho_matrix(3, 8, device=torch.device("cpu"))
        torch.testing.assert_close(found @ found.mT, torch.eye(8).expand(3, 8, 8), rtol=0, atol=1e-5)
        scaled = cls._get_random_ortho_matrix(400, 8, device="cpu", norm_distribution=NormDistribution.Xi)
        products = scaled @ scaled.mT
        torch.testing.assert_close(products, torch.diag_embed(products.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-3)
        assert scaled.square().sum(-1).mean().item() == pytest.approx(8, rel=0.1)
