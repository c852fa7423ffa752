"""Attention masks as symbols: one polarity (True = may attend), combined with `&`, `|`, `~`, materialised late.

from variform.ops.masks import Causal, Global, Window
mask = (Causal() & Window(256)) | Global([0])
mask.density(4096)
"""

from variform.ops.masks.base import And, Band, Everything, Mask, MaskMod, Not, Or
from variform.ops.masks.convert import from_additive, from_key_padding, from_torch_mha
from variform.ops.masks.grid import Axial, Dilated, Near, ShiftedWindows
from variform.ops.masks.positional import After, Causal, Coarse, Global, Segments, Window
from variform.ops.masks.random import Random, RandomBy, RandomLinks
from variform.ops.masks.tensors import Blocks, Dense, Documents, KeyPadding, Padding

__all__ = [
    "After",
    "And",
    "Axial",
    "Band",
    "Blocks",
    "Causal",
    "Coarse",
    "Dense",
    "Dilated",
    "Documents",
    "Everything",
    "Global",
    "KeyPadding",
    "Mask",
    "MaskMod",
    "Near",
    "Not",
    "Or",
    "Padding",
    "Random",
    "RandomBy",
    "RandomLinks",
    "Segments",
    "ShiftedWindows",
    "Window",
    "from_additive",
    "from_key_padding",
    "from_torch_mha",
]
