"""Blocks and models: what they compute, the native models their specs describe, masks and padding all the way."""

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.dialects.xformers.cases import DIM, SEQ, VOCAB, attention, decoder, encoder, features, fill, ids, mlp, vocab
from variform.dialects.xformers.components import PostNorm, PreNorm, Residual
from variform.dialects.xformers.factory import (
    xFormer,
    xFormerConfig,
    xFormerDecoderBlock,
    xFormerDecoderConfig,
    xFormerEncoderBlock,
    xFormerEncoderConfig,
    xFormerStackConfig,
)
from variform.weights.xformers import from_native, to_native

STYLES = ("pre", "post", "deepnorm")


def build(*stacks: dict[str, Any], **more: Any) -> Any:
    return fill(xFormer.from_config(xFormerConfig(list(stacks), **more)))


def twin(model: Any) -> Any:
    """The native model that `model.spec` describes, with its weights."""
    native = vf.build(model.spec).double().eval()
    native.load_state_dict(to_native(model.state_dict()))
    return native


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


SOURCE_REAL = torch.arange(7) < torch.tensor([[7], [4]])
TARGET_REAL = torch.arange(SEQ) < torch.tensor([[3], [SEQ]])


@pytest.mark.parametrize("normalization", ["layernorm", "skip"])
@pytest.mark.parametrize("style", STYLES)
def test_an_encoder_with_a_decoder_equals_its_spec(style: str, normalization: str) -> None:
    common = {"residual_norm_style": style, "normalization": normalization, "num_layers": 2}
    model = build(encoder(**common), decoder(**common))
    native, source, target = twin(model), ids(7, 1), ids()
    close(model(source, target), native(source, target))
    padded = model(source, target, encoder_input_mask=SOURCE_REAL, decoder_input_mask=TARGET_REAL)
    close(padded[TARGET_REAL], native(source, target, source_valid=SOURCE_REAL, valid=TARGET_REAL)[TARGET_REAL])
    back = from_native(native.state_dict(), model.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("config", "inputs"),
    [
        (encoder(), ids()),
        (encoder(multi_head_config=attention("local", window_size=3)), ids()),
        (encoder(multi_head_config=attention("local", causal=True, window_size=2)), ids()),
        (encoder(multi_head_config={**attention("linear", causal=True), "use_rotary_embeddings": True}), ids()),
        (encoder(multi_head_config={**attention(), "bias": [False, False, False, True]}), ids()),
        (encoder(position_encoding_config={"name": "sine", "seq_len": SEQ}), features()),
        (encoder(position_encoding_config={"name": "learnable", "seq_len": SEQ}), features(6)),
        (encoder(position_encoding_config={"name": "learnable", "seq_len": SEQ, "add_class_token": True}), features(6)),
        (encoder(position_encoding_config=vocab(dim_model=4, dropout=0.1)), ids()),
        (encoder(position_encoding_config=None), features()),
        (encoder(simplicial_embeddings={"L": 4, "temperature": 0.5}, num_layers=3), ids()),
        (encoder(feedforward_config={"name": "glu", "hidden": 5}), ids()),
        (encoder(feedforward_config=mlp(activation="smelu", bias=False)), ids()),
    ],
    ids=lambda value: "" if isinstance(value, Tensor) else str(value.get("position_encoding_config"))[:40],
)
def test_every_kind_of_encoder_equals_its_spec(config: dict[str, Any], inputs: Tensor) -> None:
    model = build(config, encoder(position_encoding_config=None, multi_head_config=attention(causal=True)))
    if config.get("simplicial_embeddings"):
        model = build(config)
    native, length = twin(model), inputs.shape[1]
    close(model(inputs), native(inputs))
    real = torch.arange(length) < torch.tensor([[4], [length]])
    out = model(inputs, encoder_input_mask=real)
    shown = torch.nn.functional.pad(real, (out.shape[1] - length, 0), value=True)
    close(out[shown], native(inputs, valid=real)[shown])
    close(out[:1, : shown[0].sum()], model(inputs[:1, :4]))


