"""`reversible: True` in configurations: encoders and decoders, their native models, masks, gradients, memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.dialects.xformers.cases import SEQ, attention, decoder, encoder, features, fill, ids, mlp, vocab
from variform.dialects.xformers.factory import (
    xFormer,
    xFormerConfig,
    xFormerEncoderBlock,
    xFormerEncoderConfig,
    xFormerStackConfig,
)
from variform.weights.xformers import from_native, to_native

SOURCE_REAL = torch.arange(7) < torch.tensor([[7], [4]])
TARGET_REAL = torch.arange(SEQ) < torch.tensor([[3], [SEQ]])


def build(*stacks: dict[str, Any], **more: Any) -> Any:
    return fill(xFormer.from_config(xFormerConfig(list(stacks), **more)))


def reversible(config: dict[str, Any], layers: int = 3, **more: Any) -> dict[str, Any]:
    return {**config, "reversible": True, "num_layers": layers, **more}


def noisy(dropout: float = 0.3) -> dict[str, Any]:
    heads = {**attention(), "residual_dropout": dropout}
    return {"multi_head_config": heads, "feedforward_config": mlp(dropout=dropout)}


def formula(blocks: Any, x: Tensor, given: dict[str, Any]) -> Tensor:
    """Two streams in turn, their mean, the final norm: by plain autograd."""
    x, padding, positions = blocks[0].embed(x, given.get("padding"))
    given = {**given, "padding": padding, "positions": positions}
    x1 = x2 = x
    for block in blocks:
        for _, step in block.steps():
            x1, x2 = x2, x1 + step(x2, given)
    return blocks[-1].finish((x1 + x2) / 2)  # type: ignore[no-any-return]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("normalization", ["layernorm", "skip"])
@pytest.mark.parametrize("style", ["pre", "post"])
@pytest.mark.parametrize("sides", [(True, True), (True, False), (False, True)])
def test_models_equal_their_specs(sides: tuple[bool, bool], style: str, normalization: str) -> None:
    common = {"residual_norm_style": style, "normalization": normalization, "num_layers": 2}
    encode, decode = sides
    model = build(encoder(**common, reversible=encode), decoder(**common, reversible=decode))
    native = vf.build(model.spec).double().eval()
    native.load_state_dict(to_native(model.state_dict()))
    executors = [native.encoder.stacks[0].executor, native.decoder.stacks[0].executor]
    assert executors == ["reversible" if side else "plain" for side in sides]
    source, target = ids(7, 1), ids()
    close(model(source, target), native(source, target))
    padded = model(source, target, encoder_input_mask=SOURCE_REAL, decoder_input_mask=TARGET_REAL)
    close(padded[TARGET_REAL], native(source, target, source_valid=SOURCE_REAL, valid=TARGET_REAL)[TARGET_REAL])
    plain = build(encoder(**common), decoder(**common))
    assert (model(source, target) - plain(source, target)).abs().max() > 1e-3
    back = from_native(native.state_dict(), model.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_a_pre_norm_block_is_upstreams_formula() -> None:
    """From [x, x]: y1 = x1 + attention(norm(x2)), y2 = x2 + feedforward(norm(y1)), the mean, the final norm."""
    block = fill(xFormerEncoderBlock(xFormerEncoderConfig(**encoder(reversible=True))))
    x = block.pose_encoding(ids())
    attend, feed = block.wrap_att.branch, block.wrap_ff.branch
    y1 = x + attend.sublayer(attend.norm(x))
    y2 = x + feed.sublayer(feed.norm(y1))
    close(block(ids()), block.final_norm((y1 + y2) / 2))
    post = fill(xFormerEncoderBlock(xFormerEncoderConfig(**encoder(reversible=True, residual_norm_style="post"))))
    x = post.pose_encoding(ids())
    y1 = x + post.wrap_att.norm(post.wrap_att.sublayer.branch(x))
    y2 = x + post.wrap_ff.norm(post.wrap_ff.sublayer.branch(y1))
    close(post(ids()), (y1 + y2) / 2)
    assert post.final_norm is None


def outcome(run: Callable[[], Tensor], sources: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(3)
    out = run()
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), sources)]


@pytest.mark.parametrize("style", ["pre", "post"])
def test_gradients_are_those_of_the_formula_with_dropout(style: str) -> None:
    more = {"residual_norm_style": style, **noisy()}
    masked = {"multi_head_config_masked": {**attention(causal=True), "residual_dropout": 0.2}}
    model = build(reversible(encoder(**more)), reversible(decoder(residual_norm_style=style, **masked))).train()
    source, target = ids(7, 1), ids()
    added = torch.randn(SEQ, SEQ, dtype=torch.float64, requires_grad=True)

    def plainly() -> Tensor:
        memory = formula(model.encoders, source, {"padding": SOURCE_REAL})
        given = {"memory": memory, "memory_padding": SOURCE_REAL, "padding": None, "cross_mask": None}
        return formula(model.decoders, target, {**given, "att_mask": added})

    sources = [*model.parameters(), added]
    got = outcome(lambda: model(source, target, SOURCE_REAL, decoder_att_mask=added), sources)
    for a, b in zip(got, outcome(plainly, sources), strict=True):
        close(a, b, 1e-9)


def test_masks_and_padding_count() -> None:
    model = build(reversible(encoder()))
    real = torch.arange(SEQ) < torch.tensor([[4], [SEQ]])
    out = model(ids(), encoder_input_mask=real)
    close(out[:1, :4], model(ids()[:1, :4]))
    mask = torch.ones(SEQ, SEQ, dtype=torch.bool).tril()
    close(model(ids(), encoder_att_mask=mask)[:, :4], model(ids()[:, :4], encoder_att_mask=mask))
    assert (model(ids(), encoder_att_mask=mask) - model(ids())).abs().max() > 1e-3
    close(model(ids(), encoder_input_mask=torch.ones(2, SEQ)), model(ids()))


def kept(model: Any, *args: Tensor) -> int:
    sizes: dict[int, int] = {}
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    held = []

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(*args)
    return sum(sizes.values())


def test_what_is_kept_does_not_depend_on_the_depth() -> None:
    few, many = (kept(build(reversible(encoder(), n), reversible(decoder(), n)), ids(7), ids()) for n in (4, 32))
    assert few == many
    assert many < kept(build(encoder(num_layers=4), decoder(num_layers=4)), ids(7), ids()) / 5


@pytest.mark.parametrize(
    "config",
    [
        encoder(position_encoding_config={"name": "learnable", "seq_len": SEQ, "add_class_token": True}),
        encoder(position_encoding_config={"name": "sine", "seq_len": SEQ}),
        encoder(multi_head_config={**attention("linear", causal=True), "use_rotary_embeddings": True}),
        encoder(simplicial_embeddings={"L": 4, "temperature": 0.5}),
        encoder(feedforward_config={"name": "glu", "hidden": 5}),
        encoder(position_encoding_config=vocab(dim_model=4)),
    ],
    ids=["class token", "sine", "rotary", "simplicial", "glu", "projected"],
)
def test_every_kind_of_encoder_equals_its_spec(config: dict[str, Any]) -> None:
    model = build(reversible(config))
    native = vf.build(model.spec).double().eval()
    native.load_state_dict(to_native(model.state_dict()))
    name = config["position_encoding_config"]["name"]
    inputs = ids() if name == "vocab" else features(SEQ - 1)
    close(model(inputs), native(inputs))
    close(model(inputs), formula(model.encoders, inputs, {}))


def test_tied_embeddings_are_refused() -> None:
    for sides in ((reversible(encoder()), decoder()), (encoder(), reversible(decoder()))):
        with pytest.raises(vf.ConfigError, match=r"tie_embedding_weights: .*reversible") as caught:
            build(*sides, tie_embedding_weights=True)
        assert isinstance(caught.value, AssertionError)


def test_patches_are_embedded_between_runs() -> None:
    """A hierarchy: patches of the mean of both streams, which begin anew."""
    patches = {"in_channels": 3, "kernel_size": 2, "stride": 2}
    first = encoder(position_encoding_config=None, patch_embedding_config=patches)
    second = encoder(position_encoding_config=None, patch_embedding_config={**patches, "in_channels": 8})
    model = build(reversible(first, 2), reversible(second, 2))
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    one, two = model.encoders[:2], model.encoders[2:]
    sources = [image, *model.parameters()]
    got = outcome(lambda: model(image), sources)
    for a, b in zip(got, outcome(lambda: formula(two, formula(one, image, {}), {}), sources), strict=True):
        close(a, b, 1e-9)
    native = vf.build(model.spec).double().eval()
    native.load_state_dict(to_native(model.state_dict()))
    close(native(image.flatten(2).transpose(1, 2)), model(image))


def test_a_stack_config_says_it_too() -> None:
    stack = xFormerStackConfig(xFormerEncoderConfig(**encoder()), num_layers=2, reversible=True)
    model = build(stack)  # type: ignore[arg-type]
    assert all(block.reversible for block in model.encoders)
    close(model(ids()), build(reversible(encoder(), 2))(ids()))


def test_a_post_norm_model_with_dropout_has_no_native_equivalent() -> None:
    model = build(reversible(encoder(residual_norm_style="post", **noisy())))
    with pytest.raises(vf.ConfigError, match="dropout 0, or residual_norm_style 'pre'"):
        _ = model.spec
    assert build(reversible(encoder(**noisy()))).spec


CONTRADICTIONS: dict[str, tuple[list[dict[str, Any]], str, str]] = {
    "mixed encoders": ([encoder(reversible=True), encoder()], "stack_configs.1.reversible", "all encoder layers"),
    "mixed decoders": ([decoder(), decoder(reversible=True)], "stack_configs.1.reversible", "all decoder layers"),
    "deepnorm": (
        [encoder(reversible=True, residual_norm_style="deepnorm")],
        "stack_configs.0.reversible",
        "DeepNorm scales it",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_contradicts_is_refused(case: tuple[list[dict[str, Any]], str, str]) -> None:
    stacks, path, message = case
    with pytest.raises(AssertionError, match=message) as caught:
        xFormerConfig(stacks)
    assert isinstance(caught.value, vf.ConfigError)
    assert caught.value.path == path
