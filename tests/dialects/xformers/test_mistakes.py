"""Every mistake in a configuration is one clear error, with its path, that old `except` clauses still catch."""

import pickle
from typing import Any

import pytest
import torch

import variform as vf
from tests.dialects.xformers.cases import DIM, SEQ, VOCAB, attention, decoder, encoder, ids, mlp, swept, vocab
from variform.dialects.xformers.components.attention import ATTENTION_REGISTRY
from variform.dialects.xformers.factory import (
    xFormer,
    xFormerConfig,
    xFormerDecoderConfig,
    xFormerEncoderBlock,
    xFormerEncoderConfig,
)


def heads(**more: Any) -> dict[str, Any]:
    return {**attention(), **more}


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


PATCH = "patch_embedding_config"
PATCHES = {"in_channels": DIM, "kernel_size": 3, "stride": 2}

MISTAKES: list[tuple[dict[str, Any], type[Exception], str, str]] = [
    (encoder(residual_norm_stile="pre"), TypeError, "residual_norm_stile", "did you mean 'residual_norm_style'"),
    (encoder(layer_norm_style="pre"), TypeError, "layer_norm_style", "no key"),
    (encoder(residual_norm_style="before"), ValueError, "residual_norm_style", "known: deepnorm, post, pre"),
    (encoder(normalization="batchnorm"), ValueError, "normalization", "layernorm"),
    (encoder(dim_model="8"), TypeError, "dim_model", "integer"),
    (encoder(dim_model=0), TypeError, "dim_model", "greater than 0"),
    (encoder(num_layers="3"), TypeError, "num_layers", "integer"),
    (encoder(num_layers=0), TypeError, "num_layers", "greater than 0"),
    (encoder(use_triton="no"), TypeError, "use_triton", "bool"),
    (encoder(reversible=True, residual_norm_style="deepnorm"), AssertionError, "reversible", "DeepNorm scales it"),
    (encoder(patch_embedding_config=PATCHES | {"in_channels": 3}), ValueError, f"{PATCH}.in_channels", "dim_model = 8"),
    (
        encoder(patch_embedding_config=PATCHES | {"out_channels": 3}),
        ValueError,
        f"{PATCH}.out_channels",
        "dim_model = 8",
    ),
    (encoder(patch_embedding_config=PATCHES | {"kernel": 3}), TypeError, f"{PATCH}.kernel", "kernel_size"),
    (encoder(patch_embedding_config=PATCHES | {"stride": "2"}), TypeError, f"{PATCH}.stride", "integer"),
    (encoder(patch_embedding_config=PATCHES | {"pool_type": "CONV"}), KeyError, f"{PATCH}.pool_type", "CONV_2D"),
    (encoder(patch_embedding_config=without(PATCHES, "stride")), TypeError, f"{PATCH}.stride", "needed"),
    (encoder(patch_embedding_config=7), TypeError, PATCH, "expected a dict"),
    (without(encoder(), "feedforward_config"), TypeError, "feedforward_config", "needed"),
    (without(encoder(), "multi_head_config"), TypeError, "multi_head_config", "needed"),
    (without(encoder(), "dim_model"), TypeError, "dim_model", "needed"),
    (without(decoder(), "multi_head_config_cross"), TypeError, "multi_head_config_cross", "needed"),
    (without(encoder(), "block_type"), KeyError, "block_type", "'encoder' or 'decoder'"),
    (encoder(block_type="encodr"), KeyError, "block_type", "did you mean 'encoder'"),
    (encoder(multi_head_config=heads(rotary=True)), TypeError, "multi_head_config.rotary", "no key"),
    (encoder(multi_head_config=heads(num_heads=3)), AssertionError, "multi_head_config.num_heads", "2 or 4"),
    (encoder(multi_head_config=heads(num_heads="2")), TypeError, "multi_head_config.num_heads", "integer"),
    (encoder(multi_head_config=heads(dim_model=16)), ValueError, "multi_head_config.dim_model", "dim_model = 8"),
    (encoder(multi_head_config=heads(residual_dropout=2)), TypeError, "multi_head_config.residual_dropout", "less"),
    (encoder(multi_head_config=without(heads(), "num_heads")), TypeError, "multi_head_config.num_heads", "needs"),
    (encoder(multi_head_config=7), TypeError, "multi_head_config", "expected a dict"),
    (encoder(multi_head_config=attention("nope")), KeyError, "multi_head_config.attention.name", "known"),
    (
        encoder(multi_head_config=attention(windw_size=3)),
        TypeError,
        "multi_head_config.attention.windw_size",
        "window_size",
    ),
    (encoder(multi_head_config=attention(dropout="lots")), TypeError, "multi_head_config.attention.dropout", "number"),
    (
        encoder(multi_head_config=attention("linear", causal="no")),
        TypeError,
        "multi_head_config.attention.causal",
        "bool",
    ),
    (encoder(feedforward_config={"name": "glu", "hidden": "5"}), TypeError, "feedforward_config.hidden", "integer"),
    (encoder(feedforward_config=mlp(name="MPL")), KeyError, "feedforward_config.name", "did you mean 'MLP'"),
    (encoder(feedforward_config=mlp(hiden=3)), TypeError, "feedforward_config.hiden", "did you mean 'hidden'"),
    (encoder(feedforward_config=mlp(activation="gellu")), KeyError, "feedforward_config.activation", "'gelu'"),
    (encoder(feedforward_config=mlp(dropout="lots")), TypeError, "feedforward_config.dropout", "number"),
    (encoder(feedforward_config=mlp(dim_model=16)), ValueError, "feedforward_config.dim_model", "dim_model = 8"),
    (
        encoder(feedforward_config=without(mlp(), "hidden_layer_multiplier")),
        TypeError,
        "feedforward_config.hidden_layer_multiplier",
        "needs this key",
    ),
    (encoder(position_encoding_config=vocab(name="sin")), KeyError, "position_encoding_config.name", "'sine'"),
    (encoder(position_encoding_config=vocab(seqlen=3)), TypeError, "position_encoding_config.seqlen", "'seq_len'"),
    (
        encoder(position_encoding_config=without(vocab(), "vocab_size")),
        TypeError,
        "position_encoding_config.vocab_size",
        "needs this key",
    ),
    (encoder(simplicial_embeddings={"L": 3}), AssertionError, "simplicial_embeddings.L", "2 or 4"),
    (encoder(simplicial_embeddings={"L": 4, "t": 1}), TypeError, "simplicial_embeddings", "temperature"),
    (encoder(simplicial_embeddings={"L": "4"}), TypeError, "simplicial_embeddings.L", "integer"),
    (
        decoder(multi_head_config_masked=heads(num_heads=3)),
        AssertionError,
        "multi_head_config_masked.num_heads",
        "2 or 4",
    ),
    (
        decoder(multi_head_config_cross=attention("fourier_mix")),
        ValueError,
        "multi_head_config_cross.attention",
        "cannot attend to another",
    ),
    (
        decoder(multi_head_config_cross=heads(num_heads=3)),
        AssertionError,
        "multi_head_config_cross.num_heads",
        "2 or 4",
    ),
]