def test_a_decoder_alone() -> None:
    model = build(decoder(num_layers=2))
    memory, target = features(7, 1), ids()
    close(model(memory, target), twin(model)(target, context=memory))
    close(model(memory, target), model.decoders[1](model.decoders[0](target, memory), memory))
    with pytest.raises(AssertionError, match="attends to a memory"):
        model(target)
    without = build(decoder(multi_head_config_cross=None, num_layers=2))
    close(without(target), twin(without)(target))
    with pytest.raises(AssertionError, match="takes no memory"):
        without(memory, target)


def test_the_same_architecture_as_the_native_preset() -> None:
    """GPT with offsets: causal pre-norm layers with a final norm; the factory calls that an encoder."""
    preset = vf.models.gpt(vocab_size=VOCAB, dim=DIM, depth=3, heads=2, max_seq_len=SEQ, bias=True)
    native = vf.build(preset).double()
    config = encoder(num_layers=3, multi_head_config=attention(causal=True), feedforward_config=mlp(activation="gelu"))
    model = xFormer.from_config(xFormerConfig([config])).double()
    trunk = {name: tensor for name, tensor in native.state_dict().items() if not name.startswith("head.")}
    model.load_state_dict(from_native(trunk, model.state_dict()))
    close(model(ids()), native(ids(), hidden=True))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_final_norm_stands_after_the_last_layer_of_either_side(style: str, depth: int) -> None:
    model = build(
        encoder(num_layers=depth, residual_norm_style=style),
        encoder(num_layers=1, residual_norm_style=style, position_encoding_config=None),
        decoder(num_layers=depth, residual_norm_style=style),
    )
    for blocks in (model.encoders, model.decoders):
        final = [isinstance(b.wrap_ff, PostNorm) and isinstance(b.wrap_ff.sublayer.layer, PreNorm) for b in blocks]
        assert final == [False] * (len(blocks) - 1) + [style == "pre"]


def test_the_tree_has_upstreams_names() -> None:
    block = build(encoder()).encoders[0]
    assert isinstance(block.wrap_att, Residual)
    assert isinstance(block.wrap_att.layer, PreNorm)
    names = [name for name, _ in block.wrap_att.layer.sublayer.named_children()]
    assert names == ["attention", "in_proj_container", "resid_drop", "proj"]
    expected = {
        "pose_encoding.position_embeddings.weight",
        "wrap_att.layer.norm.weight",
        "wrap_att.layer.sublayer.in_proj_container.q_proj.bias",
        "wrap_att.layer.sublayer.proj.weight",
        "wrap_ff.norm.bias",
        "wrap_ff.sublayer.layer.sublayer.mlp.3.weight",
    }
    assert expected <= set(block.state_dict())
    assert block.causal is False
    assert build(encoder(multi_head_config=attention(causal=True))).encoders[0].causal is True


def test_inner_parts_are_read_and_printed_but_stand_once() -> None:
    model = build(encoder(), decoder())
    first, last = model.encoders[0], model.decoders[0]
    assert first.mha is first.wrap_att.layer.sublayer
    assert first.feedforward is first.wrap_ff.sublayer.layer.sublayer
    assert last.cross_mha is last.wrap_cross.layer.sublayer
    printed = [line.strip() for line in repr(first).splitlines() if line.startswith("  (")]
    names = ["pose_encoding", "mha", "feedforward", "wrap_att", "wrap_ff"]
    assert [line.split(")")[0] for line in printed] == [f"({name}" for name in names]
    assert not any(".mha." in key or ".feedforward." in key for key in model.state_dict())


def test_what_a_block_needs_is_read_from_it() -> None:
    model = build(encoder(multi_head_config=attention("local")), decoder())
    first, last = model.encoders[0], model.decoders[0]
    assert (first.supports_attention_mask, last.supports_attention_mask) == (True, True)
    assert (first.requires_same_k_q_dimensions, last.requires_same_k_q_dimensions) == (True, False)
    assert not first.requires_squared_context_length
    assert not last.requires_squared_context_length
    assert (first.causal, last.causal_attention) == (False, True)
    assert first.feedforward.requires_cuda is False


