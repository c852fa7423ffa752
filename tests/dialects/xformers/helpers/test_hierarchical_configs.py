"""Hierarchical models: stages with fewer tokens and more features each."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.dialects.xformers.cases import fill, swept
from variform.dialects.xformers.components import ResidualNormStyle
from variform.dialects.xformers.components.attention import ATTENTION_REGISTRY
from variform.dialects.xformers.components.feedforward import FEEDFORWARD_REGISTRY
from variform.dialects.xformers.factory import xFormer, xFormerConfig
from variform.dialects.xformers.helpers.hierarchical_configs import BasicLayerConfig, get_hierarchical_configuration
from variform.weights.xformers import from_native, to_native

SIDE = 16


def stage(**more: Any) -> BasicLayerConfig:
    sizes = {"embedding": 8, "patch_size": 4, "stride": 4, "padding": 0, "seq_len": 16}
    parts = {"attention_mechanism": "scaled_dot_product", "feedforward": "MLP"}
    return BasicLayerConfig(**{**sizes, **parts, **more})


def second(**more: Any) -> BasicLayerConfig:
    return stage(**{"embedding": 16, "patch_size": 2, "stride": 2, "seq_len": 4, **more})


def build(*stages: BasicLayerConfig, **more: Any) -> Any:
    config = get_hierarchical_configuration(stages, **{"dim_head": 4, **more})
    return xFormer.from_config(xFormerConfig(config))


def images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, SIDE, SIDE, dtype=torch.float64)


def as_sequence(image: Tensor) -> Tensor:
    return image.flatten(2).transpose(1, 2)


def test_defaults_work_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    config = get_hierarchical_configuration([stage(), second(repeat_layer=2)])
    assert capsys.readouterr().out == ""
    assert config == get_hierarchical_configuration(
        [stage(), second(repeat_layer=2)],
        residual_norm_style="pre",
        use_rotary_embeddings=True,
        mlp_multiplier=4,
        in_channels=3,
        dim_head=None,
    )
    assert config == json.loads(json.dumps(config))
    assert [stack["num_layers"] for stack in config] == [1, 2]
    assert ["position_encoding_config" in stack for stack in config] == [True, False]
    assert [stack["patch_embedding_config"]["in_channels"] for stack in config] == [3, 8]
    model = xFormer.from_config(xFormerConfig(config))
    assert model.dropped == ()
    assert model(images().float()).shape == (2, 4, 16)


@pytest.mark.parametrize(
    ("more", "read"),
    [
        (
            {"residual_norm_style": ResidualNormStyle.Post},
            lambda m: type(m.encoders[0].wrap_att).__name__ == "PostNorm",
        ),
        ({"use_rotary_embeddings": False}, lambda m: m.encoders[0].mha.rotary_embeddings is None),
        ({"mlp_multiplier": 3}, lambda m: m.encoders[1].feedforward.mlp[0].out_features == 48),
        ({"in_channels": 1}, lambda m: m.encoders[0].patch_emb[1].in_channels == 1),
        ({"dim_head": 2}, lambda m: [block.mha.num_heads for block in m.encoders] == [4, 8]),
    ],
)
def test_every_argument_takes_effect(more: dict[str, Any], read: Any) -> None:
    assert read(build(stage(), second(), **more))
    assert not read(build(stage(), second()))


def test_stages_are_what_they_say() -> None:
    model = build(stage(normalization="skip", padding=2, seq_len=25), second(seq_len=4, patch_size=3, repeat_layer=3))
    assert [block.dim_model for block in model.encoders] == [8, 16, 16, 16]
    assert [block.patch_emb is not None for block in model.encoders] == [True, True, False, False]
    assert type(model.encoders[0].wrap_att.layer.norm).__name__ == "Skip"
    assert model(images().float()).shape == (2, 4, 16)


@pytest.mark.parametrize("kind", ["CONV_2D", "AVG_POOL_2D", "MAX_POOL_2D", "PATCH_MERGING"])
@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize("embedding", [8, 16])
def test_any_patch_embedding_equals_its_spec(kind: str, placed: bool, embedding: int) -> None:
    config = get_hierarchical_configuration(
        [stage(patch_embedding=kind, repeat_layer=2), second(patch_embedding=kind, embedding=embedding)], dim_head=4
    )
    if not placed:
        config[0].pop("position_encoding_config")
    model = fill(xFormer(config))
    native = vf.build(model.spec).double().eval()
    native.load_state_dict(to_native(model.state_dict()))
    image = images()
    out = model(image)
    torch.testing.assert_close(out, model(as_sequence(image)), rtol=0, atol=1e-12)
    torch.testing.assert_close(out, native(as_sequence(image)), rtol=0, atol=1e-10)
    back = from_native(native.state_dict(), model.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    costs = vf.describe(model, batch=2, length=SIDE**2)
    assert costs.params == sum(p.numel() for p in model.parameters())


def test_positions_of_another_count_than_a_square_have_no_native_model() -> None:
    model = build(stage(seq_len=17), second())
    assert model(images().float()).shape == (2, 4, 16)
    with pytest.raises(vf.ConfigError, match="a square number"):
        model.spec  # noqa: B018


@pytest.mark.parametrize("name", list(ATTENTION_REGISTRY))
def test_any_attention_learns(name: str) -> None:
    first, last = ({"name": name, **swept(ATTENTION_REGISTRY, length)} for length in (16, 4))
    learns(build(stage(attention_mechanism=first), second(attention_mechanism=last), use_rotary_embeddings=False))


@pytest.mark.parametrize("name", list(FEEDFORWARD_REGISTRY))
def test_any_feedforward_learns(name: str) -> None:
    described = {"name": name, **swept(FEEDFORWARD_REGISTRY)}
    learns(build(stage(feedforward=described), second(feedforward=described)))


def learns(model: Any) -> None:
    out = model(as_sequence(images()).float())
    assert out.shape == (2, 4, 16)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_metaformer_of_the_examples_has_its_size() -> None:
    stages = [
        stage(embedding=width, patch_size=3, stride=2, padding=1, seq_len=(32 // 2**index) ** 2)
        for index, width in enumerate((64, 128, 320, 512), start=1)
    ]
    config = get_hierarchical_configuration(stages, dim_head=32)
    with torch.device("meta"):
        model = xFormer.from_config(xFormerConfig(config, weight_init="moco"))
    assert sum(p.numel() for p in model.parameters()) == 6_570_688
    assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 4, 512)


def test_heads_must_fit_every_stage() -> None:
    with pytest.raises(AssertionError, match="dim_head = 5 must divide it") as caught:
        get_hierarchical_configuration([stage(embedding=10), stage(), second()], dim_head=5)
    assert isinstance(caught.value, vf.ConfigError)
    assert [p.path for p in caught.value.problems] == [f"layer_base_configs.{index}.embedding" for index in (1, 2)]


def test_padding_has_no_meaning_for_patches() -> None:
    model = build(stage(), second())
    with pytest.raises(AssertionError, match="joins tokens"):
        model(as_sequence(images()).float(), encoder_input_mask=torch.ones(SIDE**2))
    with pytest.raises(AssertionError, match="images have no padding"):
        model(images().float(), encoder_key_padding_mask=torch.ones(SIDE**2))
