"""Patch embeddings of the dialect: upstream's convolution, and pooling and Swin's merging beside it."""

from typing import Any

import pytest
import torch
from torch import nn

import variform as vf
from variform.dialects.xformers.components import PatchEmbeddingConfig, build_patch_embedding
from variform.dialects.xformers.components.patch_embedding import ConditionalReshape, PatchToSequence, PoolType

BASE: dict[str, Any] = {"in_channels": 3, "out_channels": 5, "kernel_size": 2, "stride": 2}


def images(side: int = 6) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, side, side, dtype=torch.float64)


def test_a_convolution_of_images_or_of_the_tokens_of_a_square() -> None:
    part: Any = build_patch_embedding(BASE).double()
    assert [type(step) for step in part] == [ConditionalReshape, nn.Conv2d, PatchToSequence]
    assert set(part.state_dict()) == {"1.weight", "1.bias"}
    x = images()
    wanted = part[1](x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(part(x), wanted)
    torch.testing.assert_close(part(x.flatten(2).transpose(1, 2)), wanted)
    assert wanted.shape == (2, 9, 5)


@pytest.mark.parametrize("pool", list(PoolType))
@pytest.mark.parametrize("side", [6, 7])
def test_every_type_equals_its_native_layer(pool: PoolType, side: int) -> None:
    config = PatchEmbeddingConfig(**BASE, pool_type=pool)
    part: Any = build_patch_embedding(config).double()
    native: Any = vf.build(part.spec).double()
    weights = part[1].state_dict()
    native.load_state_dict(
        {k.removeprefix("native."): v for k, v in weights.items()}
        if pool != "CONV_2D"
        else {f"conv.{k}": v for k, v in weights.items()}
    )
    x = images(side)
    got = part(x)
    assert got.shape == (2, (side // 2 if pool != PoolType.PatchMerging else -(-side // 2)) ** 2, 5)
    torch.testing.assert_close(got, native(x.flatten(2).transpose(1, 2), {}))


@pytest.mark.parametrize(
    ("change", "length"),
    [({"kernel_size": 3}, 4), ({"stride": 1}, 25), ({"padding": 1}, 16), ({"pool_type": "MAX_POOL_2D"}, 9)],
)
def test_every_field_takes_effect(change: dict[str, Any], length: int) -> None:
    torch.manual_seed(0)
    part = build_patch_embedding({**BASE, **change}).double()
    assert part(images()).shape == (2, length, 5)


def test_pool_types_differ() -> None:
    outs = []
    for pool in ("AVG_POOL_2D", "MAX_POOL_2D"):
        part = build_patch_embedding({**BASE, "out_channels": 3, "pool_type": pool})
        assert not list(part.parameters())
        outs.append(part(images()))
    windows = images().unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    for got, wanted in zip(outs, (windows.mean(-1), windows.amax(-1)), strict=True):
        torch.testing.assert_close(got, wanted.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("change", "path", "kind", "message"),
    [
        ({"strid": 2}, "strid", TypeError, "did you mean 'stride'"),
        ({"stride": "2"}, "stride", TypeError, "stride"),
        ({"in_channels": 0}, "in_channels", TypeError, "in_channels"),
        ({"pool_type": "CONV2D"}, "pool_type", KeyError, "did you mean 'CONV_2D'"),
        ({"pool_type": "PATCH_MERGING", "stride": 1}, "stride", ValueError, "separate patches"),
        ({"pool_type": "PATCH_MERGING", "padding": 1}, "padding", ValueError, "fills up"),
        ({"pool_type": "MAX_POOL_2D", "padding": 2}, "padding", ValueError, "at most half"),
    ],
)
def test_a_mistake_names_its_place(change: dict[str, Any], path: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(vf.ConfigError, match=message) as caught:
        build_patch_embedding({**BASE, **change})
    assert [problem.path for problem in caught.value.problems] == [path]
    assert isinstance(caught.value, kind)


def test_what_is_missing_is_told_at_once() -> None:
    with pytest.raises(TypeError, match=r"in_channels.*\n.*stride"):
        build_patch_embedding({"out_channels": 3, "kernel_size": 2})
    with pytest.raises(TypeError, match="a dict with keys"):
        build_patch_embedding(3)  # type: ignore[arg-type]


def test_inputs_that_do_not_fit_are_refused() -> None:
    part = build_patch_embedding(BASE)
    with pytest.raises(AssertionError, match="as a square, and there are 12"):
        part(torch.zeros(2, 12, 3))
    with pytest.raises(vf.ShapeError, match=r"tokens \[batch, length, 3\]"):
        part(torch.zeros(2, 16, 4))


def test_the_configuration_is_not_changed() -> None:
    config = dict(BASE)
    build_patch_embedding(config)
    assert config == BASE