def test_positions_come_once_and_repeats_differ() -> None:
    model = xFormer.from_config(xFormerConfig([encoder(num_layers=2), encoder()]))
    assert [block.pose_encoding is None for block in model.encoders] == [False, True, True]
    assert model.dropped == ("stack_configs.1.position_encoding_config",)
    weights = [block.wrap_att.layer.sublayer.proj.weight for block in model.encoders]
    assert not torch.equal(weights[0], weights[1])


def test_deepnorm_constants_are_the_papers() -> None:
    deep = {"residual_norm_style": "deepnorm"}
    alone = build(encoder(num_layers=3, **deep))
    pair = build(encoder(num_layers=3, **deep), decoder(num_layers=2, **deep))
    assert alone.encoders[0].wrap_att.sublayer.scale == pytest.approx((2 * 3) ** 0.25)
    assert pair.encoders[0].wrap_ff.sublayer.scale == pytest.approx(0.81 * (3**4 * 2) ** (1 / 16))
    assert pair.decoders[1].wrap_cross.sublayer.scale == pytest.approx((3 * 2) ** 0.25)


# ---- how a block is called ----


@pytest.fixture
def block() -> Any:
    return fill(xFormerEncoderBlock(xFormerEncoderConfig(**encoder())))


def test_an_encoder_takes_its_input_once_or_thrice(block: Any) -> None:
    x = ids()
    assert torch.equal(block(x), block(x, x, x))
    for other in (x.flip(1), torch.ones(SEQ, SEQ, dtype=torch.bool)):
        with pytest.raises(AssertionError, match="att_mask="):
            block(x, other)


def test_masks_reach_the_attention_of_a_block(block: Any) -> None:
    x = ids()
    lower = torch.ones(SEQ, SEQ, dtype=torch.bool).tril()
    causal = fill(xFormerEncoderBlock(xFormerEncoderConfig(**encoder(multi_head_config=attention(causal=True)))))
    close(block(x, att_mask=lower), causal(x))
    close(block(x, att_mask=lower.double()), causal(x))
    for mask in (TARGET_REAL, TARGET_REAL.float(), torch.zeros(2, SEQ).masked_fill(~TARGET_REAL, -torch.inf)):
        out = block(x, input_mask=mask)
        close(out, block(x, key_padding_mask=mask))
        close(out[0, :3], block(x[:1, :3])[0])
        close(out[1], block(x[1:])[0])
    other = torch.arange(SEQ) > 0
    close(block(x, input_mask=TARGET_REAL, key_padding_mask=other), block(x, input_mask=TARGET_REAL & other))
    with pytest.raises(AssertionError, match="marks padding"):
        block(x, input_mask=torch.rand(SEQ))


@pytest.mark.parametrize("name", ["vocab", "sine", "learnable"])
@pytest.mark.parametrize("start", [0, 2, 4])
def test_padding_on_either_side_changes_no_real_token(name: str, start: int) -> None:
    position = vocab() if name == "vocab" else {"name": name, "seq_len": SEQ}
    heads = {**attention("local", window_size=3), "use_rotary_embeddings": True}
    model = build(encoder(position_encoding_config=position, multi_head_config=heads, num_layers=2))
    padded = ids() if name == "vocab" else features()
    real = torch.zeros(2, SEQ, dtype=torch.bool)
    real[:, start : start + 5] = True
    close(model(padded, encoder_input_mask=real)[:, start : start + 5], model(padded[:, start : start + 5]))


def test_masks_reach_every_attention_of_a_model() -> None:
    model = build(encoder(num_layers=2), decoder(multi_head_config_masked=attention(), num_layers=2))
    causal = build(encoder(num_layers=2, multi_head_config=attention(causal=True)), decoder(num_layers=2))
    source, target = ids(7, 1), ids()
    lower = torch.ones(SEQ, SEQ, dtype=torch.bool).tril()
    masked = model(source, target, encoder_att_mask=lower[:7, :7], decoder_att_mask=lower)
    close(masked, causal(source, target))
    first = torch.zeros(SEQ, 7, dtype=torch.bool)
    first[:, :4] = True
    real = torch.arange(7) < 4
    close(model(source, target, encoder_input_mask=real), model(source[:, :4], target))
    close(
        model(source, target, encoder_att_mask=first[:7], cross_att_mask=first),
        model(source, target, encoder_key_padding_mask=real),
    )


