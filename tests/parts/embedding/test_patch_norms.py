import torch

import variform as vf
from variform.parts.embedding.patches import PatchEmbedding
from variform.parts.norm.norms import LayerNorm

SIZES = {"image_size": 12, "patch_size": 4, "channels": 2, "dim": 8}


def test_norms_before_and_after_the_map() -> None:
    norm = LayerNorm.spec()
    part = vf.build(PatchEmbedding.spec(**SIZES, patch_norm=norm, token_norm=norm)).double()
    assert part.patch_norm.weight.shape == (32,)
    for param in part.parameters():
        param.data += 0.3 * torch.randn_like(param)
    images = torch.randn(3, 2, 12, 12, dtype=torch.float64)
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(3, 9, 32)
    mapped = part.patch_norm(patches) @ part.project.weight.flatten(1).T + part.project.bias
    torch.testing.assert_close(part(images, {}), part.token_norm(mapped))


def test_a_neutral_norm_changes_the_path_and_not_the_map() -> None:
    plain = vf.build(PatchEmbedding.spec(**SIZES)).double()
    other = vf.build(PatchEmbedding.spec(**SIZES, patch_norm=LayerNorm.spec())).double()
    other.load_state_dict(plain.state_dict(), strict=False)
    other.patch_norm = torch.nn.Identity()
    images = torch.randn(3, 2, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(other(images, {}), plain(images, {}))