@pytest.mark.parametrize(("config", "like", "path", "says"), MISTAKES, ids=[case[2] for case in MISTAKES])
def test_a_mistake_names_its_place(config: dict[str, Any], like: type[Exception], path: str, says: str) -> None:
    with pytest.raises(vf.ConfigError, match=says) as caught:
        xFormerConfig([encoder(), config])
    assert isinstance(caught.value, like)
    assert [problem.path for problem in caught.value.problems] == [f"stack_configs.1.{path}"]


@pytest.mark.parametrize("name", list(ATTENTION_REGISTRY))
def test_causality_holds_or_is_refused(name: str) -> None:
    needed = {"seq_len": SEQ, **swept(ATTENTION_REGISTRY)}
    config = encoder(multi_head_config=attention(name, causal=True, **needed), num_layers=2)
    try:
        model = xFormer(config).double().eval()
    except vf.ConfigError as error:
        assert "causal" in str(error)  # noqa: PT017  either outcome is right
        assert error.problems[0].path.startswith("stack_configs.0.multi_head_config.attention")  # noqa: PT017
        model = xFormer(encoder(multi_head_config=attention(name, **needed), num_layers=2)).double().eval()
        assert not model.encoders[0].causal
        assert model(ids()).isfinite().all()
        return
    assert model.encoders[0].causal
    x = ids()
    changed = x.clone()
    changed[:, 4] = (changed[:, 4] + 1) % VOCAB
    assert torch.equal(model(x)[:, :4], model(changed)[:, :4])
    assert not torch.equal(model(x)[:, 4:], model(changed)[:, 4:])


