from typing import Any

import pytest
import torch

import variform as vf
from variform.dialects.x_transformers import (
    Decoder,
    Encoder,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
)
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.errors import ShapeError
from variform.stack.state_rows import select_rows

SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 4}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dim_condition": 8}, "no effect without use_adaptive"),
        ({"adaptive_condition_mlp": True}, "no effect without use_adaptive"),
        ({"adaptive_condition_mlp_expansion": 2}, "no effect without adaptive_condition_mlp"),
        ({"dynamic_tanh_init_alpha": 0.5}, "no effect without use_dynamic_tanh"),
        ({"use_layerscale": True, "use_adaptive_layerscale": True}, "one scale"),
        ({"use_adaptive_rmsnorm": True, "use_rmsnorm": True}, "only one norm"),
        ({"use_adaptive_rmsnorm": True, "dim_condition": 0}, "must be positive"),
    ],
)
def test_what_does_not_fit(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(KeywordError, match=message):
        Decoder(**SMALL, **keywords)


def test_a_condition_is_asked_for_and_not_ignored() -> None:
    x, condition = torch.randn(2, 5, 16), torch.randn(2, 8)
    adaptive, plain = Encoder(**SMALL, use_adaptive_layerscale=True, dim_condition=8), Encoder(**SMALL)
    assert adaptive(x, condition=condition).shape == (2, 5, 16)
    for layers, given in ((adaptive, {}), (plain, {"condition": condition}), (adaptive, {"condition": x[:, 0]})):
        with pytest.raises(InputError, match="condition"):
            layers(x, **given)
        model = TransformerWrapper(num_tokens=9, max_seq_len=8, attn_layers=layers)
        with pytest.raises(InputError, match="condition"):
            model(torch.zeros(2, 5, dtype=torch.long), **given)


def test_a_pointwise_norm_may_stand_after() -> None:
    layers = Encoder(**SMALL, use_dynamic_tanh=True, pre_norm=False)
    assert layers(torch.randn(2, 5, 16)).abs().max() < 1.0


ADAPTIVE = {"use_adaptive_layernorm": True, "dim_condition": 5}


def perturbed(model: Any) -> Any:
    for param in model.parameters():
        param.data += 0.1 * torch.randn_like(param)
    return model.double().eval()


def test_both_sides_of_an_encoder_and_decoder() -> None:
    torch.manual_seed(0)
    size = {"num_tokens": 11, "depth": 2, "heads": 2, "attn_dim_head": 8, "max_seq_len": 9, **ADAPTIVE}
    keywords = {prefix + name: value for prefix in ("enc_", "dec_") for name, value in size.items()}
    model = perturbed(XTransformer(dim=16, **keywords))
    ids = torch.randint(0, 11, (2, 6))
    first, second = torch.randn(2, 2, 5, dtype=torch.float64)
    loss = model(ids, ids, src_condition=first, condition=second)
    context = model.encoder(ids, condition=first, return_embeddings=True)
    torch.testing.assert_close(loss, model.decoder(ids, context=context, condition=second))
    made = model.generate(ids, ids[:, :2], 5, temperature=0.0, src_condition=first, condition=second)
    again = model.generate(ids, ids[:, :2], 5, temperature=0.0, src_condition=first, condition=second, cache_kv=False)
    assert torch.equal(made, again)
    options = {"source": ids, "source_condition": first, "condition": second, "greedy": True}
    assert torch.equal(made, vf.generate(model.native, ids[:, :2], 5, **options))
    with pytest.raises(InputError, match="pass condition"):
        model(ids, ids, src_condition=first)


def test_images() -> None:
    torch.manual_seed(0)
    layers = Encoder(dim=16, depth=2, heads=2, attn_dim_head=8, **ADAPTIVE)
    model = perturbed(
        ViTransformerWrapper(image_size=8, patch_size=4, attn_layers=layers, num_classes=3, num_register_tokens=2)
    )
    images, condition = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 5).double()
    out = model(images, condition=condition)
    assert not torch.allclose(out, model(images, condition=2 * condition))
    torch.testing.assert_close(model(images[:1], condition=condition[:1]), out[:1])
    with pytest.raises(InputError, match="pass condition"):
        model(images)


def test_a_decode_state_keeps_the_condition() -> None:
    torch.manual_seed(0)
    layers = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, **ADAPTIVE)
    model = perturbed(TransformerWrapper(num_tokens=11, max_seq_len=9, attn_layers=layers)).native
    ids, condition = torch.randint(0, 11, (2, 6)), torch.randn(2, 5).double()
    whole = model(ids, condition=condition)
    first, state = model(ids[:, :3], state=model.init_state(2, condition=condition))
    second, state = model(ids[:, 3:], state=select_rows(state, torch.tensor([1, 0]), 2))
    torch.testing.assert_close(first, whole[:, :3], rtol=0, atol=1e-10)
    turned = model(torch.cat((ids[:, :3].flip(0), ids[:, 3:]), 1), condition=condition.flip(0))
    torch.testing.assert_close(second, turned[:, 3:], rtol=0, atol=1e-10)
    with pytest.raises(ShapeError, match="holds a condition"):
        model(ids[:, :1], state=state, condition=condition)
    with pytest.raises(ShapeError, match="of each row"):
        model.init_state(2, condition=condition.unsqueeze(1))