def test_inputs_for_a_missing_side_are_refused() -> None:
    model, x = build(encoder()), ids()
    for name in ("tgt", "decoder_input_mask", "decoder_att_mask", "cross_att_mask", "decoder_key_padding_mask"):
        with pytest.raises(AssertionError, match=f"{name} was given, and this model has no decoder"):
            model(x, **{name: torch.ones(2, SEQ, dtype=torch.bool)})
    with pytest.raises(AssertionError, match="has no encoder"):
        build(decoder())(features(), x, encoder_att_mask=torch.ones(SEQ, SEQ))


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (ids(SEQ + 1), "seq_len is 9"),
        (torch.full((2, 3), VOCAB), r"must lie in \[0, 11\)"),
        (torch.rand(2, 3), "token ids are integers"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(block: Any, inputs: Tensor, says: str) -> None:
    with pytest.raises(vf.ShapeError, match=says):
        block(inputs)
    with pytest.raises(vf.ShapeError, match="without a position embedding"):
        build(encoder(position_encoding_config=None))(ids())


def test_tied_embeddings_are_one_module() -> None:
    model = build(encoder(), decoder(), tie_embedding_weights=True)
    assert model.encoders[0].pose_encoding is model.decoders[0].pose_encoding
    native = twin(model)
    assert native.encoder.embedding is native.decoder.embedding
    close(model(ids(7, 1), ids()), native(ids(7, 1), ids()))
    twice = copy.deepcopy(model)
    assert twice.encoders[0].pose_encoding is twice.decoders[0].pose_encoding
    assert twice.encoders[0].pose_encoding is not model.encoders[0].pose_encoding


def test_a_block_has_a_spec_too(block: Any) -> None:
    close(block(ids()), twin(block)(ids()))
    single = fill(xFormerDecoderBlock(xFormerDecoderConfig(**decoder())))
    close(single(ids(), features(7)), twin(single)(ids(), context=features(7)))


def test_training_and_compiling() -> None:
    config = encoder(
        num_layers=2,
        multi_head_config={**attention(), "residual_dropout": 0.1},
        feedforward_config=mlp(dropout=0.1),
    )
    model = xFormer.from_config(xFormerConfig([config]))
    assert not torch.equal(model(ids()), model(ids()))
    model(ids()).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids()), model(ids()))


def test_dropouts_are_in_the_spec() -> None:
    heads = {"num_heads": 2, "residual_dropout": 0.1, "attention": {"name": "scaled_dot_product", "dropout": 0.2}}
    config = encoder(multi_head_config=heads, feedforward_config=mlp(dropout=0.3))
    att, ff = xFormer(config).spec["stacks"][0]["layers"][0]["sublayers"]
    assert (att["dropout"], att["body"]["attention"]["dropout"]) == (0.1, 0.2)
    assert (ff["dropout"], ff["body"]["dropout"]) == (0.3, 0.3)


def test_models_are_copied_pickled_and_loaded_strictly() -> None:
    config = encoder(
        multi_head_config=attention("linear", causal=True), feedforward_config={"name": "glu", "hidden": 5}
    )
    model = build(config)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        close(again(ids()), model(ids()))
    other = xFormer(config).double().eval()
    other.load_state_dict(model.state_dict())
    close(other(ids()), model(ids()))


@pytest.mark.parametrize("stacks", [[encoder(num_layers=2)], [encoder(), decoder()]])
def test_the_library_describes_and_checks_models(stacks: list[Any]) -> None:
    model = xFormer(stacks)
    assert vf.describe(model, batch=2, length=7).params == sum(p.numel() for p in model.parameters())
    assert str(vf.check(model)) == "ok"