def test_what_a_part_itself_refuses_has_its_path_too() -> None:
    with pytest.raises(AssertionError, match="odd size") as caught:
        xFormerConfig({"one": encoder(multi_head_config=attention("local", window_size=4))})
    assert isinstance(caught.value, vf.ConfigError)
    assert [p.path for p in caught.value.problems] == ["stack_configs.one.multi_head_config.attention.window_size"]


def test_all_mistakes_of_all_stacks_are_told_at_once() -> None:
    bad = encoder(num_layers="3", multi_head_config=heads(num_heads=3), feedforward_config=mlp(activation="gellu"))
    with pytest.raises(vf.ConfigError) as caught:
        xFormerConfig({"one": bad, "two": decoder(residual_norm_stile="pre")}, weight_init="jax")
    assert [problem.path for problem in caught.value.problems] == [
        "stack_configs.one.num_layers",
        "stack_configs.one.feedforward_config.activation",
        "stack_configs.one.multi_head_config.num_heads",
        "stack_configs.two.residual_norm_stile",
        "weight_init",
    ]
    for like in (TypeError, KeyError, AssertionError, ValueError):
        assert isinstance(caught.value, like)
    assert str(caught.value).startswith("5 problems:\n  stack_configs.one.num_layers: ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_one_class_of_mistake_is_of_one_class() -> None:
    with pytest.raises(KeyError) as caught:
        xFormerConfig([encoder(feedforward_config=mlp(name="MPL"))])
    assert not isinstance(caught.value, (TypeError, AssertionError))
    assert str(caught.value).startswith("stack_configs.0.feedforward_config.name: ")


def test_stacks_that_contradict_one_another() -> None:
    deep = {"residual_norm_style": "deepnorm"}
    with pytest.raises(AssertionError, match=r"stack_configs\.1\.residual_norm_style: .*same deepnorm"):
        xFormerConfig([encoder(**deep), decoder()])
    wider = {"dim_model": 2 * DIM}
    with pytest.raises(vf.ConfigError, match=r"stack_configs\.1\.dim_model: the encoder layers before"):
        xFormerConfig([encoder(), encoder(**wider)])
    with pytest.raises(
        vf.ConfigError, match=r"stack_configs\.two\.dim_model: the encoder that it attends to has .* 16"
    ):
        xFormerConfig({"one": encoder(**wider), "two": decoder()})


@pytest.mark.parametrize("stacks", [[], {}, 7, "encoder", [7], None])
def test_what_describes_no_stack_is_refused(stacks: Any) -> None:
    with pytest.raises(TypeError, match="stack") as caught:
        xFormerConfig(stacks)
    assert isinstance(caught.value, vf.ConfigError)
    with pytest.raises(TypeError):
        xFormer(stacks)


def test_a_block_needs_its_own_configuration() -> None:
    with pytest.raises(TypeError, match="xFormerEncoderConfig"):
        xFormerEncoderBlock(xFormerDecoderConfig(**decoder()))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="this configures an encoder"):
        xFormerEncoderConfig(**encoder(block_type="decoder"))


def test_tying_needs_two_equal_embeddings() -> None:
    with pytest.raises(AssertionError, match="an encoder and a decoder"):
        xFormer([encoder()], tie_embedding_weights=True)
    with pytest.raises(vf.ConfigError, match="the position embeddings differ"):
        xFormer([encoder(), decoder(position_encoding_config=vocab(vocab_size=5))], tie_embedding_weights=True)


def test_settings_that_no_model_has_are_refused() -> None:
    for make in (xFormerConfig, xFormer):
        with pytest.raises(TypeError, match=r"tie_embeding_weights: .*did you mean 'tie_embedding_weights'") as caught:
            make([encoder(residual_norm_stile="pre")], tie_embeding_weights=True)
        assert isinstance(caught.value, vf.ConfigError)
        assert [problem.path for problem in caught.value.problems] == [
            "stack_configs.0.residual_norm_stile",
            "tie_embeding_weights",
        ]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("nystrom", "num_heads"),
        ("blocksparse", "num_heads"),
        ("lambda", "dim_head"),
        ("favor", "dim_head"),
        ("visual", "dim_model"),
        ("compositional", "dim_model"),
    ],
)
def test_attentions_have_the_sizes_of_what_is_around_them(name: str, key: str) -> None:
    more = {"seq_len": SEQ, **swept(ATTENTION_REGISTRY)}
    with pytest.raises(
        AssertionError, match=rf"multi_head_config\.attention\.{key}: the heads around it have {key} = "
    ):
        xFormerConfig([encoder(multi_head_config=attention(name, **more, **{key: 16}))])
