"""Models whose checkpoints and results upstream's own versions recorded, for `load_xformers`.

Weights depend on their names alone, so a recorded checkpoint is a list of names and shapes.
"""

import importlib
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DIM, HEADS, SEQ, VOCAB = 8, 2, 9, 11


@dataclass(frozen=True)
class Checkpoint:
    """One recorded model.

    Args:
        build: makes the model from the import root of upstream's or the dialect's modules.
        run: its result on fixed inputs.
        legacy: upstream built another structure than its documentation says, and only `legacy=True` repeats it.
        differs: upstream's result is wrong, for the reason given: the checkpoint must load, its result is not compared.
        drawn: the attribute of the attention that upstream drew at random and did not save.
    """

    build: Callable[[str], nn.Module]
    run: Callable[[Any], Tensor]
    legacy: bool = False
    differs: str = ""
    drawn: str = ""


def name_weights(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict in float64 from names and shapes."""
    return {name: _weight(name, tuple(shape)) for name, shape in shapes.items()}


def fill(model: nn.Module) -> nn.Module:
    """The model in float64 and eval mode, with weights that depend on their names alone."""
    model = model.double().eval()
    seen: set[int] = set()
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            constant = name.endswith("inv_freq")
            if id(tensor) not in seen and not constant:  # one weight under several names keeps the first's
                seen.add(id(tensor))
                tensor.copy_(_weight(name, tuple(tensor.shape)))
    return model


def _weight(name: str, shape: tuple[int, ...]) -> Tensor:
    noise = torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).randn(*shape))
    return noise * 0.5 / math.sqrt(max(shape[-1], 1)) if len(shape) > 1 else 0.3 * noise


def ids(length: int = SEQ, seed: int = 0) -> Tensor:
    """Token ids [2, length]."""
    return torch.from_numpy(np.random.RandomState(seed).randint(0, VOCAB, (2, length)))


def features(length: int = SEQ, dim: int = DIM, seed: int = 0) -> Tensor:
    """Features [2, length, dim]."""
    return torch.from_numpy(np.random.RandomState(seed).randn(2, length, dim))


def heads(name: str = "scaled_dot_product", more: Mapping[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    """Multi-head attention; `config` goes to the attention, `more` to what is around it."""
    attention = {"name": name, "dropout": 0.0, **config}
    return {"num_heads": HEADS, "residual_dropout": 0.0, "attention": attention, **(more or {})}


def _side(kind: str, position: Any, feedforward: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    mlp = {"name": "MLP", "dropout": 0.0, "activation": "gelu", "hidden_layer_multiplier": 2}
    vocab = {"name": "vocab", "seq_len": SEQ, "vocab_size": VOCAB, "dim_model": DIM}
    return {
        "block_type": kind,
        "dim_model": DIM,
        "residual_norm_style": "post",
        "position_encoding_config": vocab if position == "vocab" else position,
        "feedforward_config": feedforward or mlp,
        **more,
    }


def encoder(attention: Any = None, position: Any = "vocab", feedforward: Any = None, **more: Any) -> dict[str, Any]:
    """The configuration of an encoder stack."""
    return {**_side("encoder", position, feedforward, more), "multi_head_config": attention or heads()}


def decoder(masked: Any = None, cross: Any = None, position: Any = "vocab", **more: Any) -> dict[str, Any]:
    """The configuration of a decoder stack."""
    side = _side("decoder", position, None, more)
    return {
        **side,
        "multi_head_config_masked": masked or heads(causal=True),
        "multi_head_config_cross": cross or heads(),
    }


def model(*stacks: dict[str, Any], run: Callable[[Any], Tensor] | None = None, **about: Any) -> Checkpoint:
    """A whole model of stacks; `tie`, `reversible` and the like stand in the configurations."""
    tie = about.pop("tie", False)

    def build(root: str) -> nn.Module:
        factory = importlib.import_module(f"{root}.factory")
        import copy

        config = factory.xFormerConfig(copy.deepcopy(list(stacks)), tie_embedding_weights=tie)
        built: nn.Module = factory.xFormer.from_config(config)
        return built

    return Checkpoint(build, run or (lambda m: m(ids())), **about)


def attention_case(name: str, run: Callable[[Any], Tensor] | None = None, **config: Any) -> Checkpoint:
    """One encoder layer around an attention."""
    about = {key: config.pop(key) for key in ("differs", "drawn", "legacy") if key in config}
    return model(encoder(heads(name, **config)), run=run, **about)


def _class_token(config: dict[str, Any]) -> dict[str, Any]:
    return {"name": "learnable", "seq_len": SEQ, "dim_model": DIM, **config}


CONV = {"name": "Conv2DFeedforward", "dropout": 0.0, "activation": "gelu", "hidden_layer_multiplier": 2}
EXPERTS = {
    "name": "MixtureOfExperts",
    "dropout": 0.0,
    "activation": "gelu",
    "hidden_layer_multiplier": 2,
    "number_of_experts": 4,
    "gate": "top_2",
}
PATCH = {"in_channels": 3, "kernel_size": 3, "stride": 2, "padding": 1}
PRE: dict[str, Any] = {"residual_norm_style": "pre"}
DEEP: dict[str, Any] = {"residual_norm_style": "deepnorm"}


def checkpoints() -> dict[str, Checkpoint]:
    """Every recorded model by name."""
    first = torch.zeros(SEQ, dtype=torch.bool)
    first[:2] = True
    separate = {"use_separate_proj_weight": False}
    found = {
        "scaled_dot_product": attention_case("scaled_dot_product"),
        "scaled_dot_product causal": attention_case("scaled_dot_product", causal=True),
        "local": attention_case("local", window_size=3),
        "local causal": attention_case("local", window_size=3, causal=True),
        "global": attention_case("global", attention_query_mask=first[:, None]),
        "random": attention_case("random", r=0.5, drawn="rand_attention_mask", differs="drawn anew, not saved"),
        "linformer": attention_case("linformer", seq_len=SEQ, k=4),
        "nystrom": attention_case("nystrom", num_landmarks=3, num_heads=HEADS),
        "nystrom convolution": attention_case("nystrom", num_landmarks=3, num_heads=HEADS, conv_kernel_size=3),
        "nystrom all landmarks": attention_case("nystrom", num_landmarks=16, num_heads=HEADS),
        "nystrom original": attention_case(
            "nystrom", num_landmarks=3, num_heads=HEADS, use_razavi_pinverse=True, pinverse_original_init=True
        ),
        "favor": attention_case("favor", dim_features=8, drawn="feature_map.features"),
        "orthoformer": attention_case("orthoformer", num_landmarks=4, differs="begins with a landmark drawn at random"),
        "orthoformer all landmarks": attention_case("orthoformer", num_landmarks=SEQ),
        "fourier_mix": attention_case("fourier_mix", differs="transforms each head on its own"),
        "lambda": attention_case(
            "lambda", seq_len=SEQ, dim_head=DIM // HEADS, differs="normalises keys over features, not over positions"
        ),
        "compositional": attention_case("compositional", dim_model=DIM, num_heads=HEADS),
        "compositional rules": attention_case("compositional", dim_model=DIM, num_heads=HEADS, num_rules=4),
        "compositional qk": attention_case("compositional", dim_model=DIM, num_heads=HEADS, qk_rule=True),
        "compositional nonlinear": attention_case("compositional", dim_model=DIM, num_heads=HEADS, nonlinear=True),
        "compositional both": attention_case(
            "compositional", dim_model=DIM, num_heads=HEADS, num_rules=4, qk_rule=True, causal=True
        ),
        "pooling": attention_case("pooling", pool_size=3),
        "visual": attention_case("visual", dim_model=DIM),
        "conv feedforward": model(encoder(feedforward=CONV)),
        "experts": model(encoder(feedforward=EXPERTS), run=lambda m: m(ids(8)), differs="experts overflow, at random"),
        "shared projection": model(encoder(heads(more=separate))),
        "no offsets": model(encoder(heads(more={"bias": (False, False, False, False)}))),
        "rotary": model(encoder(heads(more={"use_rotary_embeddings": True}))),
        "dim_key": model(encoder(heads(more={"dim_key": 4}))),
        "sine": model(encoder(position={"name": "sine", "dim_model": DIM}), run=lambda m: m(features())),
        "learnable": model(encoder(position=_class_token({})), run=lambda m: m(features())),
        "class token": model(encoder(position=_class_token({"add_class_token": True})), run=lambda m: m(features())),
        "projected embedding": model(
            encoder(position={"name": "vocab", "seq_len": SEQ, "vocab_size": VOCAB, "dim_model": 6})
        ),
        "pre one layer": model(encoder(**PRE)),
        "post two layers": model(encoder(num_layers=2)),
        "two stacks": model(encoder(), encoder(heads("local", window_size=3), position=None)),
        "deepnorm encoder": model(encoder(num_layers=2, **DEEP)),
        "simplicial": model(encoder(simplicial_embeddings={"L": 2, "temperature": 0.5})),
        "skip norms": model(encoder(normalization="skip")),
        "both sides": model(encoder(num_layers=2), decoder(num_layers=2), run=lambda m: m(ids(), ids(seed=1))),
        "both sides tied": model(encoder(), decoder(), run=lambda m: m(ids(), ids(seed=1)), tie=True),
        "patches": model(
            encoder(position=None, patch_embedding_config={**PATCH, "out_channels": DIM}),
            run=lambda m: m(features(25, 3)),
        ),
        "reversible": model(encoder(reversible=True, num_layers=2, **PRE), legacy=True),
        "pre two layers": model(encoder(num_layers=2, **PRE), legacy=True),
        "pre both sides": model(
            encoder(num_layers=2, **PRE),
            decoder(num_layers=2, **PRE),
            run=lambda m: m(ids(), ids(seed=1)),
            legacy=True,
        ),
        "deepnorm both sides": model(
            encoder(num_layers=2, **DEEP),
            decoder(num_layers=1, **DEEP),
            run=lambda m: m(ids(), ids(seed=1)),
            legacy=True,
        ),
    }
    return found
