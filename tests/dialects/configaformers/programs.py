"""Programs that several tests use: the quick demo, a small one of its kind, and a plain GPT."""

from typing import Any

Module = dict[str, Any]


def attention(heads: int, rotate_dim: int | None = None) -> list[Module]:
    modules: list[Module] = [
        {"type": "make_stream", "output_name": "residual"},
        {"type": "norm", "norm_type": "layer_norm"},
        {"type": "linear", "output_name": "queries"},
        {"type": "linear", "output_name": "keys"},
        {"type": "linear", "output_name": "values"},
        {"type": "make_heads", "input_name": "queries", "output_name": "queries", "num_heads": heads},
        {"type": "make_heads", "input_name": "keys", "output_name": "keys", "num_heads": heads},
    ]
    if rotate_dim is not None:
        modules += [
            {"type": "rope", "input_name": "queries", "output_name": "queries", "rotate_dim": rotate_dim},
            {"type": "rope", "input_name": "keys", "output_name": "keys", "rotate_dim": rotate_dim},
        ]
    return [
        *modules,
        {"type": "mha_dots", "input_name_queries": "queries", "input_name_keys": "keys"},
        {"type": "attention_offset"},
        {"type": "mha_sum", "input_name_values": "values"},
        {"type": "linear"},
        {"type": "merge_streams", "input_name_1": "residual", "merge_type": "add"},
    ]


def feedforward(dim: int) -> list[Module]:
    return [
        {"type": "make_stream", "output_name": "residual"},
        {"type": "norm", "norm_type": "layer_norm"},
        {"type": "linear", "output_dim": dim * 4},
        {"type": "activation"},
        {"type": "linear", "output_dim": dim},
        {"type": "merge_streams", "input_name_1": "residual", "merge_type": "add"},
    ]


def demo(dim: int = 768, heads: int = 12, depth: int = 12, vocab: int = 50257, rotate_dim: int = 16) -> dict[str, Any]:
    """The quick demo: rotary and ALiBi together, a feedforward before the head, no final norm."""
    embedding = [{"type": "embedding", "output_dim": dim, "num_classes": vocab}]
    return {
        "model_config": {
            "blocks": [
                {"config": embedding, "repeat": 1},
                {"config": attention(heads, rotate_dim) + feedforward(dim), "repeat": depth},
                {"config": [*feedforward(dim), {"type": "linear", "output_dim": vocab}], "repeat": 1},
            ]
        },
        "input_streams": {"emb_ids": ["B", "L_in"], "attn_offset": ["B", heads, "L_in", "L_in"]},
    }


def gpt(dim: int, heads: int, depth: int, vocab: int) -> dict[str, Any]:
    """A plain decoder: pre-norm attention and MLP, final norm, head; what is causal comes with `attn_offset`."""
    embedding = [{"type": "embedding", "output_dim": dim, "num_classes": vocab}]
    head = [{"type": "norm"}, {"type": "linear", "output_dim": vocab}]
    return {
        "model_config": {
            "blocks": [
                {"config": embedding, "repeat": 1},
                {"config": attention(heads) + feedforward(dim), "repeat": depth},
                {"config": head, "repeat": 1},
            ]
        },
        "input_streams": {"emb_ids": ["B", "L_in"], "attn_offset": ["B", heads, "L_in", "L_in"]},
    }
