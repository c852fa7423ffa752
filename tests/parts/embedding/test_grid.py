"""Layers on grids against loops over their windows."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import variform as vf
from variform.parts.embedding.features import FeatureEmbedding
from variform.parts.embedding.grid import ConvPatches, GridLayer, PatchMerging, PoolPatches
from variform.parts.embedding.image import ImageEmbedding
from variform.parts.feedforward.mlp import MLP
from variform.parts.head.heads import ClassifierHead
from variform.parts.position.absolute import LearnedPosition
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

HEIGHT, WIDTH, DIM = 5, 6, 4


def tokens(height: int = HEIGHT, width: int = WIDTH, dim: int = DIM) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, height * width, dim, dtype=torch.float64, requires_grad=True)


def built(spec: vf.Spec, **facts: Any) -> GridLayer:
    part: GridLayer = vf.build(spec, dim=DIM, **{"height": HEIGHT, **facts}).double()
    return part


def agree(got: Tensor, wanted: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view_as(got)
    both = [torch.autograd.grad((out * weights).sum(), leaves, retain_graph=True) for out in (got, wanted)]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def windows(x: Tensor, kernel: int, stride: int, padding: int) -> list[list[tuple[int, Tensor]]]:
    """The places of each window, as (place within the window, token), without those beyond the border."""
    grid, found = x.unflatten(1, (HEIGHT, WIDTH)), []
    for top, left in itertools.product(
        range(-padding, HEIGHT + padding - kernel + 1, stride), range(-padding, WIDTH + padding - kernel + 1, stride)
    ):
        places = itertools.product(range(kernel), range(kernel))
        inside = [
            (down * kernel + right, grid[:, top + down, left + right])
            for down, right in places
            if 0 <= top + down < HEIGHT and 0 <= left + right < WIDTH
        ]
        found.append(inside)
    return found


SHAPES = [(3, 2, 1), (2, None, 0), (3, 1, 0)]


@pytest.mark.parametrize(("kernel", "stride", "padding"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_maps_each_window(kernel: int, stride: int | None, padding: int, bias: bool) -> None:
    part: Any = built(ConvPatches.spec(kernel=kernel, stride=stride, padding=padding, out=3, bias=bias))
    x = tokens()
    weight = part.conv.weight.flatten(2)  # [out, dim, kernel * kernel]
    assert (part.conv.bias is not None) == bias
    offset = part.conv.bias if bias else 0
    wanted = [
        sum(token @ weight[:, :, place].T for place, token in window) + offset
        for window in windows(x, kernel, stride or kernel, padding)
    ]
    agree(part(x, {}), torch.stack(wanted, 1), x, part.conv.weight)


@pytest.mark.parametrize(("kernel", "stride", "padding"), SHAPES)
@pytest.mark.parametrize("how", ["mean", "max"])
def test_pooling_counts_the_places_within_the_border(kernel: int, stride: int | None, padding: int, how: str) -> None:
    part: Any = built(PoolPatches.spec(kernel=kernel, stride=stride, padding=padding, how=how))
    assert not list(part.parameters())
    x = tokens()
    wanted = []
    for window in windows(x, kernel, stride or kernel, padding):
        values = torch.stack([token for _, token in window])
        wanted.append(values.mean(0) if how == "mean" else values.amax(0))
    agree(part(x, {}), torch.stack(wanted, 1), x)


def test_pooling_maps_to_other_features() -> None:
    part: Any = built(PoolPatches.spec(kernel=2, out=7, bias=False))
    bare = built(PoolPatches.spec(kernel=2))
    x = tokens()
    agree(part(x, {}), bare(x, {}) @ part.map.weight.T, x, part.map.weight)
    assert part.map.bias is None
    assert built(PoolPatches.spec(kernel=2, out=7, init_std=1e-3)).map.weight.std() < 1e-2  # type: ignore[union-attr]


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_merging_joins_neighbours_column_by_column(factor: int, bias: bool) -> None:
    part: Any = built(PatchMerging.spec(factor=factor, out=3, bias=bias))
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = tokens()
    image = x.unflatten(1, (HEIGHT, WIDTH))
    wanted = []
    for top, left in itertools.product(range(0, HEIGHT, factor), range(0, WIDTH, factor)):
        pieces = []
        for right, down in itertools.product(range(factor), range(factor)):
            inside = top + down < HEIGHT and left + right < WIDTH
            pieces.append(image[:, top + down, left + right] if inside else torch.zeros_like(image[:, 0, 0]))
        joined = F.layer_norm(torch.cat(pieces, -1), (factor**2 * DIM,), part.norm.weight, part.norm.bias)
        wanted.append(F.linear(joined, part.reduction.weight, part.reduction.bias))
    agree(part(x, {}), torch.stack(wanted, 1), x, part.norm.weight, part.reduction.weight)


def test_merging_doubles_the_features_and_may_leave_the_norm_out() -> None:
    part: Any = built(PatchMerging.spec(norm=None))
    assert part.norm is None
    assert part(tokens(), {}).shape == (2, 9, 2 * DIM)


def hierarchy(**more: Any) -> vf.Spec:
    feed = Sublayer.spec(body=MLP.spec(hidden=8))
    layers = [ConvPatches.spec(kernel=3, stride=2, padding=1, out=6), feed, PatchMerging.spec(), feed]
    return Transformer.spec(
        embedding=None,
        stacks=[LayerStack.spec(layers=layers, norm="layer_norm")],
        dim=DIM,
        head=ClassifierHead.spec(classes=2),
        **more,
    )


def test_later_parts_see_the_new_features_height_and_length() -> None:
    spec = vf.resolve(hierarchy(max_seq_len=30), height=HEIGHT)
    layers = spec["stacks"][0]["layers"]
    assert [layer["body"]["dim"] for layer in (layers[1], layers[3])] == [6, 12]
    assert (layers[2]["dim"], layers[2]["height"]) == (6, 3)
    assert spec["stacks"][0]["norm"]["dim"] == spec["head"]["dim"] == 12
    assert vf.build(spec).double()(tokens()).shape == (2, 2)
    square = vf.build(hierarchy()).double()
    assert square(tokens(7, 7)).shape == (2, 2)
    with pytest.raises(vf.ShapeError, match="30 tokens do not make a square grid"):
        square(tokens())


def test_the_table_of_later_positions_has_as_many_places_as_tokens() -> None:
    given = PatchMerging.gives({"factor": 2, "dim": 3, "out": None, "height": None, "max_seq_len": 49})
    assert given == {"dim": 6, "max_seq_len": 16}
    given = PatchMerging.gives({"factor": 2, "dim": 3, "out": None, "height": 3, "max_seq_len": 15})
    assert given == {"dim": 6, "height": 2, "max_seq_len": 6}
    assert PatchMerging.gives({"factor": 2, "dim": 3, "out": None, "height": None, "max_seq_len": 15}) == {"dim": 6}


@pytest.mark.parametrize("stream", ["positions", "valid", "segments", "mask"])
def test_what_is_told_of_single_tokens_is_refused(stream: str) -> None:
    part = built(PatchMerging.spec())
    given = torch.ones(2, 30, dtype=torch.bool if stream == "valid" else torch.long)
    with pytest.raises(vf.ShapeError, match=f"joins the places of a grid takes no '{stream}'"):
        part(tokens(), {stream: given})


def test_a_causal_model_refuses_grids() -> None:
    with pytest.raises(vf.ConfigError, match="'conv_patches' has no causal form"):
        vf.resolve(hierarchy(causal=True))


def test_settings_that_leave_nothing_are_refused() -> None:
    with pytest.raises(vf.ConfigError, match="height: leaves no place"):
        built(ConvPatches.spec(kernel=6))
    with pytest.raises(vf.ConfigError, match="at most half of kernel = 3"):
        built(PoolPatches.spec(kernel=3, padding=2))
    with pytest.raises(vf.ShapeError, match="windows of 4 x 4 do not fit"):
        built(ConvPatches.spec(kernel=4))(tokens(HEIGHT, 2), {})


def test_images_become_patches_with_positions() -> None:
    conv = ConvPatches.spec(kernel=2, out=4)
    placed = FeatureEmbedding.spec(class_tokens=1, position=LearnedPosition.spec(max_seq_len=7))
    part: Any = vf.build(ImageEmbedding.spec(patches=conv, height=4, width=6, channels=2, embedding=placed), dim=4)
    part.double()
    images = torch.randn(3, 2, 4, 6, dtype=torch.float64)
    patches = part.patches.conv(images).flatten(2).transpose(1, 2)
    out, _ = part(images, {})
    torch.testing.assert_close(out, part.embedding(patches, {})[0])
    torch.testing.assert_close(part(images.flatten(2).transpose(1, 2), {})[0], out)
    assert part.spec.part.gives(part.spec.args) == {"max_seq_len": 7}
    bare = vf.resolve(ImageEmbedding.spec(patches=conv, height=4, channels=2), dim=4)
    assert bare.part.gives(bare.args) == {"max_seq_len": 4, "height": 2}
    for wrong in (torch.zeros(3, 2, 6, 4), torch.zeros(3, 24, 3)):
        with pytest.raises(vf.ShapeError, match=r"must have shape \[batch, 2, 4, 6\]"):
            part(wrong.double(), {})
    with pytest.raises(vf.ConfigError, match="patches: gives 4 features, and dim = 5"):
        vf.resolve(ImageEmbedding.spec(patches=conv, height=4), dim=5)
