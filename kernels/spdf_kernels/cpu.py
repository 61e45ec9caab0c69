"""The back ends of the shared library: C++ and generated code for CPUs."""

from __future__ import annotations

import torch

from spdf_kernels import native
from spdf_kernels.backends import Backend, Held, Routes
from spdf_kernels.pattern import SparsityPattern


class CpuBackend:
    """One back end of the shared library; `native.BACKENDS` has its number.

    float16 operands are widened to float32 for the product, and its result is rounded once.
    """

    skips_work = True

    def __init__(self, name: str, path: str, grad_values: str) -> None:
        """`grad_values` names the back end whose dW this one uses."""
        self.name, self.path, self.grad_values = name, path, grad_values

    def available(self) -> str | None:
        return native.missing(self.name)

    def supports(self, device: torch.device, dtype: torch.dtype, pattern: SparsityPattern) -> str | None:
        if device.type != "cpu":
            return f"the back end {self.name} runs on the CPU, not on {device}"
        if dtype not in native.DTYPES and dtype is not torch.float16:
            return f"the back end {self.name} multiplies float32, bfloat16 and float16, not {dtype}"
        return None

    def prepare(self, pattern: SparsityPattern, dtype: torch.dtype) -> Routes:
        if dtype is torch.float16:
            dtype = torch.float32
        forward, grad_input = (native.prepare(pattern, self.name, transposed, dtype) for transposed in (False, True))
        native.prepare_sddmm(pattern)
        return Routes(forward, grad_input, self.grad_values)

    def spmm(
        self, x_TI: torch.Tensor, values_K: torch.Tensor, bias_O: torch.Tensor | None, pattern: SparsityPattern
    ) -> torch.Tensor:
        if x_TI.dtype is torch.float16:
            bias_O = None if bias_O is None else bias_O.float()
            return self.spmm(x_TI.float(), values_K.float(), bias_O, pattern).half()
        return native.spmm(x_TI, values_K, bias_O, pattern, self.name, transposed=False)

    def spmm_t(self, dy_TO: torch.Tensor, values_K: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
        if dy_TO.dtype is torch.float16:
            return self.spmm_t(dy_TO.float(), values_K.float(), pattern).half()
        return native.spmm(dy_TO, values_K, None, pattern, self.name, transposed=True)

    def sddmm(self, dy_TO: torch.Tensor, x_TI: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
        if dy_TO.dtype is torch.float16:
            return self.sddmm(dy_TO.float(), x_TI.float(), pattern).half()
        return native.sddmm(dy_TO, x_TI, pattern, self.name)

    def bytes(self, pattern: SparsityPattern) -> Held:
        return Held(*native.held_bytes(pattern))


BACKENDS: tuple[Backend, ...] = (
    CpuBackend("jit", "generated", grad_values="avx512"),
    CpuBackend("avx512", "compact", grad_values="avx512"),
    CpuBackend("jit-avx2", "generated", grad_values="portable"),
    CpuBackend("portable", "compact", grad_values="portable"),
)
