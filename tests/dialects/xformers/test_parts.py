"""Feedforwards, position embeddings, wrappers and activations of the dialect, and parts that users register."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from tests.dialects.xformers.cases import DIM, SEQ, encoder, features, ids, mlp
from variform.dialects.xformers import _is_triton_available
from variform.dialects.xformers.components import (
    Activation,
    NormalizationType,
    PostNorm,
    PreNorm,
    Residual,
    build_activation,
)
from variform.dialects.xformers.components.feedforward import (
    FEEDFORWARD_REGISTRY,
    MLP,
    Feedforward,
    FeedforwardConfig,
    FusedMLP,
    build_feedforward,
    register_feedforward,
)
from variform.dialects.xformers.components.positional_embedding import (
    POSITION_EMBEDDING_REGISTRY,
    PositionEmbedding,
    PositionEmbeddingConfig,
    build_positional_embedding,
    register_positional_embedding,
)
from variform.dialects.xformers.components.simplicial_embedding import SimplicialEmbedding
from variform.dialects.xformers.factory import xFormer
from variform.dialects.xformers.utils import generate_matching_config


def test_triton_is_never_asked_for() -> None:
    assert _is_triton_available() is False


@pytest.mark.parametrize("activation", [None, *Activation])
@pytest.mark.parametrize("bias", [True, False])
def test_an_mlp_equals_its_spec(activation: Activation | None, bias: bool) -> None:
    part = build_feedforward({**mlp(activation=activation, bias=bias), "dim_model": DIM}).double()
    native = vf.build(part.spec).double()
    native.up.load_state_dict(part.mlp[0].state_dict())
    native.down.load_state_dict(part.mlp[3].state_dict())
    x = features() * 3
    torch.testing.assert_close(part(x), native(x, {}), rtol=0, atol=1e-12)


def test_activations_by_name() -> None:
    assert isinstance(build_activation("gelu"), nn.GELU)
    assert isinstance(build_activation(Activation.ReLU), nn.ReLU)
    assert isinstance(build_activation(None), nn.Identity)
    with pytest.raises(KeyError, match="did you mean 'relu'"):
        build_activation("rellu")


def test_feedforwards_of_the_library_are_offered_too() -> None:
    assert {"MLP", "FusedMLP", "glu"} <= set(FEEDFORWARD_REGISTRY)
    assert "mlp" not in FEEDFORWARD_REGISTRY  # MLP stands for it
    part = build_feedforward({"name": "glu", "dim_model": DIM, "hidden": 5, "hidden_layer_multiplier": 4})
    assert part.dropped == ("hidden_layer_multiplier",)
    assert part(features().float()).shape == (2, SEQ, DIM)
    with pytest.raises(vf.ConfigError, match="dim"):
        build_feedforward({"name": "glu"})


def test_a_fused_mlp_trains_all_its_weights() -> None:
    part = build_feedforward({**mlp(name="FusedMLP"), "dim_model": DIM})
    assert isinstance(part, FusedMLP)
    assert {name for name, _ in part.named_parameters()} == {"mlp.0.weight", "mlp.0.bias", "mlp.3.weight", "mlp.3.bias"}


def test_parts_are_made_from_configuration_objects() -> None:
    config = FEEDFORWARD_REGISTRY["MLP"].config(
        name="MLP", dim_model=DIM, dropout=0.1, activation=Activation.GeLU, hidden_layer_multiplier=2
    )
    for part in (build_feedforward(config), MLP.from_config(config)):
        assert part.mlp[0].out_features == 2 * DIM
    matching = generate_matching_config({"name": "vocab", "seq_len": 3, "other": 1}, PositionEmbeddingConfig)
    assert matching == PositionEmbeddingConfig(name="vocab", dim_model=None, seq_len=3)  # type: ignore[arg-type]


def test_constructors_check_and_sort_their_arguments() -> None:
    assert MLP(DIM, 0.1, Activation.ReLU, 4, hidden=3).dropped == ("hidden",)
    with pytest.raises(vf.ConfigError) as caught:
        MLP(DIM, 2.0, "rellu", 1.5)  # type: ignore[arg-type]
    assert [problem.path for problem in caught.value.problems] == ["dropout", "activation", "hidden_layer_multiplier"]
    with pytest.raises(TypeError, match="no feedforward has a key 'hiden'"):
        MLP(DIM, 0.1, Activation.ReLU, 4, hiden=3)


@pytest.mark.parametrize("name", ["sine", "learnable", "vocab"])
def test_positions_may_be_given(name: str) -> None:
    part = build_positional_embedding({"name": name, "dim_model": DIM, "seq_len": SEQ, "vocab_size": 11}).double()
    x = ids() if name == "vocab" else features()
    order = torch.randperm(SEQ)
    torch.testing.assert_close(part(x[:, order], order), part(x)[:, order])
    rows = torch.stack((order, torch.arange(SEQ)))
    torch.testing.assert_close(part(x, rows)[1], part(x)[1])


@pytest.mark.parametrize("name", ["learnable", "vocab"])
def test_shorter_inputs_work_and_longer_ones_are_refused(name: str) -> None:
    part = build_positional_embedding({"name": name, "dim_model": DIM, "seq_len": 5, "vocab_size": 11}).double()
    x = ids(9) if name == "vocab" else features(9)
    torch.testing.assert_close(part(x[:, :3]), part(x[:, :5])[:, :3])
    with pytest.raises(vf.ShapeError, match="has 9 tokens, and seq_len is 5"):
        part(x)


def test_numbers_are_added_to_learned_positions() -> None:
    part = build_positional_embedding({"name": "learnable", "dim_model": DIM, "seq_len": SEQ}).double()
    x = features()[..., 0]
    assert torch.equal(part(x), x.unsqueeze(-1) + part.pos_emb)
    first = build_positional_embedding({"name": "learnable", "dim_model": DIM, "seq_len": SEQ, "add_class_token": True})
    with pytest.raises(vf.ShapeError, match="features have the shape"):
        first(x)


def test_sines_come_in_pairs() -> None:
    with pytest.raises(vf.ConfigError, match="must be even"):
        build_positional_embedding({"name": "sine", "dim_model": 7, "seq_len": 5})


def test_wrappers_take_lists_of_inputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
            return (x + 2 * y) * factor

    x, y = features(), features(seed=1)
    norm = nn.LayerNorm(DIM).double()
    pre = PreNorm(DIM, Two(), NormalizationType.LayerNorm).double()
    torch.testing.assert_close(pre(inputs=[x, y], factor=3.0), (norm(x) + 2 * norm(y)) * 3)
    post = PostNorm(DIM, Residual(Two(), scale=0.5), NormalizationType.LayerNorm).double()
    torch.testing.assert_close(post(inputs=[x, y]), norm(0.5 * x + x + 2 * y))
    calls: list[Tensor] = []
    pre.norm.register_forward_hook(lambda module, args, out: calls.append(out))
    pre(inputs=[x, x])
    assert len(calls) == 1
    skip = PostNorm(DIM, Residual(Two()), NormalizationType.Skip)
    torch.testing.assert_close(skip(inputs=[x, y]), 2 * x + 2 * y)


def test_simplicial_embeddings_leave_their_input_alone() -> None:
    x = features()
    before = x.clone()
    y = SimplicialEmbedding(4, 0.5)(x)
    torch.testing.assert_close(y.view(2, SEQ, 4, 2).sum(-1), torch.ones(2, SEQ, 4, dtype=torch.float64))
    assert torch.equal(x, before)
    with pytest.raises(AssertionError, match="not divisible by L = 3"):
        SimplicialEmbedding(3)(x)


# ---- users' parts ----


@dataclass
class ScaleConfig(FeedforwardConfig):
    factor: float


@dataclass
class ShiftConfig(PositionEmbeddingConfig):
    shift: float


@pytest.fixture
def registered() -> Any:
    @register_feedforward("scale", ScaleConfig)
    class Scale(Feedforward):
        def __init__(self, dim_model: int, factor: float = 2.0, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs * self.factor

    @register_positional_embedding("shift", ShiftConfig)
    class Shift(PositionEmbedding):
        def __init__(self, dim_model: int, shift: float = 1.0, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, x: Tensor) -> Tensor:
            return x + self.shift

    yield Scale, Shift
    FEEDFORWARD_REGISTRY.remove("scale")
    POSITION_EMBEDDING_REGISTRY.remove("shift")


def test_registered_parts_are_built_and_run_in_a_model(registered: Any) -> None:
    scale, shift = registered
    config = encoder(
        feedforward_config={"name": "scale", "factor": 3.0, "hidden_layer_multiplier": 4},
        position_encoding_config={"name": "shift", "shift": 0.5, "seq_len": SEQ},
        num_layers=2,
    )
    model = xFormer(config).double()
    assert isinstance(model.encoders[0].pose_encoding, shift)
    assert model.encoders[1].wrap_ff.sublayer.layer.sublayer.factor == 3.0
    assert model.dropped == ("stack_configs.0.feedforward_config.hidden_layer_multiplier",)
    without = xFormer(encoder(**{**config, "position_encoding_config": None})).double()
    without.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(features()), without(features() + 0.5))
    assert scale is FEEDFORWARD_REGISTRY["scale"].constructor
    with pytest.raises(vf.ConfigError, match="registered here has no native equivalent"):
        _ = model.spec


def test_values_of_registered_parts_are_checked(registered: Any) -> None:
    with pytest.raises(TypeError, match=r"feedforward_config\.factor"):
        xFormer(encoder(feedforward_config={"name": "scale", "factor": "much"}))
    with pytest.raises(ValueError, match="duplicate"):
        register_feedforward("scale", ScaleConfig)(type("Other", (MLP,), {}))
    with pytest.raises(ValueError, match="dataclass"):
        register_feedforward("other", dict)


def test_class_names_may_repeat(registered: Any) -> None:
    other = type("Scale", (registered[0],), {})
    register_feedforward("scale_too", ScaleConfig)(other)
    try:
        assert FEEDFORWARD_REGISTRY["scale"].constructor is not FEEDFORWARD_REGISTRY["scale_too"].constructor
    finally:
        FEEDFORWARD_REGISTRY.remove("scale_too")
