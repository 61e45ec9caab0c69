"""Products of sparse weights on NVIDIA GPUs, in Triton.

The back end `triton-block` multiplies masks of whole blocks (128 or 64 wide) and skips the pruned ones. `triton-expand`
takes every mask: it writes the dense weight, calls cuBLAS and gathers the gradient, so that memory and traffic shrink
but not the time. With TRITON_INTERPRET=1 both run on the CPU, in Triton's interpreter, for tests.

Triton is imported at the first product, so that a machine without it can ask why a back end is missing.
"""

from __future__ import annotations

from spdf_kernels.triton.availability import interpreted, missing
from spdf_kernels.triton.backends import BACKENDS

__all__ = ["BACKENDS", "interpreted", "missing"]
