"""Plain decoders, and segments that remember (Transformer-XL)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.parity.x_transformers.option_set import OptionSet

REMEMBERED = 5


def remembers(ids: Tensor) -> dict[str, Any]:
    """Memories of another segment, one tensor a self-attention."""
    draw = torch.Generator().manual_seed(8)
    return {"mems": [torch.randn(len(ids), REMEMBERED, 24, generator=draw, dtype=torch.float64) for _ in range(2)]}


def remembers_some(ids: Tensor) -> dict[str, Any]:
    """The same, of which some tokens are padding."""
    mask = torch.ones(len(ids), REMEMBERED, dtype=torch.bool)
    mask[0, :2] = False
    return {**remembers(ids), "mem_masks": [mask] * 2}


def segments(name: str, layers: dict[str, Any] | None = None, **more: Any) -> OptionSet:
    """A decoder of a segment that remembers an earlier one."""
    model = {"max_mem_len": 8, **more.pop("model", {})}
    return OptionSet(f"memories-{name}", layers or {}, model, **{"call": remembers, **more})


SETS = [
    OptionSet("plain", feature="Decoder", part="stack/stack", paper="arXiv:1706.03762", same=True),
    segments(
        "plain",
        feature="Segment recurrence (Transformer-XL)",
        part="model/transformer",
        paper="arXiv:1901.02860",
    ),
    segments("rotary", {"rotary_pos_emb": True}),
    segments("alibi", {"alibi_pos_bias": True, "attn_kv_heads": 2}),
    segments("t5", {"rel_pos_bias": True}),
    segments("masked", call=remembers_some),
    segments(
        "masked-learned-keys",
        {"rotary_pos_emb": True, "attn_num_mem_kv": 2},
        call=remembers_some,
        wrong="learned keys stand at 0, where here remembered tokens begin",
    ),
    segments(
        "shifted",
        model={"shift_mem_down": 1},
        feature="Enhanced recurrence (ERNIE-Doc)",
        part="model/transformer",
        paper="arXiv:2012.15688",
    ),
    segments("llama-like", {"rotary_pos_emb": True, "use_rmsnorm": True, "ff_glu": True, "ff_swish": True}),
    segments("flash", {"attn_flash": True, "rotary_pos_emb": True}),
]
