"""Models as code of their own: a standalone PyTorch file."""

from variform.export.source import to_file, to_source
from variform.export.weights import convert_weights

__all__ = ["convert_weights", "to_file", "to_source"]