def test_a_model_made_on_meta_allocates_nothing() -> None:
    with torch.device("meta"):
        model = xFormer(encoder(num_layers=2))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model(torch.zeros(2, 5, dtype=torch.long, device="meta")).shape == (2, 5, DIM)


# ---- how a model is described ----


def test_stacks_in_a_list_by_name_alone_or_as_objects() -> None:
    stacks: list[Any] = [
        [encoder(num_layers=2)],
        {"first": encoder(num_layers=2)},
        encoder(num_layers=2),
        [xFormerEncoderConfig(**encoder(num_layers=2))],
        [xFormerStackConfig(xFormerEncoderConfig(**encoder()), num_layers=2, reversible=False)],
        [xFormerStackConfig(encoder(), num_layers=2, reversible=False)],  # type: ignore[arg-type]
        [{"block_config": encoder(), "num_layers": 2, "reversible": False}],
        [{"block_config": encoder(num_layers=2)}],
    ]
    specs = [xFormer.from_config(xFormerConfig(stack)).spec for stack in stacks]
    assert all(spec == specs[0] for spec in specs)
    assert xFormer(stacks[0]).spec == specs[0]
    assert list(xFormerConfig(stacks[1]).stack_configs) == ["first"]


def test_configurations_are_never_changed() -> None:
    described = [encoder(num_layers=2), decoder()]
    before = json.dumps(described)
    config = xFormerConfig(described)
    first, second = xFormer.from_config(config), xFormer.from_config(config)
    assert json.dumps(described) == before
    assert first.spec == second.spec == xFormer.from_config(xFormerConfig(described)).spec
    described[0]["multi_head_config"]["num_heads"] = 3
    assert xFormer.from_config(config).spec == first.spec


def test_a_configuration_is_read_by_attribute() -> None:
    config = xFormerEncoderConfig(**encoder(num_layers=2))
    assert config.feedforward_config.hidden_layer_multiplier == 4
    assert config.feedforward_config["dim_model"] == DIM
    assert config.position_encoding_config is not None
    assert config.position_encoding_config.vocab_size == VOCAB
    assert config.layer_position.is_first()
    assert config.block_type == "encoder"
    config.feedforward_config.hidden_layer_multiplier = 2
    assert xFormerEncoderBlock(config).wrap_ff.sublayer.layer.sublayer.mlp[0].out_features == 2 * DIM


def test_a_stack_knows_its_place() -> None:
    own = xFormerEncoderConfig(**encoder(num_layers=3))
    config = xFormerConfig({"a": own, "b": encoder(), "c": decoder()})
    places = [stack.layer_position for stack in config.stack_configs.values()]  # type: ignore[union-attr]
    assert [(place.is_first(), place.is_last()) for place in places] == [(True, False), (False, True), (True, True)]
    assert own.layer_position.is_last()


def test_what_had_no_use_is_listed() -> None:
    config = encoder(
        multi_head_config=attention(window_size=3),
        feedforward_config=mlp(hidden=7),
        position_encoding_config=vocab(add_class_token=False),
    )
    dropped = (
        "stack_configs.0.position_encoding_config.add_class_token",
        "stack_configs.0.multi_head_config.attention.window_size",
        "stack_configs.0.feedforward_config.hidden",
    )
    assert xFormer(config).dropped == dropped


def test_weights_that_do_not_fit_are_named() -> None:
    model = build(encoder())
    native = twin(model).state_dict()
    native["stacks.0.nom.weight"] = native.pop("stacks.0.norm.weight")
    with pytest.raises(vf.ConfigError, match=r"did you mean 'stacks\.0\.nom\.weight'") as caught:
        from_native(native, model.state_dict())
    assert [p.path for p in caught.value.problems] == ["stacks.0.nom.weight", "stacks.0.norm.weight"]
    with pytest.raises(vf.ConfigError, match="has no place in a native model"):
        to_native({"encoders.0.wrap_att.layer.sublayer.gate.weight": torch.zeros(1)})
