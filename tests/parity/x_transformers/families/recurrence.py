"""Plain decoders, and segments that remember (Transformer-XL)."""

from __future__ import annotations

from tests.parity.x_transformers.option_set import OptionSet

SETS = [
    OptionSet("plain", feature="Decoder", part="stack/stack", paper="arXiv:1706.03762", same=True),
]
