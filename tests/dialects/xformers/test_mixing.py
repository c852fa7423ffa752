"""Attentions that mix the whole sequence themselves: upstream's names for them, and every mixer of the library."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from tests.dialects.xformers.cases import DIM, HEADS, SEQ, attention, decoder, encoder, features, fill, ids
from variform.core.registry import unregister
from variform.dialects.xformers.components import (
    InputProjection,
    InputProjectionConfig,
    MultiHeadDispatch,
    build_attention,
    build_multi_head_attention,
)
from variform.dialects.xformers.components.attention import (
    ATTENTION_REGISTRY,
    Attention,
    AttentionConfig,
    CompositionalAttention,
    FourierMix,
    Pooling,
    Visual,
    register_attention,
)
from variform.dialects.xformers.components.attention.mixing import NativeMixer, mixer_items
from variform.dialects.xformers.components.attention.pooling import PoolingAttentionConfig
from variform.dialects.xformers.components.attention.visual import VisualAttentionConfig
from variform.dialects.xformers.components.feedforward import Conv2DFeedforward, build_feedforward
from variform.dialects.xformers.components.feedforward.conv_mlp import ConvMlpConfig
from variform.dialects.xformers.factory import xFormer, xFormerConfig, xFormerEncoderBlock, xFormerEncoderConfig
from variform.ops.fourier import naive_fourier_mix
from variform.parts.kinds import Mixer, Streams
from variform.weights.xformers import from_native, to_native

X = features()
SIZES = {"dim_model": DIM, "num_heads": HEADS}
REAL = torch.arange(SEQ) < torch.tensor([[SEQ], [4]])
CLASSES = ("fourier_mix", "pooling", "visual", "compositional")
CONFIGS: dict[str, dict[str, Any]] = {
    "fourier_mix": {"dropout": 0.0},
    "pooling": {"pool_size": 2, "stride": 2, "padding": 0},
    "visual": {},
    "compositional": {"num_rules": 4},
    "folded": {"every": 2},
    **{name: {} for name in mixer_items(frozenset()) if name not in (*CLASSES, "folded")},
}
NAMES = [*CONFIGS]


def built(name: str, **more: Any) -> Any:
    return fill(build_attention({"name": name, **CONFIGS[name], **more}, dim_model=DIM, num_heads=HEADS, seq_len=32))


def dispatch(name: str, **more: Any) -> Any:
    config = {"name": name, "seq_len": 32, **CONFIGS[name], **more}
    return fill(build_multi_head_attention({"dim_model": DIM, "num_heads": HEADS, "attention": config}))


def model(*stacks: dict[str, Any]) -> Any:
    return fill(xFormer.from_config(xFormerConfig(list(stacks))))


def twin(part: Any) -> Any:
    native = vf.build(part.spec).double().eval()
    native.load_state_dict(to_native(part.state_dict()))
    return native


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# ---- every mixer ----


def test_upstreams_names_and_all_mixers_are_registered() -> None:
    assert set(NAMES) <= set(ATTENTION_REGISTRY)
    assert {"multi_head", "fourier_mix", "pooling", "visual"} <= set(NAMES)
    assert "cross_attention" not in ATTENTION_REGISTRY  # it reads another sequence
    assert not {"rotated", "value_residual", "score_residual"} & set(ATTENTION_REGISTRY)  # by a context, by layers
    assert [ATTENTION_REGISTRY[n].constructor for n in ("fourier_mix", "pooling", "visual")] == [
        FourierMix,
        Pooling,
        Visual,
    ]
    assert ATTENTION_REGISTRY["pooling"].config is PoolingAttentionConfig
    assert ATTENTION_REGISTRY["visual"].config is VisualAttentionConfig
    assert ATTENTION_REGISTRY["fourier_mix"].config is AttentionConfig


@pytest.mark.parametrize("name", NAMES)
def test_flags_are_what_the_native_part_can_do(name: str) -> None:
    part = built(name)
    can = type(part.native).abilities(dict(part.native.spec.args))
    assert isinstance(part, NativeMixer)
    assert part.supports_attention_mask == can.attention_mask
    assert part.supports_key_padding_mask == can.key_padding
    assert part.requires_same_k_q_dimensions == (name != "compositional")
    assert not part.requires_input_projection
    assert not part.requires_head_dimension
    assert part.requires_skip_multi_head == (name != "fourier_mix")
    assert part.requires_squared_context == (name in ("pooling", "visual"))


@pytest.mark.parametrize("name", NAMES)
def test_on_its_own_it_is_the_native_part(name: str) -> None:
    part = built(name)
    close(part(X, X, X), part.native(X, {}))
    close(part(X), part.native(X, {}))
    if name == "compositional":
        return  # it attends to other sequences as well
    with pytest.raises(AssertionError, match="key and value are the query itself"):
        part(X, X.flip(1), X)
    with pytest.raises(AssertionError, match=r"takes \[B, S, dim_model\]"):
        part(X.unsqueeze(1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("causal", [False, True])
def test_masks_and_padding_are_honoured_or_refused(name: str, causal: bool) -> None:
    if causal and not vf.parts()["mixer", name].can.causal:
        with pytest.raises(vf.ConfigError, match=r"cannot honour 'causal'.*it is honoured by: .*multi_head"):
            built(name, causal=True)
        return
    heads = dispatch(name, **({"causal": True} if causal else {}))
    can = type(heads.attention.native).abilities(dict(heads.attention.native.spec.args))
    assert heads.attention.causal == causal
    if causal:
        changed = X.clone()
        changed[:, 5:] += 1
        close(heads(changed)[:, :5], heads(X)[:, :5])
    if can.key_padding:
        out = heads(X, key_padding_mask=REAL)
        close(out[1, :4], heads(X[1:, :4])[0])
    else:
        with pytest.raises(AssertionError, match="does not support key padding"):
            heads(X, key_padding_mask=REAL)
    near = torch.ones(SEQ, SEQ).tril(1).triu(-1).bool()
    if can.attention_mask:
        out = heads(X, att_mask=near)
        close(out, heads(X, att_mask=torch.zeros(SEQ, SEQ, dtype=X.dtype).masked_fill(~near, -torch.inf)))
        assert not torch.allclose(out, heads(X))
        if name == "compositional":
            return  # it has scores
        with pytest.raises(AssertionError, match="have no scores"):
            heads(X, att_mask=torch.full((SEQ, SEQ), 0.5, dtype=X.dtype))
    else:
        with pytest.raises(AssertionError, match="does not support attention masks"):
            heads(X, att_mask=near)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("style", ["pre", "post"])
def test_a_model_equals_its_native_twin(name: str, style: str) -> None:
    heads = attention(name, seq_len=32, **CONFIGS[name])
    whole = model(encoder(multi_head_config=heads, residual_norm_style=style, num_layers=2))
    native = twin(whole)
    close(whole(ids()), native(ids()))
    assert whole.spec["stacks"][0]["layers"][0]["sublayers"][0]["body"].name in (name, "multi_head")
    if whole.encoders[0].wrap_att is not None and built(name).supports_key_padding_mask:
        out = whole(ids(), encoder_input_mask=REAL)
        close(out[REAL], native(ids(), valid=REAL)[REAL])


@pytest.mark.parametrize("name", NAMES)
def test_as_a_block_and_by_pickle(name: str) -> None:
    config = {
        **encoder(multi_head_config=attention(name, seq_len=32, **CONFIGS[name])),
        "position_encoding_config": None,
    }
    block = fill(xFormerEncoderBlock.from_config(xFormerEncoderConfig(**config)))
    close(block(X), block(X, X, X))
    close(pickle.loads(pickle.dumps(block))(X), block(X))
    close(block(X), twin(block)(X))


@pytest.mark.parametrize("name", [name for name in NAMES if vf.parts()["mixer", name].can.causal])
def test_a_causal_decoder_equals_its_native_twin_and_decodes(name: str) -> None:
    heads = attention(name, seq_len=32, causal=True, **CONFIGS[name])
    whole = model(decoder(multi_head_config_masked=heads, multi_head_config_cross=None, num_layers=2))
    native, out = twin(whole), whole(ids())
    close(out, native(ids()))
    close(out[:, :5], whole(ids()[:, :5]))
    state, steps = native.init_state(2, SEQ), []
    for place in range(SEQ):
        y, state = native(ids()[:, place : place + 1], state=state)
        steps.append(y)
    close(out, torch.cat(steps, 1))


def test_cross_attention_by_a_mixer_is_refused() -> None:
    with pytest.raises(vf.ConfigError, match="mixes one sequence, and cannot attend to another"):
        model(decoder(multi_head_config_cross=attention("visual")))
    alone = model(decoder(multi_head_config_cross=None, multi_head_config_masked=attention("visual")))
    with pytest.raises(AssertionError, match="mixes one sequence"):
        alone.decoders[0].mha(features(), features(seed=1), features(seed=1))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("use_rotary_embeddings", True), ("dim_key", 2 * DIM), ("dim_value", 2 * DIM), ("out_proj", nn.Linear(DIM, DIM))],
)
def test_settings_of_heads_that_it_has_not_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(vf.ConfigError, match=f"(?s){setting}.*Visual works on the features"):
        MultiHeadDispatch(DIM, HEADS, built("visual"), **{setting: value})
    assert MultiHeadDispatch(DIM, HEADS, built("visual"), dim_key=DIM).proj is None


def test_residual_dropout_counts() -> None:
    heads = MultiHeadDispatch(DIM, HEADS, built("pooling"), residual_dropout=0.5).double()
    assert bool((heads(X) == 0).any())
    assert not bool((heads.eval()(X) == 0).any())


def test_a_users_attention_with_its_own_heads_has_the_residual_dropout_and_no_idle_projection() -> None:
    @register_attention("test_own_heads", AttentionConfig)
    class OwnHeads(Attention):
        def __init__(self, dropout: float = 0.0, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            self.requires_skip_multi_head = True
            self.requires_input_projection = False

        def forward(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return q + k + v

    try:
        heads = build_multi_head_attention(
            {"dim_model": DIM, "num_heads": HEADS, "residual_dropout": 0.5, "attention": {"name": "test_own_heads"}}
        )
    finally:
        ATTENTION_REGISTRY.remove("test_own_heads")  # type: ignore[attr-defined]
    assert not list(heads.parameters())
    assert bool((heads(X) == 0).any())
    close(heads.eval()(X), 3 * X)


def test_a_users_own_mixer_is_reached() -> None:
    @vf.register("test_mean")
    class Mean(Mixer):
        """The mean over the sequence."""

        can = vf.Can(False, False, False, False, False, decode=False)

        def __init__(self, dim: int = vf.INHERIT, gain: float = 1.0) -> None:
            super().__init__()
            self.gain = gain

        def forward(self, x: Tensor, streams: Streams) -> Tensor:
            return self.gain * x.mean(1, keepdim=True).expand_as(x)

    try:
        part = build_attention({"name": "test_mean", "gain": 2.0, "window_size": 3}, dim_model=DIM)
        assert part.dropped == ("window_size",)
        close(part(X), 2 * X.mean(1, keepdim=True).expand_as(X))
        block = model(encoder(multi_head_config=attention("test_mean", gain=2.0)))
        close(block(ids()), twin(block)(ids()))
    finally:
        unregister("mixer", "test_mean")


# ---- upstream's classes ----


def test_fourier_mix_is_over_all_features_unless_told_otherwise() -> None:
    heads = fill(MultiHeadDispatch(DIM, HEADS, FourierMix(0.0)))
    close(heads(X), heads.proj(naive_fourier_mix(X)))
    close(heads(X), _same_as_spec(heads, X))
    old = fill(MultiHeadDispatch(DIM, HEADS, FourierMix(0.0, per_head=True, num_heads=HEADS)))
    close(old(X), old.proj(naive_fourier_mix(X, HEADS)))
    close(old(X), _same_as_spec(old, X))
    with pytest.raises(AssertionError, match="do not divide by 3 heads"):
        FourierMix(0.0, per_head=True, num_heads=3)(X)
    with pytest.raises(TypeError, match="needs this key"):
        build_attention({"name": "fourier_mix"})
    dropping = FourierMix(dropout=0.5)
    assert bool((dropping(X) == 0).any())
    assert not bool((dropping.eval()(X) == 0).any())


def _same_as_spec(heads: Any, x: Tensor) -> Tensor:
    native = vf.build(heads.spec).double()
    native.out.load_state_dict(heads.proj.state_dict())
    return native(x, {})


@pytest.mark.parametrize(
    "change", [{"pool_size": 2}, {"stride": 2}, {"padding": 0}, {"pool_size": 5, "padding": 1}, {"dropout": 0.5}]
)
def test_every_setting_of_pooling_counts(change: dict[str, Any]) -> None:
    plain, other = Pooling(), build_attention({"name": "pooling", **change})
    assert plain.spec.leaves() | change == other.spec.leaves() | ({"padding": None} if "padding" not in change else {})
    assert not torch.allclose(plain(X), other(X))


def test_visual_by_name() -> None:
    assert build_attention({"name": "visual", "dim_model": DIM}).spec == Visual(DIM).spec
    with pytest.raises(TypeError, match="needs this key"):
        build_attention({"name": "visual"})
    dropping = Visual(DIM, dropout=0.5).double()
    assert bool((dropping(X) == 0).any())


# ---- compositional ----


def compositional(**more: Any) -> Any:
    return fill(CompositionalAttention(DIM, HEADS, **more))


CHANGES: list[dict[str, Any]] = [
    {"dim_attn": 4},
    {"num_rules": 4},
    {"dim_selection": 3},
    {"dim_key": 4},
    {"dim_value": 4},
    {"qk_rule": True},
    {"nonlinear": True},
    {"q_compose": True},
    {"use_separate_proj_weight": True},
    {"bias": False},
    {"causal": True},
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_setting_of_compositional_attention_counts(change: dict[str, Any]) -> None:
    plain, other = compositional(), fill(build_attention({"name": "compositional", **change}, **SIZES))
    assert not torch.allclose(plain(X), other(X))
    assert other.spec != plain.spec
    native = vf.build(other.spec).double()
    native.load_state_dict(other.native.state_dict())
    close(other(X), native(X, {}))


def test_dropout_and_contradictions_of_compositional_attention() -> None:
    dropping = compositional(dropout=0.5).train()
    assert not torch.allclose(dropping(X), dropping(X))
    for wrong, message in (
        ({"dim_key": 4, "dim_attn": 8}, "another name of dim_attn = 8"),
        ({"qk_rule": True, "nonlinear": True}, "qk_rule replaces"),
        ({"in_proj_container": projections(DIM), "use_separate_proj_weight": True}, "in_proj_container replaces"),
        ({"dim_attn": 5}, "must divide dim_attn = 5"),
    ):
        with pytest.raises(vf.ConfigError, match=message):
            compositional(**wrong)
    assert compositional(dim_key=4).spec == compositional(dim_attn=4).spec


def projections(values: int) -> InputProjection:
    sizes = InputProjectionConfig(DIM, DIM, True)
    return InputProjection(sizes, sizes, InputProjectionConfig(DIM, values, True))


def test_projections_of_its_own() -> None:
    part = compositional(in_proj_container=projections(DIM))
    twin_part = compositional(use_separate_proj_weight=True)
    for name, module in part.in_proj_container.named_children():
        getattr(twin_part.native.maps, name[0]).load_state_dict(module.state_dict())
    names = {n for n, _ in part.native.named_parameters()}
    twin_part.native.load_state_dict({n: p for n, p in part.native.state_dict().items() if n in names}, strict=False)
    close(part(X), twin_part(X))
    assert not {"maps.q.weight", "maps.k.weight", "maps.v.weight"} & names
    with pytest.raises(vf.ConfigError, match="no native equivalent"):
        _ = part.spec
    with pytest.raises(AssertionError, match="8 of values"):
        compositional(in_proj_container=projections(5))(X)


@pytest.mark.parametrize("scores", [{}, {"qk_rule": True}, {"nonlinear": True}])
def test_the_query_counts_in_every_score_and_samples_stay_apart(scores: dict[str, Any]) -> None:
    for compose in (False, True):
        part = compositional(q_compose=compose, **scores)
        part(X).square().sum().backward()
        assert float(part.native.maps.value_q.weight.grad.abs().max()) > 1e-6
        close(part(X)[1], part(X[1:])[0])


def test_compositional_attention_to_another_sequence() -> None:
    part, other = compositional(use_separate_proj_weight=True), features(5, 1)
    out = part(X, other, other, key_padding_mask=torch.arange(5) < torch.tensor([[5], [3]]))
    close(out[1], part(X[1:], other[1:, :3], other[1:, :3])[0])
    bias = torch.randn(SEQ, 5, dtype=X.dtype)
    assert not torch.allclose(part(X, other, other, att_mask=bias), part(X, other, other))
    with pytest.raises(AssertionError, match="different lengths is not defined"):
        compositional(causal=True)(X, other, other)


@pytest.mark.parametrize("style", ["pre", "post"])
def test_a_compositional_decoder_equals_its_native_twin(style: str) -> None:
    heads = {"multi_head_config_masked": attention("compositional", causal=True)}
    heads["multi_head_config_cross"] = attention("compositional", num_rules=4, qk_rule=True)
    whole = model(decoder(**heads, residual_norm_style=style, num_layers=2))
    memory = features(5, 1)
    close(whole(memory, ids()), twin(whole)(ids(), context=memory))


# ---- the feedforward ----


def conv(**more: Any) -> Any:
    return fill(build_feedforward({"name": "Conv2DFeedforward", "dim_model": DIM, **more}))


def test_the_convolutional_feedforward_is_upstreams() -> None:
    part = conv()
    assert isinstance(part, Conv2DFeedforward)
    assert part.requires_squared_context
    sizes = {name: list(p.shape) for name, p in part.named_parameters() if name.endswith("weight")}
    assert sizes == {
        "conv_mlp.0.weight": [DIM, DIM, 1, 1],
        "conv_mlp.1.weight": [DIM, 1, 3, 3],
        "conv_mlp.3.weight": [DIM, DIM, 1, 1],
    }
    assert {f.name for f in ConvMlpConfig.__dataclass_fields__.values()} == {
        "name",
        "dim_model",
        "dropout",
        "activation",
        "hidden_layer_multiplier",
        "dim_model_out",
        "act_layer",
    }
    with pytest.raises(AssertionError, match="the nearest are 4 and 9"):
        part(X[:, :8])


@pytest.mark.parametrize(
    "more", [{}, {"hidden_layer_multiplier": 3}, {"activation": "relu"}, {"act_layer": "star_relu"}]
)
def test_a_model_with_it_equals_its_native_twin(more: dict[str, Any]) -> None:
    whole = model(encoder(feedforward_config={"name": "Conv2DFeedforward", **more}, num_layers=2))
    native = twin(whole)
    close(whole(ids()), native(ids()))
    back = from_native(native.state_dict(), whole.state_dict())
    assert all(torch.equal(back[name], weight) for name, weight in whole.state_dict().items())


def test_every_setting_of_it_counts() -> None:
    plain = conv()
    assert conv(hidden_layer_multiplier=3).spec["hidden"] == 3 * DIM
    assert conv(dim_model_out=5)(X).shape == (2, SEQ, 5)
    close(conv(act_layer="relu")(X), conv(activation="relu")(X))
    assert not torch.allclose(conv(act_layer="relu")(X), plain(X))
    close(conv(activation="gelu")(X), plain(X))
    assert bool((conv(dropout=0.5).train()(X) == 0).any())
    with pytest.raises(vf.ConfigError, match="another name of activation"):
        conv(activation="relu", act_layer="gelu")
    with pytest.raises(vf.ConfigError, match="another size of output"):
        _ = conv(dim_model_out=5).spec


def test_it_initialises_itself() -> None:
    part = Conv2DFeedforward(64, hidden_layer_multiplier=2)
    model_weights = [m for m in part.conv_mlp if isinstance(m, nn.Conv2d)]
    part.init_weights()
    fan_out = [128, 9, 64]
    for module, fan in zip(model_weights, fan_out, strict=True):
        assert module.bias is not None
        assert not bool(module.bias.any())
        assert 0.8 < float(module.weight.detach().std()) / (2 / fan) ** 0.5 < 1.25
