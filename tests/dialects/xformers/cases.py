"""Configurations of the dialect that several tests use, and modules whose results upstream's own code recorded."""

import importlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from variform.parts.feedforward.mlp import MLP

DIM, HEADS, SEQ, VOCAB = 8, 2, 9, 11


def attention(name: str = "scaled_dot_product", **more: Any) -> dict[str, Any]:
    return {"num_heads": HEADS, "residual_dropout": 0, "attention": {"name": name, "dropout": 0, **more}}


def encoder(**more: Any) -> dict[str, Any]:
    return {**_block("encoder"), "multi_head_config": attention(), **more}


def decoder(**more: Any) -> dict[str, Any]:
    heads = {"multi_head_config_masked": attention(causal=True), "multi_head_config_cross": attention()}
    return {**_block("decoder"), **heads, **more}


def vocab(**more: Any) -> dict[str, Any]:
    return {"name": "vocab", "seq_len": SEQ, "vocab_size": VOCAB, **more}


def mlp(**more: Any) -> dict[str, Any]:
    return {"name": "MLP", "dropout": 0, "activation": "relu", "hidden_layer_multiplier": 4, **more}


def swept(registry: Any, length: int = SEQ) -> dict[str, Any]:
    """What some parts of a kind need, given to each of them, as sweeps do."""
    needed = {
        "attention_query_mask": torch.eye(length, dtype=torch.bool)[:, :1],
        "layout": torch.ones(-(-length // 16), -(-length // 16), dtype=torch.long),
        "block_size": 16,
        "window": 1,
        "back": 1,
        "every": 2,
        "experts": [MLP.spec(hidden=12), MLP.spec(hidden=12)],
        "number_of_experts": 2,
        "gate": "top_2",
    }
    known = importlib.import_module("variform.dialects.xformers.building").known_keys(registry)
    return {key: value for key, value in needed.items() if key in known}


def _block(kind: str) -> dict[str, Any]:
    return {
        "block_type": kind,
        "dim_model": DIM,
        "residual_norm_style": "pre",
        "position_encoding_config": vocab(),
        "feedforward_config": mlp(),
    }


def ids(length: int = SEQ, seed: int = 0, batch: int = 2) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randint(0, VOCAB, (batch, length)))


def features(length: int = SEQ, seed: int = 0, batch: int = 2) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(batch, length, DIM))


def images() -> Tensor:
    return torch.from_numpy(np.random.RandomState(3).randn(2, 3, 8, 8))


def fill(module: nn.Module) -> Any:
    """Weights that depend on their names alone, in float64."""
    module = module.double().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            upstream = name.replace("native.", "").replace("filters", "skip_connection.weight")
            parameter.copy_(noise(upstream, *parameter.shape))
    return module


def noise(name: str, *shape: int) -> Tensor:
    """The weight of upstream's that has this name."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)) * 0.3


def fill_compositional(module: Any) -> Any:
    """The same weights as `fill` gives upstream's compositional attention."""
    if not hasattr(module, "native"):
        return fill(module)
    maps = module.double().eval().native.maps
    select, size = maps.selection, maps.selection.size
    names = {"q": "in_proj_container.q_proj", "k": "in_proj_container.k_proj", "v": "in_proj_container.v_proj"}
    with torch.no_grad():
        for own, upstream in {**names, "out": "out_proj", "value_q": "value_q"}.items():
            for what, parameter in getattr(maps, own).named_parameters() if getattr(maps, own) is not None else ():
                parameter.copy_(noise(f"{upstream}.{what}", *parameter.shape))
        if select.score == "dot":
            select.key.weight.copy_(noise("value_k.weight", *select.key.weight.shape))
        elif select.score == "mlp":
            both = noise("score_network.0.weight", size, maps.dim_value + size)
            select.hidden_value.weight.copy_(both[:, : maps.dim_value])
            select.hidden_query.weight.copy_(both[:, maps.dim_value :])
            select.hidden_query.bias.copy_(noise("score_network.0.bias", size))
            select.last.weight.copy_(noise("score_network.2.weight", 1, size))
        else:
            both = noise("score_network.weight", 1, maps.dim_value + size)
            select.value_score.weight.copy_(both[:, : maps.dim_value])
            select.query_score.weight.copy_(both[:, maps.dim_value :].expand(maps.rules, -1))
            select.query_score.bias.zero_()
    return module


