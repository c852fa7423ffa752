"""The pictures of the page on patterns, drawn when the site is built."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from mkdocs.structure.files import File, Files

Draw = Callable[[], Any]


def on_files(files: Files, config: Any) -> Files:
    """Add each picture as a file."""
    for name, picture in pictures().items():
        files.append(File.generated(config, f"pictures/{name}.png", content=picture))
    return files


def pictures() -> dict[str, bytes]:
    """Every picture of the gallery as PNG, by name."""
    import matplotlib
    import torch

    matplotlib.use("agg")
    from matplotlib import pyplot

    made = {}
    for name, draw in {**images(), **sequences(), **layouts()}.items():
        torch.manual_seed(0)
        figure, buffer = draw(), io.BytesIO()
        figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
        pyplot.close(figure)
        made[name] = buffer.getvalue()
    return made


def images() -> dict[str, Draw]:
    """Patterns over an image of 20 x 30 pixels: the whole, and what the middle pixel sees."""
    import variform as vf
    from variform.dialects.xformers.components.attention import attention_patterns as AP

    height, width = 20, 30
    axial, local = AP.axial_2d_pattern(height, width), AP.local_2d_pattern(height, width, distance=5, p=2.0)
    gaussian = AP.local_2d_gausian_distribution(height, width, sigma=2)

    def drawn() -> Any:
        return AP.random_pattern_from_probability_matrix(gaussian, int((height * width) ** 2 * 0.05))

    made: dict[str, Draw] = {
        "axial_2d_pattern": lambda: axial,
        "local_2d_pattern": lambda: local,
        "random_pattern_from_probability_matrix": drawn,
        "combined": lambda: axial | local | drawn(),
        "local_nd_pattern": lambda: AP.local_nd_pattern(height, width, distance=5, p=1.0),
        "axial_nd_pattern": lambda: AP.axial_nd_pattern(height // 4, 4, width),
        "dilated_2d_pattern": lambda: AP.dilated_2d_pattern(height, width, k=3),
        "swin_attention_pattern": lambda: AP.swin_attention_pattern(height, width, window_size=5),
        "swin_attention_pattern_shifted": lambda: AP.swin_attention_pattern(height, width, 5, shift_size=2),
        "local_2d_gausian_distribution": lambda: gaussian,
        "local_nd_gaussian_distribution": lambda: AP.local_nd_gaussian_distribution(height, width, sigma=4),
        "local_2d_distance": lambda: AP.local_2d_distance(height, width),
        "local_nd_distance": lambda: AP.local_nd_distance(height, width, p=1.0, weights=(1, 2)),
        "horizontal_axial_2d_distance": lambda: AP.horizontal_axial_2d_distance(height, width),
        "vertical_axial_2d_distance": lambda: AP.vertical_axial_2d_distance(height, width),
    }
    return {name: lambda make=make: vf.plot_mask(make(), grid=(height, width)) for name, make in made.items()}


def sequences() -> dict[str, Draw]:
    """Patterns over 64 positions in a row, as tensors and as the attentions' masks."""
    import torch

    import variform as vf
    from variform.dialects.xformers.components.attention import attention_patterns as AP
    from variform.ops.masks import Causal

    length = 64
    tokens = torch.zeros(length, dtype=torch.bool)
    tokens[[0, 20, 21]] = True
    attentions = {
        "global": {"tokens": (0, 20, 21)},
        "longformer": {"window": 9, "tokens": (0, 20)},
        "bigbird": {"block": 4, "global_blocks": 1, "random_blocks": 1},
        "random": {"r": 0.1},
    }
    made: dict[str, Draw] = {
        "local_1d_pattern": lambda: vf.plot_mask(AP.local_1d_pattern(length, 9)),
        "causal_1d_pattern": lambda: vf.plot_mask(AP.causal_1d_pattern(length)),
        "global_token_pattern": lambda: vf.plot_mask(AP.global_token_pattern(tokens)),
        "random_pattern": lambda: vf.plot_mask(AP.random_pattern(length, sparsity=0.9)),
        "alibi_pattern": lambda: vf.plot_mask(AP.alibi_pattern(0.15, (4, length, length))),
        "pattern_to_layout": lambda: vf.plot_mask(AP.pattern_to_layout(AP.local_1d_pattern(length, 9), 8), block=8),
        "layout_to_pattern": lambda: vf.plot_mask(AP.layout_to_pattern(torch.eye(8), 8)),
    }
    for name, fields in attentions.items():
        part = vf.build(vf.parts("attention")["attention", name].spec(**fields))
        made[name] = lambda part=part: vf.plot_mask(part.pattern(), length)
        made[f"{name}_causal"] = lambda part=part: vf.plot_mask(Causal() & part.pattern(), length)
    return made


def layouts() -> dict[str, Draw]:
    """Layouts of blocks of 16, for one head, or for four that differ."""
    import variform as vf
    from variform.dialects.xformers.components.attention import attention_patterns as AP
    from variform.dialects.xformers.components.attention import sparsity_config as SC

    configs: dict[str, SC.SparsityConfig] = {
        "DenseSparsityConfig": SC.DenseSparsityConfig(1),
        "FixedSparsityConfig": SC.FixedSparsityConfig(4, 16, True, num_different_global_patterns=4),
        "VariableSparsityConfig": SC.VariableSparsityConfig(
            1, num_random_blocks=1, local_window_blocks=[2, 4, 8], global_block_indices=[0, 10], seed=0
        ),
        "BigBirdSparsityConfig": SC.BigBirdSparsityConfig(4, 16, True, seed=0),
        "BSLongformerSparsityConfig": SC.BSLongformerSparsityConfig(1, global_block_indices=[0, 12]),
        "unidirectional": SC.BigBirdSparsityConfig(4, 16, True, attention="unidirectional", seed=0),
    }
    quick = {name: getattr(AP, name) for name in dir(AP) if name.startswith("quick_")}
    made: dict[str, Draw] = {name: lambda c=config: vf.plot_mask(c, 512) for name, config in configs.items()}
    return made | {name: lambda make=make: vf.plot_mask(make(1, 16, 512), block=16) for name, make in quick.items()}
