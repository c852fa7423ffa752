"""Models that programs are made of: specs, the side inputs that they take, and how to call them."""

from typing import Any

import torch
from torch import Tensor

import variform as vf
from variform.dialects.x_transformers import (
    Decoder,
    Encoder,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
)
from variform.dialects.xformers.factory import xFormer, xFormerConfig
from variform.stack.lines import Step
from variform.stack.program import Program

V, D, H, SEQ = 13, 24, 4, 12
SMALL: dict[str, Any] = {"vocab_size": V, "dim": D, "heads": H, "max_seq_len": SEQ}
KEYWORDS: dict[str, Any] = {"dim": D, "depth": 2, "heads": 2, "attn_dim_head": 8}


def sublayer(body: Any, **more: Any) -> dict[str, Any]:
    return {"part": "sublayer", "body": body, **more}


def transformer(layers: Any, **more: Any) -> Any:
    stack = {"part": "stack", "layers": layers, "norm": "rms_norm"}
    model = {"part": "transformer", "embedding": "tokens", "stacks": [stack], "head": "lm", **SMALL, **more}
    return vf.from_dict(model)


def layer(*sublayers: Any) -> dict[str, Any]:
    return {"part": "layer", "sublayers": list(sublayers)}


def program_layer() -> Any:
    def step(op: Any, reads: tuple[str, ...], into: tuple[str, ...]) -> Any:
        return Step.spec(op=op, reads=reads, into=into)

    residual = {"part": "merge", "how": "add"}
    lines = [
        step("copy", ("x",), ("residual",)),
        step("layer_norm", ("x",), ("x",)),
        step({"part": "op/linear", "out": 2 * D}, ("x",), ("x",)),
        step({"part": "activation", "functions": ["gelu", "tanh"]}, ("x",), ("x",)),
        step(residual, ("residual", "x"), ("x",)),
    ]
    return Program.spec(lines=lines)


def arrangements() -> dict[str, Any]:
    heads = {"part": "multi_head", "rotation": "rotation/rotary", "bias": True}
    once = {"shared": "layer", "of": layer(sublayer(heads), sublayer("glu"))}
    attend = {"shared": "attend", "of": heads}
    tokens = {"shared": "tokens", "of": {"part": "tokens", "position": "position/sinusoidal"}}
    normed = {"part": "multi_head", "q_norm": "rms_norm", "k_norm": {"part": "rms_norm", "per_head": 2}, "kv_heads": 2}
    memory = {"part": "softmax", "memory": {"part": "memory/learned", "count": 3}}
    hyper = {"part": "stack", "layers": [sublayer(b, residual="hyper_connection") for b in (heads, "mlp")]}
    several = {"part": "multi_stream", "stack": hyper, "residual_streams": 3, "norm": "rms_norm"}
    return {
        "residuals": transformer(
            [
                layer(
                    sublayer(heads, residual={"part": "mean_split", "learned": True}),
                    sublayer("mlp", residual={"part": "gru", "scaled": True}),
                    sublayer("mlp", residual="orthogonal"),
                )
            ],
            causal=True,
        ),
        "several streams": transformer([], stacks=[several], causal=True),
        "shared layer": transformer([once, {"shared": "layer"}, once], causal=True),
        "shared attention": transformer(
            [layer(sublayer(attend), sublayer("mlp")), layer(sublayer({"shared": "attend"}), sublayer("glu"))]
        ),
        "tied": transformer(
            [layer(sublayer(heads))],
            causal=True,
            embedding=tokens,
            head={"part": "tied_lm", "embedding": {"shared": "tokens"}, "scale": 0.5},
        ),
        "sandwich": transformer([sublayer("multi_head", branch_norm="layer_norm"), sublayer("mlp", norm="scale_norm")]),
        "post norm": transformer(
            [
                layer(
                    sublayer("multi_head", norm=None, out_norm="layer_norm", residual="residual/deepnorm"),
                    sublayer("glu", norm=None, out_norm="rms_norm", residual="residual/layer_scale"),
                )
            ]
            * 2
        ),
        "long skip": transformer(
            [{"part": "publish", "stream": "skip"}, sublayer("mlp"), {"part": "add_stream", "stream": "skip"}]
        ),
        "nested skip": transformer(
            [
                {"part": "zero_padding", "body": {"part": "publish", "stream": "skip"}},
                sublayer("multi_head"),
                {"part": "zero_padding", "body": {"part": "add_stream", "stream": "skip"}},
            ]
        ),
        "program inside": transformer([sublayer("multi_head"), program_layer(), layer(program_layer())]),
        "grouped and normed": transformer([layer(sublayer(normed), sublayer("glu"))] * 2, causal=True),
        "biased": transformer([sublayer({"part": "multi_head", "position_bias": "alibi"})] * 2, causal=True),
        "window": transformer([sublayer({"part": "multi_head", "attention": {"part": "local", "window": 3}})]),
        "linear": transformer([sublayer({"part": "multi_head", "attention": "attention/linear"})]),
        "memory": transformer([sublayer({"part": "multi_head", "attention": memory})], causal=True),
        "factorised": transformer(
            [sublayer("mlp")],
            embedding={
                "part": "placed",
                "embedding": {"part": "factorised", "embedding": "tokens", "dim_embedding": 5},
                "position": "position/learned",
            },
        ),
        "inner norms": transformer(
            [sublayer({"part": "mlp", "norm": "layer_norm"}), sublayer({"part": "glu", "norm": "rms_norm"})]
        ),
        "two stacks": vf.from_dict(
            {
                "part": "transformer",
                "embedding": "tokens",
                "stacks": [
                    {"part": "stack", "layers": [sublayer("multi_head")], "norm": "layer_norm"},
                    {"part": "registers", "count": 2, "stack": {"part": "stack", "layers": [sublayer("multi_head")]}},
                ],
                "head": {"part": "classifier", "classes": 3},
                **SMALL,
            }
        ),
        "class tokens": vf.from_dict(
            {
                "part": "transformer",
                "embedding": {"part": "features", "class_tokens": 2, "position": "position/learned"},
                "stacks": [{"part": "stack", "layers": [sublayer(heads), sublayer("mlp")]}],
                "head": {"part": "pool", "pool": "mean"},
                **{**SMALL, "max_seq_len": SEQ + 2},
            }
        ),
    }


