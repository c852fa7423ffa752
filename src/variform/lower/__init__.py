"""Any model as a program: `lower` turns a spec into steps over named tensors that compute the same."""

from variform.lower.lowering import Lowered, lower

__all__ = ["Lowered", "lower"]