Run = Callable[[], Tensor]


def recorded(root: str) -> dict[str, Run]:
    """What upstream's code and the dialect must agree on; `root` is "xformers" or the dialect's import root."""

    def at(path: str) -> Any:
        return importlib.import_module(f"{root}.{path}")

    def heads(name: str, *, bias: Any = (True,) * 4, rotary: bool = False, **config: Any) -> Any:
        part = at("components.attention").build_attention({"name": name, "dropout": 0.0, **config})
        return fill(at("components").MultiHeadDispatch(DIM, HEADS, part, bias=bias, use_rotary_embeddings=rotary))

    def landmarks(**config: Any) -> Any:
        return heads("nystrom", **{"num_heads": HEADS, "num_landmarks": 4, **config})

    def model(*stacks: dict[str, Any]) -> Any:
        factory = at("factory")
        return fill(factory.xFormer.from_config(factory.xFormerConfig([dict(stack) for stack in stacks])))

    def block(**config: Any) -> Any:
        factory = at("factory")
        return fill(factory.xFormerEncoderBlock(factory.xFormerEncoderConfig(**encoder(**config))))

    def feedforward(activation: str) -> Any:
        return fill(at("components.feedforward").build_feedforward({**mlp(activation=activation), "dim_model": DIM}))

    def compositional(**config: Any) -> Any:
        build = at("components.attention").build_attention
        return fill_compositional(build({"name": "compositional", "dim_model": DIM, "num_heads": HEADS, **config}))

    def mixed(name: str, **config: Any) -> Tensor:
        part = fill(at("components.attention").build_attention({"name": name, "dropout": 0.0, **config}))
        y: Tensor = part(*[features()] * 3)
        return y

    def convolved(**config: Any) -> Any:
        described = {"name": "Conv2DFeedforward", "dim_model": DIM, "dropout": 0.0, "activation": "gelu", **config}
        return fill(at("components.feedforward").build_feedforward(described))

    def position(name: str, **config: Any) -> Any:
        build = at("components.positional_embedding").build_positional_embedding
        return fill(build({"name": name, "seq_len": SEQ, "dim_model": DIM, **config}))

    lower = torch.ones(SEQ, SEQ, dtype=torch.bool).tril()
    rows = torch.from_numpy(np.random.RandomState(1).rand(1, SEQ, SEQ) < 0.5) | torch.eye(SEQ, dtype=torch.bool)
    added = torch.from_numpy(np.random.RandomState(2).randn(SEQ, SEQ))

    def stages(style: str) -> Any:
        helper = at("helpers.hierarchical_configs")
        parts = {"attention_mechanism": "scaled_dot_product", "feedforward": "MLP"}
        first = {"embedding": 8, "patch_size": 5, "stride": 2, "padding": 2, "seq_len": 16, "repeat_layer": 2}
        second = {"embedding": 12, "patch_size": 3, "stride": 2, "padding": 1, "seq_len": 4}
        configs = [helper.BasicLayerConfig(**parts, **sizes) for sizes in (first, second)]
        return model(*helper.get_hierarchical_configuration(configs, style, dim_head=4))

    post, deep = {"residual_norm_style": "post"}, {"residual_norm_style": "deepnorm"}
    cases: dict[str, Run] = {
        "heads": lambda: heads("scaled_dot_product")(features()),
        "heads cross": lambda: heads("scaled_dot_product")(features(5), features(), features()),
        "heads causal": lambda: heads("scaled_dot_product", causal=True)(features()),
        "heads bool mask": lambda: heads("scaled_dot_product")(features(), att_mask=lower),
        "heads one mask": lambda: heads("scaled_dot_product")(features(), att_mask=rows),
        "heads float mask": lambda: heads("scaled_dot_product")(features(), att_mask=added),
        "heads cropped mask": lambda: heads("scaled_dot_product")(features(5), att_mask=lower),
        "heads without offsets": lambda: heads("scaled_dot_product", bias=(False,) * 4)(features()),
        "heads rotary": lambda: heads("scaled_dot_product", rotary=True)(features()),
        "heads local": lambda: heads("local", window_size=5)(features()),
        "heads local causal": lambda: heads("local", window_size=3, causal=True)(features()),
        "heads linformer": lambda: heads("linformer", seq_len=SEQ, k=4)(features()),
        "heads linformer of fewer tokens": lambda: heads("linformer", seq_len=SEQ)(features(6)),
        "heads nystrom": lambda: landmarks()(features()),
        "heads nystrom exactly": lambda: landmarks(use_razavi_pinverse=False)(features()),
        "heads nystrom improved twice": lambda: landmarks(inv_iterations=2)(features()),
        "heads nystrom convolution": lambda: landmarks(conv_kernel_size=5)(features()),
        "heads nystrom cross": lambda: landmarks()(features(6), features(), features()),
        "heads nystrom of all": lambda: landmarks(num_landmarks=SEQ, causal=True)(features()),
        "heads orthoformer of all": lambda: heads("orthoformer", num_landmarks=SEQ)(features()),
        "heads fourier": lambda: heads("fourier_mix", per_head=True, num_heads=HEADS)(features()),
        "fourier": lambda: mixed("fourier_mix"),
        "pooling": lambda: mixed("pooling"),
        "pooling of five": lambda: mixed("pooling", pool_size=5),
        "visual": lambda: mixed("visual", dim_model=DIM),
        "Conv2DFeedforward": lambda: convolved()(features()),
        "Conv2DFeedforward wide": lambda: convolved(hidden_layer_multiplier=2, dim_model_out=5)(features()),
        "compositional": lambda: compositional()(*[features()] * 3),
        "compositional causal": lambda: compositional(causal=True)(*[features()] * 3),
        "compositional masked": lambda: compositional(qk_rule=True)(*[features()] * 3, att_mask=lower),
        "compositional rules": lambda: compositional(qk_rule=True, num_rules=4, dim_selection=3)(*[features()] * 3),
        "compositional network": lambda: compositional(nonlinear=True)(*[features()] * 3),
        "compositional cross": lambda: compositional(qk_rule=True, use_separate_proj_weight=True)(
            features(5), features(), features(seed=1)
        ),
        "sine": lambda: position("sine")(features(6)),
        "sine of numbers": lambda: position("sine")(features(6)[..., 0]),
        "learnable": lambda: position("learnable")(features()),
        "class token": lambda: position("learnable", add_class_token=True)(features()),
        "vocab": lambda: position("vocab", vocab_size=VOCAB)(ids(6)),
        "block pre": lambda: block()(ids()),
        "block post": lambda: block(**post)(ids(), att_mask=lower),
        "block deepnorm": lambda: block(**deep)(ids()),
        "block skip": lambda: block(**post, normalization="skip")(ids()),
        "encoder post": lambda: model(encoder(num_layers=2, **post))(ids()),
        "encoder deepnorm": lambda: model(encoder(num_layers=2, **deep))(ids()),
        "both post": lambda: model(encoder(**post), decoder(num_layers=2, **post))(ids(7, 1), ids()),
        "stages post": lambda: stages("post")(images()),
        "stages pre": lambda: stages("pre")(images().flatten(2).transpose(1, 2)),
        "decoder block pre": lambda: _decoder_block(at("factory"))(ids(), features(7)),
    }
    for name in ("squared_relu", "gelu", "leaky_relu", "relu", "smelu", "star_relu"):
        cases[f"MLP {name}"] = lambda name=name: feedforward(name)(features() * 3)
    return cases


def _decoder_block(factory: Any) -> Any:
    return fill(factory.xFormerDecoderBlock(factory.xFormerDecoderConfig(**decoder())))
