"""Products with static, unstructured sparse weights. Pruned entries take neither time nor memory."""

from spdf_kernels.backends import Description, available_backends, describe, set_code_budget_mb
from spdf_kernels.choose import Comparison, choose, compare
from spdf_kernels.dense import dense_linear, slow_precision
from spdf_kernels.linear import sparse_linear
from spdf_kernels.module import SparseLinear
from spdf_kernels.pattern import SparsityPattern

__all__ = [
    "Comparison",
    "Description",
    "SparseLinear",
    "SparsityPattern",
    "available_backends",
    "choose",
    "compare",
    "dense_linear",
    "describe",
    "set_code_budget_mb",
    "slow_precision",
    "sparse_linear",
]
