"""Specs, the registry, resolution and the codec: descriptions of models, without any tensor maths."""
