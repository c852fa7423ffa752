"""Every field of feedforwards, positions, projections, norms and simplicial embeddings takes effect."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from tests.dialects.xformers.cases import DIM, SEQ, features, ids, mlp
from variform.dialects.xformers.components import (
    InputProjection,
    InputProjectionConfig,
    NormalizationType,
    PostNorm,
    PreNorm,
    Residual,
)
from variform.dialects.xformers.components.feedforward import FEEDFORWARD_REGISTRY, build_feedforward
from variform.dialects.xformers.components.patch_embedding import PoolType
from variform.dialects.xformers.components.positional_embedding import RotaryEmbedding, build_positional_embedding
from variform.dialects.xformers.components.positional_embedding.rotary import apply_rotary_pos_emb, rotate_half
from variform.dialects.xformers.components.residual import RequiresWrappedInputs, get_deepnorm_coefficients
from variform.dialects.xformers.components.simplicial_embedding import SimplicialEmbedding, SimplicialEmbeddingConfig
from variform.dialects.xformers.factory import weight_init, xFormer


def seeded(make: Any, *args: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    return make(*args, **more).double()


# ---- feedforwards ----


@pytest.mark.parametrize("name", ["MLP", "FusedMLP"])
@pytest.mark.parametrize(
    "change", [{"activation": "gelu"}, {"hidden_layer_multiplier": 2}, {"bias": False}, {"dropout": 0.5}]
)
def test_fields_of_the_mlp(name: str, change: dict[str, Any]) -> None:
    config = {**mlp(name=name), "dim_model": DIM}
    plain, changed = seeded(build_feedforward, config), seeded(build_feedforward, {**config, **change})
    torch.manual_seed(1)
    assert not torch.allclose(changed(features()), plain(features()))
    with pytest.raises(RuntimeError, match="shapes"):
        seeded(build_feedforward, {**config, "dim_model": DIM + 1})(features())


def test_dropout_of_the_mlp_is_of_inner_and_of_output_features() -> None:
    part = seeded(build_feedforward, {**mlp(dropout=0.5), "dim_model": DIM})
    whole = part.mlp[3](part.mlp[1](part.mlp[0](features())))
    part.mlp[2].p = 0.0
    out = part(features())
    zero = out == 0
    assert 0 < int(zero.sum()) < zero.numel()
    torch.testing.assert_close(out[~zero], 2 * whole[~zero])


# ---- positions ----


def position(name: str, **more: Any) -> Any:
    base = {"name": name, "dim_model": DIM, "seq_len": SEQ, "vocab_size": 11}
    return seeded(build_positional_embedding, {**base, **more})


@pytest.mark.parametrize("name", ["sine", "learnable", "vocab"])
def test_seq_len_is_the_longest_sequence(name: str) -> None:
    def inputs(length: int) -> Tensor:
        return ids(length) if name == "vocab" else features(length)

    position(name)(inputs(SEQ))
    position(name, seq_len=SEQ + 1)(inputs(SEQ + 1))
    with pytest.raises(vf.ShapeError, match=f"has {SEQ + 1} tokens, and seq_len is {SEQ}"):
        position(name)(inputs(SEQ + 1))
    assert position(name).longest == SEQ


def test_fields_of_the_vocabulary() -> None:
    assert position("vocab", dim_model=6)(ids()).shape == (2, SEQ, 6)
    with pytest.raises(vf.ShapeError, match=r"must lie in \[0, 10\)"):
        position("vocab", vocab_size=10)(torch.full((1, 2), 10))
    plain, dropping = position("vocab")(ids()), position("vocab", dropout=0.5)
    out = dropping(ids())
    kept = out != 0
    torch.testing.assert_close(out[kept], 2 * plain[kept])
    assert 0 < int(kept.sum()) < kept.numel()


def test_a_class_token_stands_in_front() -> None:
    plain, more = position("learnable"), position("learnable", add_class_token=True)
    assert plain(features()).shape == (2, SEQ, DIM)
    with torch.no_grad():
        more.class_token.copy_(torch.arange(DIM))
    out = more(features())
    torch.testing.assert_close(out[:, 0], (more.class_token + more.pos_emb[0, 0]).expand(2, -1))
    torch.testing.assert_close(out[:, 1:], features() + more.pos_emb[0, 1:])
    torch.testing.assert_close(more(features(4))[:, 1:], features(4) + more.pos_emb[0, 1:5])
    assert abs(float(position("learnable", dim_model=64, seq_len=64).pos_emb.detach().std()) - 0.02) < 2e-3


def test_sines_are_those_of_the_paper() -> None:
    out = position("sine")(torch.zeros(1, SEQ, DIM, dtype=torch.float64))[0]
    steps = torch.arange(SEQ, dtype=torch.float64).unsqueeze(1) / 10000 ** (torch.arange(0, DIM, 2) / DIM)
    torch.testing.assert_close(out[:, 0::2], steps.sin())
    torch.testing.assert_close(out[:, 1::2], steps.cos())
    numbers = torch.randn(2, SEQ, dtype=torch.float64)
    torch.testing.assert_close(position("sine")(numbers), numbers.unsqueeze(-1) + out)


@pytest.mark.parametrize("keys", [SEQ, SEQ - 3])
def test_rotation_by_its_helpers(keys: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, SEQ, 6, dtype=torch.float64), torch.randn(2, 3, keys, 6, dtype=torch.float64)
    angles = torch.arange(SEQ, dtype=torch.float64).unsqueeze(1) / 10000 ** (torch.arange(0, 6, 2) / 6)
    angles = torch.cat((angles, angles), -1)
    cos, sin = angles.cos()[None, None], angles.sin()[None, None]
    rotated = RotaryEmbedding(dim_model=6)(q, k)
    for got, x in zip(rotated, (q, k), strict=True):
        torch.testing.assert_close(got, apply_rotary_pos_emb(x, cos, sin))
    assert torch.equal(rotate_half(torch.arange(6.0)), torch.tensor([-3.0, -4.0, -5.0, 0.0, 1.0, 2.0]))


# ---- projections ----


def projection(q: Any = (DIM, 6, True), k: Any = None, v: Any = None, separate: bool = True) -> Any:
    configs = [None if one is None else InputProjectionConfig(*one) for one in (q, k, v)]
    return seeded(InputProjection, *configs, use_separate_proj_weight=separate)


def test_fields_of_the_input_projection() -> None:
    x, y, z = features(), features(5, seed=1), features(5, seed=2)
    shared = projection()
    for out, given in zip(shared(x, y, z), (x, y, z), strict=True):
        torch.testing.assert_close(out, shared.q_proj(given))
    own = projection(k=(DIM, 5, False), v=(DIM, 4, True))
    q, k, v = own(x, y, z)
    assert [t.shape[-1] for t in (q, k, v)] == [6, 5, 4]
    assert own.k_proj.bias is None
    assert own.v_proj.bias is not None
    torch.testing.assert_close(k, own.k_proj(y))
    tied = projection(k=(DIM, 6, True), v=(DIM, 6, False), separate=False)
    with torch.no_grad():
        tied.k_proj.bias.fill_(2.0)
    q, k, v = tied(x, y, z)
    torch.testing.assert_close(k, y @ tied.q_proj.weight.T + 2)
    torch.testing.assert_close(v, z @ tied.q_proj.weight.T)
    with pytest.raises(vf.ConfigError, match="one weight for queries, keys and values needs equal sizes"):
        projection(k=(DIM, 5, True), separate=False)
    with pytest.raises(RuntimeError, match="shapes"):
        projection(q=(DIM + 1, 6, True))(x, x, x)


# ---- residuals and norms ----


class Noted(nn.Module):
    """Remembers its inputs."""

    def forward(self, *inputs: Tensor, **more: Tensor) -> Tensor:
        self.seen = inputs
        return inputs[0] * 3 + sum(more.values())  # type: ignore[no-any-return]


def test_residuals_scale_the_stream() -> None:
    x = features()
    torch.testing.assert_close(Residual(Noted())(inputs=[x, x]), 4 * x)
    torch.testing.assert_close(Residual(Noted(), scale=0.5)(inputs=[x, x], add=x), 4.5 * x)
    assert "scale=0.5" in repr(Residual(Noted(), scale=0.5))
    assert all(issubclass(cls, RequiresWrappedInputs) for cls in (Residual, PreNorm, PostNorm))


def test_norms_stand_before_or_after() -> None:
    x, y, norm = features(), features(seed=1), nn.LayerNorm(DIM, elementwise_affine=False)
    noted = Noted()
    pre = PreNorm(DIM, noted, NormalizationType.LayerNorm).double()
    torch.testing.assert_close(pre(inputs=[x, x, y]), 3 * norm(x))
    assert noted.seen[0] is noted.seen[1]  # one that is passed twice is normed once
    torch.testing.assert_close(noted.seen[2], norm(y))
    post = PostNorm(DIM, Residual(Noted()), NormalizationType.LayerNorm).double()
    torch.testing.assert_close(post(inputs=[x]), norm(4 * x))
    torch.testing.assert_close(PreNorm(DIM, Noted(), NormalizationType.Skip)(inputs=[x]), 3 * x)
    assert not list(PostNorm(DIM, Noted(), NormalizationType.Skip).parameters())
    with pytest.raises(RuntimeError, match="normalized_shape"):
        PreNorm(DIM + 1, Noted()).double()(inputs=[x])
    for wrong in ({"normalization": "batchnorm"}, {"use_triton": "yes"}):
        with pytest.raises(vf.ConfigError, match=next(iter(wrong))):
            PreNorm(DIM, Noted(), **wrong)  # type: ignore[arg-type]


def test_deepnorm_constants_for_any_sides() -> None:
    encoder, decoder = get_deepnorm_coefficients(12, 0)
    assert decoder is None
    assert encoder == pytest.approx(((2 * 12) ** 0.25, (8 * 12) ** -0.25))
    encoder, decoder = get_deepnorm_coefficients(0, 5)
    assert encoder is None
    assert decoder == pytest.approx(((2 * 5) ** 0.25, (8 * 5) ** -0.25))
    encoder, decoder = get_deepnorm_coefficients(6, 4)
    both = (6**4 * 4) ** (1 / 16)
    assert encoder == pytest.approx((0.81 * both, 0.87 / both))
    assert decoder == pytest.approx((12**0.25, 48**-0.25))


# ---- simplicial embeddings ----


def test_fields_of_simplicial_embeddings() -> None:
    x = features()
    for chunks, temperature in ((2, None), (4, None), (2, 0.1)):
        part = SimplicialEmbedding.from_config(SimplicialEmbeddingConfig(chunks, temperature))
        wanted = (x.unflatten(-1, (chunks, -1)) / (temperature or 1.0)).softmax(-1).flatten(-2)
        torch.testing.assert_close(part(x), wanted)
    with pytest.raises(AssertionError, match="not divisible by L = 3"):
        SimplicialEmbedding(3)(x)
    for wrong in ({"L": 0}, {"L": 2, "temperature": 0.0}, {"L": 2, "temperature": "hot"}):
        with pytest.raises(vf.ConfigError, match=list(wrong)[-1]):
            SimplicialEmbedding(**wrong)


# ---- weight inits ----

MOE = {"number_of_experts": 2, "gate": "top_2", "experts": [{"part": "mlp"}] * 2}


@pytest.mark.parametrize("name", sorted(FEEDFORWARD_REGISTRY))
def test_every_feedforward_is_initialised_by_every_scheme(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_init, "_assert_if_not_initialized", True)
    feed = {"name": name, "dropout": 0, "activation": "relu", "hidden_layer_multiplier": 2, **MOE}
    heads = {"num_heads": 2, "attention": {"name": "scaled_dot_product"}}
    config = {"block_type": "encoder", "dim_model": DIM, "feedforward_config": feed, "multi_head_config": heads}
    for scheme in ("vit", "timm", "moco", "small"):
        model = xFormer(config, weight_init=scheme).eval()
        assert model(features().float()).shape == (2, SEQ, DIM)


@pytest.mark.parametrize("pool", list(PoolType))
def test_every_patch_embedding_is_initialised(pool: PoolType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_init, "_assert_if_not_initialized", True)
    patches = {"in_channels": 3, "kernel_size": 2, "stride": 2, "pool_type": pool.value}
    heads = {"num_heads": 2, "attention": {"name": "scaled_dot_product"}}
    config = {"block_type": "encoder", "dim_model": DIM, "feedforward_config": mlp(), "multi_head_config": heads}
    model = xFormer({**config, "patch_embedding_config": patches}).eval()
    assert model(torch.randn(2, 3, 6, 6)).shape == (2, 9, DIM)
