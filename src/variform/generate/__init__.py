"""Generating text with any causal model: samplers, prompts of unequal length, the decoding loop."""

from variform.generate.beam import Beams, beam_search
from variform.generate.contrast import Contrast
from variform.generate.loop import generate, stream
from variform.generate.options import Options
from variform.generate.samplers import Filter, min_p, temperature, top_k, top_p

__all__ = [
    "Beams",
    "Contrast",
    "Filter",
    "Options",
    "beam_search",
    "generate",
    "min_p",
    "stream",
    "temperature",
    "top_k",
    "top_p",
]
