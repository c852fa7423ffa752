"""A file of settings that takes seconds."""

import copy
import json
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[4] / "examples" / "lra" / "config.json"

BLOCK = {
    "block_type": "encoder",
    "num_layers": 1,
    "residual_norm_style": "pre",
    "position_encoding_config": {"name": "vocab"},
    "multi_head_config": {"residual_dropout": 0.0, "attention": {"causal": False}},
    "feedforward_config": {"name": "MLP", "activation": "gelu", "hidden_layer_multiplier": 2},
}
TASK: dict[str, Any] = {
    "dataset": {"train": 64, "dev": 9, "test": 21},
    "training": {
        "batch_size": 8,
        "learning_rate": 1e-3,
        "warmup": 1,
        "num_train_steps": 4,
        "eval_frequency": 2,
    },
    "model": {
        "pooling_mode": "mean",
        "common": {"dim_model": 16, "num_heads": 2, "num_classes": 10, "seq_len": 64, "vocab_size": 258},
        "xformer": [BLOCK],
        "extra_settings": {"attention": {"local": {"window_size": 3}}},
    },
}
TREES = {"min_length": 5, "max_length": 24, "max_depth": 3, "max_args": 4}


def content(**changes: Any) -> dict[str, Any]:
    """All tasks; `section__key=value` changes each of them."""
    found = {name: copy.deepcopy(TASK) for name in ("listops", "image", "text", "retrieval", "pathfinder32")}
    found["listops"]["dataset"] |= TREES
    for task in found.values():
        for name, value in changes.items():
            *steps, last = name.split("__")
            place = task
            for step in steps:
                place = place[step]
            place[last] = value
    return found


def write(folder: Path, data: dict[str, Any] | None = None, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(content(**changes) if data is None else data), encoding="utf-8")
    return file
