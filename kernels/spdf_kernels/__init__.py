"""Products with unstructured, static sparse weights that skip the work and the memory of the pruned entries."""

from spdf_kernels.linear import sparse_linear
from spdf_kernels.pattern import SparsityPattern

__all__ = ["SparsityPattern", "sparse_linear"]
