"""Weights in files: safetensors, strict loading."""

from variform.weights.io import load_model, load_weights, save_weights

__all__ = ["load_model", "load_weights", "save_weights"]