def presets() -> dict[str, Any]:
    models = vf.models
    image: dict[str, Any] = {"image_size": 8, "patch_size": 4, "dim": D, "depth": 2, "heads": H}
    return {
        "gpt": models.gpt(**SMALL, depth=3, bias=True),
        "gpt tied": models.gpt(**SMALL, depth=2, tie=True, kv_heads=2),
        "llama": models.llama(**SMALL, depth=2, kv_heads=2, tie=True),
        "mistral": models.llama(**SMALL, depth=2, window=4, rope_layout="interleaved"),
        "bert": models.bert(**SMALL, depth=2),
        "bert classifier": models.bert(**SMALL, depth=2, classes=3),
        "vit": models.vit(**image, classes=5),
        "vit mean": models.vit(**image, pool="mean"),
        "seq2seq": models.seq2seq(**SMALL, depth=2),
        "seq2seq tied": models.seq2seq(**SMALL, depth=1, encoder_depth=2, tie=True),
    }


def dialects() -> dict[str, Any]:
    sides = {"num_tokens": V, "max_seq_len": SEQ, "depth": 2, "heads": 2}
    both = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in sides.items()}

    def language(**options: Any) -> Any:
        stack = Decoder(**KEYWORDS, **options)
        return TransformerWrapper(num_tokens=V, max_seq_len=SEQ, attn_layers=stack).spec

    heads = {"num_heads": 2, "residual_dropout": 0.0, "attention": {"name": "scaled_dot_product", "dropout": 0.0}}
    block = {
        "dim_model": D,
        "num_layers": 2,
        "position_encoding_config": {"name": "vocab", "seq_len": SEQ, "vocab_size": V},
        "feedforward_config": {
            "name": "MLP",
            "dropout": 0.0,
            "activation": "relu",
            "hidden_layer_multiplier": 4,
        },
    }
    encoder = {**block, "block_type": "encoder", "residual_norm_style": "pre", "multi_head_config": heads}
    causal = {**heads, "attention": {**heads["attention"], "causal": True}}  # type: ignore[dict-item]
    decoder = {**block, "block_type": "decoder", "residual_norm_style": "post"}
    decoder.update(multi_head_config_masked=causal, multi_head_config_cross=heads)
    deep = {**encoder, "residual_norm_style": "deepnorm"}
    return {
        "x-transformers decoder": language(rotary_pos_emb=True, ff_swish=True, ff_glu=True, use_rmsnorm=True),
        "x-transformers alibi": language(alibi_pos_bias=True, sandwich_norm=True),
        "x-transformers encoder": Encoder(**KEYWORDS).spec,
        "x-transformers vision": ViTransformerWrapper(
            image_size=8, patch_size=4, num_classes=3, attn_layers=Encoder(**KEYWORDS)
        ).spec,
        "x-transformers both": XTransformer(dim=D, tie_token_emb=True, **both).spec,
        "xFormers encoder": xFormer.from_config(xFormerConfig([encoder])).spec,
        "xFormers deepnorm": xFormer.from_config(xFormerConfig([deep])).spec,
        "xFormers both": xFormer.from_config(xFormerConfig([encoder, decoder])).spec,
    }


def every() -> dict[str, Any]:
    return {**presets(), **arrangements(), **dialects()}


def tensors(program: Any, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of a lowered program: 9 tokens (7 of a source or context), padding on both sides, two documents."""
    torch.manual_seed(seed)
    sizes = {"BSZ": 3, "L": 9, "L_source": 7, "L_context": 7}
    found: dict[str, Tensor] = {}
    for name, shape in program.spec["inputs"].items():
        size = [sizes[s] if isinstance(s, str) else s for s in shape]
        if name in ("ids", "source", "target"):
            found[name] = torch.randint(0, V, size)
        elif name in ("valid", "source_valid", "target_valid", "context_mask"):
            steps = torch.arange(size[1])
            found[name] = (steps >= torch.tensor([[0], [2], [1]])) & (steps < torch.tensor([[size[1]], [size[1]], [5]]))
        elif name == "segments":
            found[name] = (torch.arange(size[1]) >= torch.tensor([[4], [6], [3]])).long()
        elif name == "positions":
            found[name] = torch.randint(0, SEQ, size)
        elif name == "mask":
            found[name] = (torch.rand(size) > 0.4) | torch.eye(size[-1], dtype=torch.bool)
        else:
            found[name] = torch.randn(size, dtype=torch.float64)
    return found


def call(model: Any, given: dict[str, Tensor]) -> Tensor:
    """What the model itself gives for a program's inputs."""
    side = dict(given)
    if "source" in side:
        more = {"valid": side.pop("target_valid")} if "target_valid" in side else {}
        return model(side.pop("source"), side.pop("target"), **side, **more)
    main = next(name for name in ("ids", "image", "features", "x") if name in side)
    x = side.pop(main)
    if model.kind != "model":
        from variform.stack.inputs import as_mask

        out = model(x, {**side, "mask": as_mask(side.get("mask"))})
        return out[0] if isinstance(out, tuple) else out
    return model(x, **side)
