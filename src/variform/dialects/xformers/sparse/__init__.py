"""Sparse tensors of attention scores: by single pairs, and by blocks of pairs."""

from variform.dialects.xformers.sparse.blocksparse_tensor import BlockSparseTensor
from variform.dialects.xformers.sparse.csr_tensor import SparseCSRTensor

__all__ = ["BlockSparseTensor", "SparseCSRTensor"]
