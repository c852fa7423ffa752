"""Weights in files and from other libraries: safetensors, strict loading."""

from variform.weights.io import load_model, load_weights, save_weights
from variform.weights.x_transformers import load_x_transformers, to_x_transformers
from variform.weights.xformers_checkpoints import load_xformers

__all__ = [
    "load_model",
    "load_weights",
    "load_x_transformers",
    "load_xformers",
    "save_weights",
    "to_x_transformers",
]
