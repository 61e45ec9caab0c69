"""Which back end a product runs on: the fastest that the machine has, or the one that SPDF_KERNELS_BACKEND names."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch

from spdf_kernels import native
from spdf_kernels.pattern import SparsityPattern

VARIABLE = "SPDF_KERNELS_BACKEND"
NAMES = ("jit", "avx512", "portable", "torch")  # fastest first


def available_backends() -> dict[str, str | None]:
    """Every back end, fastest first, with None where this machine has it and else the reason why not.

    jit: AVX-512 code generated from the mask; avx512: compressed rows; portable: C++ for any CPU; torch: dense product.
    """
    return {name: None if name == "torch" else native.missing(name) for name in NAMES}


def backend_for(pattern: SparsityPattern) -> str:
    """Name of the back end for a pattern. Raises ValueError when the forced one is unknown or not available."""
    if pattern.bits.is_cpu and native.unforced():
        return _fastest()
    forced = os.environ.get(VARIABLE)
    if not pattern.bits.is_cpu:
        if forced not in (None, "", "torch"):
            raise ValueError(f"{VARIABLE}={forced}: on {pattern.device} there is only the back end torch")
        return "torch"
    if forced:
        if forced not in NAMES:
            raise ValueError(f"{VARIABLE}={forced}: no such back end; known are {', '.join(NAMES)}")
        if forced != "torch" and (reason := native.missing(forced)) is not None:
            raise ValueError(f"{VARIABLE}={forced} is not available: {reason}")
        return forced
    return _fastest()


@functools.cache
def _fastest() -> str:
    return next(name for name, reason in available_backends().items() if reason is None)


def set_code_budget_mb(megabytes: float) -> None:
    """Allows this process `megabytes` (2^20 bytes) of generated code over all patterns; further ones run on avx512.

    Counts for patterns whose code is not yet built. Raises ValueError for what is not a number or negative.
    """
    if not isinstance(megabytes, int | float) or not megabytes >= 0:
        raise ValueError(f"the code budget must be a number that is not negative, not {megabytes!r} MiB")
    native.set_code_budget(int(min(megabytes * 2**20, 2**62)))


class Description(NamedTuple):
    """How a pattern's products run here: the back end of each, and the bytes held for them."""

    forward: str
    grad_input: str
    grad_values: str
    index_bytes: int
    code_bytes: int


def describe(pattern: SparsityPattern, dtype: torch.dtype = torch.float32) -> Description:
    """Prepares all products of a pattern for tensors of `dtype`; tells the back end of each, and the bytes they hold.

    The mask's own bits count as indices. Raises TypeError for another dtype than float32 and bfloat16.
    """
    if dtype not in native.DTYPES:
        raise TypeError(f"products are of float32 or bfloat16, not {dtype}")
    backend = backend_for(pattern)
    bits = pattern.bits.numel()
    if backend == "torch":
        index = pattern.flat_index()
        return Description("torch", "torch", "torch", bits + index.numel() * index.element_size(), 0)
    forward, grad_input = (native.prepare(pattern, backend, transposed, dtype) for transposed in (False, True))
    native.prepare_sddmm(pattern)
    index_bytes, code_bytes = native.held_bytes(pattern)
    grad_values = "portable" if backend == "portable" else "avx512"
    return Description(forward, grad_input, grad_values, bits + index_bytes, code_bytes)
