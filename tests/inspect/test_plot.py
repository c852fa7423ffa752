"""Pictures of masks: what is drawn is what is attended, for everything that can be asked for."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.dialects.xformers.components.attention import AttentionMask, attention_patterns, sparsity_config
from variform.errors import ConfigError, ShapeError
from variform.ops.masks import Axial, Causal, Dense, Global, KeyPadding, Window

pytest.importorskip("matplotlib").use("agg")
from matplotlib import pyplot  # noqa: E402  the backend is chosen first

DOCS = Path(__file__).parents[2] / "docs"
SMALL = torch.tensor([[True, False, True], [False, True, True]])


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    pyplot.close("all")


def shown(figure: Any, panel: int = 0) -> Tensor:
    """The numbers of one picture; blanks are NaN."""
    return torch.tensor(figure.axes[panel].images[0].get_array().filled(float("nan")))


@pytest.mark.parametrize(
    "tensor",
    [
        SMALL,
        SMALL.float(),
        SMALL.long(),
        SMALL[None],
        SMALL.expand(4, 2, 3),
        SMALL.expand(2, 4, 2, 3),
        SMALL.to_sparse(),
    ],
)
def test_tensors_of_every_form(tensor: Tensor) -> None:
    figure = vf.plot_mask(tensor)
    assert len(figure.axes) == 1  # heads that agree are drawn once
    assert shown(figure).equal(SMALL.float())
    assert figure.axes[0].get_title() == "density 0.667"
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("key", "query")


def test_masks_take_a_length() -> None:
    mask = (Causal() & Window(2)) | Global([0])
    figure = vf.plot_mask(mask, 9)
    assert shown(figure).equal(mask.dense(torch.arange(9), torch.arange(9)).float())
    assert figure.axes[0].get_title() == f"{mask!r}\ndensity {mask.density(9):.3f}"
    wide = vf.plot_mask(KeyPadding(torch.tensor([[True, False, True, True]])), 2, keys=4)
    assert shown(wide).equal(torch.tensor([[1.0, 0.0, 1.0, 1.0]] * 2))
    with pytest.raises(ConfigError, match="length"):
        vf.plot_mask(mask)


def test_heads_that_differ_are_drawn_one_by_one() -> None:
    heads = torch.rand(3, 4, 4) > 0.5
    for pattern, length in ((heads, None), (Dense(heads, per="head"), 4)):
        figure = vf.plot_mask(pattern, length)
        assert [shown(figure, head).equal(heads[head].float()) for head in range(3)] == [True] * 3
        assert "head 2" in figure.axes[2].get_title()
    many = vf.plot_mask(torch.rand(20, 4, 4) > 0.5)
    assert len(many.axes) == 16
    assert "of 20" in many.get_suptitle()
    with pytest.raises(ConfigError, match="3 pictures"):
        vf.plot_mask(heads, ax=pyplot.subplots()[1])


def test_scores_that_are_added_and_weights() -> None:
    additive = torch.zeros(2, 3).masked_fill(~SMALL, -torch.inf)
    assert shown(vf.plot_mask(additive)).equal(SMALL.float())
    assert shown(vf.plot_mask(AttentionMask.from_bool(SMALL))).equal(SMALL.float())
    biased = torch.tensor([[0.5, -torch.inf], [2.0, -1.0]])
    found = shown(vf.plot_mask(biased))
    assert found.isnan().tolist() == [[False, True], [False, False]]
    weights = vf.plot_mask(torch.rand(4, 4))
    assert len(weights.axes) == 2  # with a scale of colours
    assert weights.axes[0].get_title() == ""


def test_what_a_pixel_attends_to() -> None:
    mask = Axial((4, 5))
    figure = vf.plot_mask(mask, grid=(4, 5), at=(1, 3))
    assert len(figure.axes) == 2
    assert shown(figure, 1).equal(mask.dense(torch.tensor([8]), torch.arange(20)).view(4, 5).float())
    assert figure.axes[1].get_title() == "what pixel (1, 3) sees"
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[3.0, 1.0]]
    middle = vf.plot_mask(mask, grid=(4, 5))
    assert middle.axes[1].get_title() == "what pixel (2, 2) sees"
    axes = pyplot.subplots()[1]
    assert vf.plot_mask(mask, grid=(4, 5), at=(0, 0), ax=axes, title="mine") is axes.figure
    assert axes.get_title() == "mine"
    assert axes.images[0].get_array().shape == (4, 5)
    for wrong in ({"grid": (4, 4)}, {"grid": (4, 5), "at": (4, 0)}, {"grid": (20,)}):
        with pytest.raises(ConfigError):
            vf.plot_mask(torch.ones(20, 20), **wrong)


def test_layouts_are_numbered_by_positions() -> None:
    config = sparsity_config.BSLongformerSparsityConfig(2, 16)
    figure = vf.plot_mask(config, 64)
    assert shown(figure).equal(config.make_layout(64)[0].float())
    assert figure.axes[0].get_xlim() == (-0.5, 63.5)
    assert "BSLongformer" in figure.axes[0].get_title()
    assert vf.plot_mask(config.make_layout(64), block=16).axes[0].get_ylim() == (63.5, -0.5)
    with pytest.raises(ConfigError, match="length"):
        vf.plot_mask(config)
    with pytest.raises(ShapeError):
        vf.plot_mask(torch.ones(4))


def test_a_mask_draws_itself_alike() -> None:
    axes = Window(1).plot(5)
    assert torch.tensor(axes.images[0].get_array().filled()).equal(shown(vf.plot_mask(Window(1), 5)))


# ---- the gallery ----


@pytest.fixture(scope="module")
def gallery() -> Any:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("variform_gallery", DOCS / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gallery_shows_every_pattern_and_layout(gallery: Any) -> None:
    names = {*gallery.images(), *gallery.sequences(), *gallery.layouts()}
    linked = re.findall(r"\(pictures/(\w+)\.png\)", (DOCS / "patterns.md").read_text(encoding="utf-8"))
    assert sorted(linked) == sorted(names)
    own = {
        name
        for name, value in vars(attention_patterns).items()
        if getattr(value, "__module__", "") == attention_patterns.__name__
    }
    public = {name for name in own if not name.startswith("_")} - {
        "block_sparsify_tensor"
    }  # cuts a tensor, is no pattern
    assert public <= names
    assert set(sparsity_config.__all__) - {"SparsityConfig"} <= names


@pytest.mark.slow
def test_the_pictures_of_the_gallery_are_drawn(gallery: Any) -> None:
    made = gallery.pictures()
    assert all(picture.startswith(b"\x89PNG") for picture in made.values())
    assert not pyplot.get_fignums()
