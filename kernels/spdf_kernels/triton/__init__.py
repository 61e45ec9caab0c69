"""Products of sparse weights on NVIDIA GPUs, in Triton.

The back end `triton-block` multiplies masks of whole blocks (128 or 64 wide) and skips pruned blocks. `triton-expand`
supports every mask: it writes the dense weight, calls cuBLAS and gathers the gradient. It saves memory and traffic, but
no time. For tests, TRITON_INTERPRET=1 runs both on the CPU in Triton's interpreter.

Triton is imported at the first product, so that a machine without it can report why a back end is missing.
"""

from __future__ import annotations

from spdf_kernels.triton.availability import interpreted, missing
from spdf_kernels.triton.backends import BACKENDS

__all__ = ["BACKENDS", "interpreted", "missing"]
