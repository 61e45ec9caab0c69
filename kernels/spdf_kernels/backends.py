"""Back ends of the three products: the protocol, the list in order of preference, and which one a product runs on.

A back end of another package is an object of the entry-point group ``spdf.backends``; it comes before those of this
package. The environment variable SPDF_KERNELS_BACKEND forces one by name.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from importlib.metadata import entry_points
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from spdf_kernels import native
from spdf_kernels.pattern import SparsityPattern

VARIABLE = "SPDF_KERNELS_BACKEND"
GROUP = "spdf.backends"
_MODULES = ("spdf_kernels.triton", "spdf_kernels.cpu", "spdf_kernels.reference")
"""Each module that exists lists its back ends in BACKENDS, the most preferred first."""


class Routes(NamedTuple):
    """Name of the back end that each product of a pattern runs on; one back end may hand a product to another."""

    forward: str
    grad_input: str
    grad_values: str


class Held(NamedTuple):
    """Bytes that a back end holds for a pattern, beside the mask's bits."""

    index_bytes: int
    code_bytes: int


@runtime_checkable
class Backend(Protocol):
    """The three products of a sparse weight. Legend: T tokens, O out, I in, K kept entries.

    The operators have checked shapes, devices and dtypes; operands may be non-contiguous. ``values_K`` is in row-major
    order of the mask. A product is over kept entries only: 0 * Inf of a pruned entry is not computed. What a product
    needs is prepared at its first call and kept in ``pattern.prepared`` under a key of the back end's own.
    """

    @property
    def name(self) -> str:
        """The name in SPDF_KERNELS_BACKEND."""

    @property
    def path(self) -> str:
        """What is held for a pattern, such as "compact" (indices) or "generated" (code): a row of `spdf inspect`."""

    @property
    def skips_work(self) -> bool:
        """Whether the time of a product falls with density; without it, training takes the dense product."""

    def available(self) -> str | None:
        """None where this machine has the back end, else the reason why not."""

    def supports(self, device: torch.device, dtype: torch.dtype, pattern: SparsityPattern) -> str | None:
        """None where these products run on the back end, else the reason why not. Cheap; prepares nothing."""

    def prepare(self, pattern: SparsityPattern, dtype: torch.dtype) -> Routes:
        """Prepares the three products for operands of ``dtype`` now, instead of at their first calls."""

    def spmm(
        self, x_TI: torch.Tensor, values_K: torch.Tensor, bias_O: torch.Tensor | None, pattern: SparsityPattern
    ) -> torch.Tensor:
        """Forward: y [T, O] = x W^T + bias."""

    def spmm_t(self, dy_TO: torch.Tensor, values_K: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
        """dX: dx [T, I] = dy W."""

    def sddmm(self, dy_TO: torch.Tensor, x_TI: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
        """dW: dvalues [K], dy^T x at the kept entries."""

    def bytes(self, pattern: SparsityPattern) -> Held:
        """What is held for a pattern at this moment."""


@functools.cache
def backends() -> tuple[Backend, ...]:
    """All back ends, the most preferred first. Raises ValueError when two have one name."""
    found: list[Backend] = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            loaded = point.load()
        except Exception as error:  # whatever a stranger's module raises: the other back ends go on working
            found.append(_Broken(point.name, f"{point.value} does not load: {type(error).__name__}: {error}"))
            continue
        wrong = None if isinstance(loaded, Backend) else f"{point.value} is not a spdf_kernels.backends.Backend"
        found.append(_Broken(point.name, wrong) if wrong else loaded)
    for module in _MODULES:
        if importlib.util.find_spec(module) is not None:
            found.extend(importlib.import_module(module).BACKENDS)
    names = [backend.name for backend in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{names.count(name)} kernel back ends are named {name!r}: uninstall all but one")
    return tuple(found)


class _Broken:
    """Stands for an entry point that gives no back end, so that `available_backends` says why."""

    path = "none"
    skips_work = False

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason

    def available(self) -> str:
        return self.reason

    def supports(self, device: torch.device, dtype: torch.dtype, pattern: SparsityPattern) -> str:
        return self.reason

    def _refuse(self, *operands: object) -> torch.Tensor:
        raise RuntimeError(self.reason)

    spmm = spmm_t = sddmm = _refuse

    def prepare(self, pattern: SparsityPattern, dtype: torch.dtype) -> Routes:
        raise RuntimeError(self.reason)

    def bytes(self, pattern: SparsityPattern) -> Held:
        return Held(0, 0)


def available_backends() -> dict[str, str | None]:
    """Every back end, the most preferred first, with None where this machine has it and else the reason why not.

    triton-block: whole blocks on GPUs; triton-expand: any mask on GPUs; jit: AVX-512 code generated from the mask;
    avx512: compressed rows; jit-avx2: AVX2 code generated from the mask; portable: C++ for any CPU;
    torch: dense product.
    """
    return {backend.name: backend.available() for backend in backends()}


def backend_for(pattern: SparsityPattern, dtype: torch.dtype) -> Backend:
    """The back end of a pattern's products in `dtype`: the forced one, else the first that is there and supports them.

    The choice is kept with the pattern. Raises ValueError when the forced back end is unknown, not available or does
    not support the products; TypeError for a dtype that no back end supports.
    """
    if native.unforced() or not (forced := os.environ.get(VARIABLE)):
        chosen: Backend | None = pattern.chosen.get(dtype)
        return _first(pattern, dtype) if chosen is None else chosen
    backend = next((backend for backend in backends() if backend.name == forced), None)
    if backend is None:
        raise ValueError(f"{VARIABLE}={forced}: no such back end; known are {', '.join(available_backends())}")
    if (reason := backend.available()) is not None:
        raise ValueError(f"{VARIABLE}={forced} is not available: {reason}")
    if (reason := backend.supports(pattern.device, dtype, pattern)) is not None:
        _first(pattern, dtype)  # raises TypeError for a dtype that no back end supports
        raise ValueError(f"{VARIABLE}={forced}: {reason}")
    return backend


def _first(pattern: SparsityPattern, dtype: torch.dtype) -> Backend:
    for backend in backends():
        if backend.available() is None and backend.supports(pattern.device, dtype, pattern) is None:
            pattern.chosen[dtype] = backend
            return backend
    raise TypeError(f"operands must be float32, bfloat16, float16 or float64, not {dtype}")


def set_code_budget_mb(megabytes: float) -> None:
    """Allows this process `megabytes` (2^20 bytes) of generated code over all patterns.

    Patterns beyond it run on compressed rows. Counts for patterns whose code is not yet built. Raises ValueError for
    what is not a number or negative.
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

    The mask's own bits count as indices. Raises what `backend_for` raises.
    """
    backend = backend_for(pattern, dtype)
    routes = backend.prepare(pattern, dtype)
    held = backend.bytes(pattern)
    return Description(*routes, pattern.bits.numel() + held.index_bytes, held.code_bytes)
