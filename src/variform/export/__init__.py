"""Models that need no variform: a standalone PyTorch file, a program of `torch.export`, an ONNX file."""

from variform.export.onnx import Graph, to_exported, to_graph, to_onnx
from variform.export.source import to_file, to_source
from variform.export.weights import convert_weights

__all__ = ["Graph", "convert_weights", "to_exported", "to_file", "to_graph", "to_onnx", "to_source"]
