"""Embeddings: from a model's raw input to features."""
