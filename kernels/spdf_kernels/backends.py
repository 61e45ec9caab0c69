"""Back ends of the three products: the protocol, the list in order of preference, and the choice for a product.

A back end of another package is an object of the entry-point group ``spdf.backends``. It takes precedence over those of
this package. The environment variable SPDF_KERNELS_BACKEND forces one by name.
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
"""Modules whose BACKENDS list their back ends, the most preferred first. A module may be missing."""


class Routes(NamedTuple):
    """The back end's name for each product of a pattern; a back end may delegate a product to another one."""

    forward: str
    grad_input: str
    grad_values: str


class Held(NamedTuple):
    """Bytes that a back end holds for a pattern, without the mask's bits."""

    index_bytes: int
    code_bytes: int


@runtime_checkable
class Backend(Protocol):
    """The three products of a sparse weight. Legend: T tokens, O out, I in, K kept entries.

    The operators check shapes, devices and dtypes before they call a back end. Operands may be non-contiguous.
    ``values_K`` is in row-major order of the mask. A product covers kept entries only: 0 * Inf of a pruned entry is not
    computed. The first call prepares a product and stores the result in ``pattern.prepared`` under the back end's key.
    """

    @property
    def name(self) -> str:
        """The name in SPDF_KERNELS_BACKEND."""

    @property
    def path(self) -> str:
        """The kind of prepared state, such as "compact" (indices) or "generated" (code): a row of `spdf inspect`."""

    @property
    def skips_work(self) -> bool:
        """Whether the time of a product falls with density. If not, `compare` chooses the dense product."""

    def available(self) -> str | None:
        """None if this machine can run the back end, else the reason."""

    def supports(self, device: torch.device, dtype: torch.dtype, pattern: SparsityPattern) -> str | None:
        """None if the back end runs these products, else the reason. Fast; prepares nothing."""

    def prepare(self, pattern: SparsityPattern, dtype: torch.dtype) -> Routes:
        """Prepare the three products for operands of ``dtype`` before their first calls."""

    def spmm(
        self, x_TI: torch.Tensor, values_K: torch.Tensor, bias_O: torch.Tensor | None, pattern: SparsityPattern
    ) -> torch.Tensor:
        """Forward: y [T, O] = x W^T + bias."""

    def spmm_t(self, dy_TO: torch.Tensor, values_K: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
        """dX: dx [T, I] = dy W."""

    def sddmm(self, dy_TO: torch.Tensor, x_TI: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
        """dW: dvalues [K], dy^T x at the kept entries."""

    def bytes(self, pattern: SparsityPattern) -> Held:
        """The bytes that are held for a pattern at present."""


@functools.cache
def backends() -> tuple[Backend, ...]:
    """All back ends, the most preferred first. Raises ValueError if two have the same name."""
    found: list[Backend] = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            loaded = point.load()
        except Exception as error:  # a faulty module of another package must not disable the other back ends
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
    """Stands for an entry point without a valid back end, so that `available_backends` reports the reason."""

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
    """Every back end, the most preferred first, with None if it is available, else the reason.

    triton-block: whole blocks on GPUs; triton-expand: any mask on GPUs; jit: AVX-512 code generated from the mask;
    avx512: compressed rows; jit-avx2: AVX2 code generated from the mask; portable: C++ for any CPU;
    torch: dense product.
    """
    return {backend.name: backend.available() for backend in backends()}


def backend_for(pattern: SparsityPattern, dtype: torch.dtype) -> Backend:
    """The back end of a pattern's products in `dtype`: the forced one, else the first available that supports them.

    The choice is stored in the pattern.

    Raises:
        ValueError: the forced back end is unknown, is not available or does not support the products.
        TypeError: no back end supports the dtype.
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
    """Limit the generated code of all patterns in this process to `megabytes` (2^20 bytes).

    Patterns beyond the limit run on compressed rows. The limit applies to patterns whose code is not built yet. Raises
    ValueError for anything but a non-negative number.
    """
    if not isinstance(megabytes, int | float) or not megabytes >= 0:
        raise ValueError(f"the code budget must be a number that is not negative, not {megabytes!r} MiB")
    native.set_code_budget(int(min(megabytes * 2**20, 2**62)))


class Description(NamedTuple):
    """The back end of each product of a pattern, and the bytes held for the products."""

    forward: str
    grad_input: str
    grad_values: str
    index_bytes: int
    code_bytes: int


def describe(pattern: SparsityPattern, dtype: torch.dtype = torch.float32) -> Description:
    """Prepare all products of a pattern for tensors of `dtype`; return the back end of each and the bytes held.

    The mask's bits count as indices. Raises the errors of `backend_for`.
    """
    backend = backend_for(pattern, dtype)
    routes = backend.prepare(pattern, dtype)
    held = backend.bytes(pattern)
    return Description(*routes, pattern.bits.numel() + held.index_bytes, held.code_bytes)
