"""Initial weights: their standard deviations as measured on upstream, and what every scheme must not forget."""

from typing import Any

import pytest
import torch
from torch import nn

import variform as vf
from tests.dialects.xformers.cases import attention, decoder, encoder, vocab
from variform.dialects.xformers.components.feedforward import FEEDFORWARD_REGISTRY, Feedforward, register_feedforward
from variform.dialects.xformers.factory import weight_init, xFormer, xFormerWeightInit

WIDE = {"dim_model": 256, "position_encoding_config": vocab(vocab_size=500)}

# standard deviations of q, out, ff1, ff2, the offset of ff1, and token vectors, at 256 features
STD = {
    "vit": (0.0625, 0.0625, 0.0395, 0.0395, 1e-6, 0.02),
    "timm": (0.0163, 0.0163, 0.0163, 0.0163, 0.0, 0.02),
    "moco": (0.0625, 0.0625, 0.0395, 0.0395, 0.0, 0.02),
    "small": (0.0395, 0.0395, 0.0395, 0.0395, 1e-6, 0.02),
}


def measured(block: Any) -> list[float]:
    heads, ff = block.wrap_att.layer.sublayer, block.wrap_ff.sublayer.layer.sublayer.mlp
    words = block.pose_encoding.word_embeddings.weight
    tensors = (heads.in_proj_container.q_proj.weight, heads.proj.weight, ff[0].weight, ff[3].weight, ff[0].bias, words)
    return [tensor.std().item() for tensor in tensors]


@pytest.mark.parametrize("scheme", STD)
def test_deviations_are_upstreams(scheme: str) -> None:
    model = xFormer(encoder(**WIDE), weight_init=scheme)
    assert measured(model.encoders[0]) == pytest.approx(STD[scheme], rel=0.03, abs=1e-9)
    assert not model.encoders[0].wrap_att.layer.sublayer.proj.bias.any()


def test_vit_is_the_default() -> None:
    assert measured(xFormer(encoder(**WIDE)).encoders[0]) == pytest.approx(STD["vit"], rel=0.03)
    assert xFormerWeightInit("vit") is xFormerWeightInit.ViT


def test_deepnorm_scales_all_but_queries_and_keys() -> None:
    deep = {"residual_norm_style": "deepnorm", **WIDE}
    model = xFormer([encoder(num_layers=2, **deep), decoder(**deep)])
    beta = 0.87 * (2**4 * 1) ** (-1 / 16)
    heads = model.encoders[1].wrap_att.sublayer.layer
    ff = model.encoders[1].wrap_ff.sublayer.layer.mlp
    container = heads.in_proj_container
    plain = [container.q_proj.weight.std().item(), container.k_proj.weight.std().item()]
    assert plain == pytest.approx([0.0625] * 2, rel=0.03)
    scaled = [container.v_proj.weight.std().item(), heads.proj.weight.std().item()]
    assert scaled == pytest.approx([0.0625 * beta] * 2, rel=0.03)
    assert ff[3].weight.std().item() == pytest.approx(0.0395 * beta, rel=0.03)
    cross = model.decoders[0].wrap_cross.sublayer.layer
    assert cross.proj.weight.std().item() == pytest.approx(0.0625 * 12**-0.25, rel=0.03)


def test_a_forgotten_weight_is_an_error_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scale(Feedforward):
        def __init__(self, dim_model: int, **more: Any) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(dim_model))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs * self.gain

    register_feedforward("scale")(Scale)
    config = encoder(feedforward_config={"name": "scale"}, multi_head_config=attention())
    try:
        model = xFormer(config)
        model(torch.zeros(1, 3).long())
        with pytest.raises(vf.ConfigError, match="Scale registered here has no native equivalent"):
            _ = model.spec
        monkeypatch.setattr(weight_init, "_assert_if_not_initialized", True)
        with pytest.raises(AssertionError, match="no scheme initialises this Scale"):
            xFormer(config)
        monkeypatch.setattr(Scale, "init_weights", lambda self: nn.init.zeros_(self.gain), raising=False)
        assert not xFormer(config).encoders[0].wrap_ff.sublayer.layer.sublayer.gain.any()
        xFormer([encoder(num_layers=2), decoder()])
    finally:
        FEEDFORWARD_REGISTRY.remove("scale")
