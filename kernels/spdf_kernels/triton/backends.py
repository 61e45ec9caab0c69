"""The two back ends for NVIDIA GPUs. Legend: T tokens, O out, I in, K kept entries."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from spdf_kernels.backends import Backend, Held, Routes
from spdf_kernels.pattern import SparsityPattern
from spdf_kernels.triton.availability import current, interpreted, missing
from spdf_kernels.triton.blocks import Blocks, blocks_of, why_no_blocks
from spdf_kernels.triton.trial import trial_of_blocks, trial_of_expansion


def _products() -> ModuleType:
    from spdf_kernels.triton import products  # imports Triton

    return products


def _wrong_device(device: torch.device) -> str | None:
    if device.type == ("cpu" if interpreted() else "cuda"):
        return None
    return f"Triton's kernels run on CUDA devices, not on {device}"


class BlockBackend:
    """`triton-block`: bfloat16 and float16, masks of whole blocks of 128 or 64. Pruned blocks take no time."""

    name = "triton-block"
    path = "blocks"
    skips_work = True

    def available(self) -> str | None:
        return missing()

    def supports(self, device: torch.device, dtype: torch.dtype, pattern: SparsityPattern) -> str | None:
        if (reason := _wrong_device(device)) is not None:
            return reason
        if dtype not in (torch.bfloat16, torch.float16):
            return f"the back end {self.name} multiplies bfloat16 and float16 on tensor cores, not {dtype}"
        blocks = blocks_of(pattern)
        if blocks is None:
            return why_no_blocks(pattern)
        return trial_of_blocks(device, blocks.size, blocks.per_row is not None)

    def prepare(self, pattern: SparsityPattern, dtype: torch.dtype) -> Routes:
        _blocks(pattern)
        return Routes(self.name, self.name, self.name)

    def spmm(self, x_TI: Tensor, values_K: Tensor, bias_O: Tensor | None, pattern: SparsityPattern) -> Tensor:
        bias = None if bias_O is None else bias_O.contiguous()
        x, values, blocks = x_TI.contiguous(), values_K.contiguous(), _blocks(pattern)
        with current(pattern.device):
            y: Tensor = _products().spmm(x, values, bias, blocks, pattern.shape, transposed=False)
        return y

    def spmm_t(self, dy_TO: Tensor, values_K: Tensor, pattern: SparsityPattern) -> Tensor:
        dy, values, blocks = dy_TO.contiguous(), values_K.contiguous(), _blocks(pattern)
        with current(pattern.device):
            dx: Tensor = _products().spmm(dy, values, None, blocks, pattern.shape, transposed=True)
        return dx

    def sddmm(self, dy_TO: Tensor, x_TI: Tensor, pattern: SparsityPattern) -> Tensor:
        with current(pattern.device):
            dvalues: Tensor = _products().sddmm(dy_TO.contiguous(), x_TI.contiguous(), _blocks(pattern), pattern.nnz)
        return dvalues

    def bytes(self, pattern: SparsityPattern) -> Held:
        return Held(_blocks(pattern).index_bytes, 0)


def _blocks(pattern: SparsityPattern) -> Blocks:
    blocks = blocks_of(pattern)
    if blocks is None:
        raise RuntimeError(why_no_blocks(pattern))
    return blocks


class ExpandBackend:
    """`triton-expand`: any mask in float32, bfloat16 and float16, through cuBLAS. It stores no dense weight."""

    name = "triton-expand"
    path = "expanded"
    skips_work = False

    def available(self) -> str | None:
        return missing()

    def supports(self, device: torch.device, dtype: torch.dtype, pattern: SparsityPattern) -> str | None:
        if (reason := _wrong_device(device)) is not None:
            return reason
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"the back end {self.name} multiplies float32, bfloat16 and float16, not {dtype}"
        return trial_of_expansion(device)

    def prepare(self, pattern: SparsityPattern, dtype: torch.dtype) -> Routes:
        _products().kept_before(pattern)
        return Routes(self.name, self.name, self.name)

    def spmm(self, x_TI: Tensor, values_K: Tensor, bias_O: Tensor | None, pattern: SparsityPattern) -> Tensor:
        bias = None if bias_O is None else bias_O.contiguous()
        x, values = x_TI.contiguous(), values_K.contiguous()
        with current(pattern.device):
            y: Tensor = _products().expanded_spmm(x, values, bias, pattern, transposed=False)
        return y

    def spmm_t(self, dy_TO: Tensor, values_K: Tensor, pattern: SparsityPattern) -> Tensor:
        dy, values = dy_TO.contiguous(), values_K.contiguous()
        with current(pattern.device):
            dx: Tensor = _products().expanded_spmm(dy, values, None, pattern, transposed=True)
        return dx

    def sddmm(self, dy_TO: Tensor, x_TI: Tensor, pattern: SparsityPattern) -> Tensor:
        with current(pattern.device):
            dvalues: Tensor = _products().expanded_sddmm(dy_TO.contiguous(), x_TI.contiguous(), pattern)
        return dvalues

    def bytes(self, pattern: SparsityPattern) -> Held:
        before = _products().kept_before(pattern)
        return Held(before.numel() * before.element_size(), 0)


BACKENDS: tuple[Backend, ...] = (BlockBackend(), ExpandBackend())
