"""Patch embedding against cutting the image by hand."""

import pytest
import torch

import variform as vf
from variform.errors import ShapeError
from variform.parts.embedding.patches import PatchEmbedding


def test_each_patch_is_mapped_and_class_tokens_stand_in_front() -> None:
    spec = PatchEmbedding.spec(image_size=6, patch_size=2, channels=3, class_tokens=2, position="learned")
    part = vf.build(spec, dim=5).double()
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    out = part(images, {})
    assert out.shape == (2, 11, 5)
    weight = part.project.weight.flatten(1)
    for row in range(3):
        for column in range(3):
            patch = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
            place = 2 + 3 * row + column
            wanted = patch @ weight.T + part.project.bias + part.position.weight[place]
            torch.testing.assert_close(out[:, place], wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out[:, :2], (part.class_token + part.position.weight[:2]).expand(2, -1, -1))


def test_the_number_of_tokens_is_told_to_later_parts() -> None:
    assert vf.build(
        PatchEmbedding.spec(image_size=8, patch_size=4, position="learned"), dim=5
    ).position.weight.shape == (4, 5)


@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (2, 1, 6, 6), (3, 6, 6), (2, 3, 8, 8)])
def test_images_of_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    part = vf.build(PatchEmbedding.spec(image_size=6, patch_size=2), dim=5)
    with pytest.raises(ShapeError, match=r"must have shape \[batch, 3, 6, 6\]"):
        part(torch.zeros(shape), {})


def test_patches_must_tile_the_image() -> None:
    with pytest.raises(vf.ConfigError, match=r"multiple of patch_size = 4 .*nearest: 8 or 12"):
        vf.build(PatchEmbedding.spec(image_size=10, patch_size=4), dim=5)
