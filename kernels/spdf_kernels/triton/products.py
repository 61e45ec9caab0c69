"""The three products of a block-sparse weight, and those of any mask by expansion, launched on the current device.

Legend: T tokens, O out, I in, K kept entries. Operands are contiguous, bfloat16 or float32 (summed in float32).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from spdf_kernels.pattern import SparsityPattern
from spdf_kernels.triton import interpreted, kernels
from spdf_kernels.triton.blocks import Blocks
from spdf_kernels.triton.configurations import (
    CHUNK,
    GROUP,
    INTERPRETER,
    Configuration,
    Tile,
    configuration,
    shares_of_tokens,
)

if interpreted():
    from spdf_kernels.triton.interpreter import widen_bfloat16_dot

    widen_bfloat16_dot()

BOX_ALIGNMENT = 16
"""Required alignment of a descriptor's tensor, bytes."""


class Chip(NamedTuple):
    """The properties of a GPU that launches depend on."""

    capability: int
    """90 for compute capability 9.0."""
    processors: int


@functools.cache
def chip(device: torch.device) -> Chip:
    """The chip of a device; the interpreter counts as a chip with two multiprocessors."""
    if interpreted():
        return Chip(90, 2)
    properties = torch.cuda.get_device_properties(device)
    return Chip(10 * properties.major + properties.minor, properties.multi_processor_count)


def tiles(device: torch.device, block: int) -> Configuration:
    """The configuration for a device and a block edge."""
    return INTERPRETER if interpreted() else configuration(chip(device).capability, block)


def _boxes_fit(*tensors: Tensor) -> bool:
    """Whether all tensors are aligned for descriptors. Values inside ZeRO's flat buffers may have any offset."""
    return all(tensor.data_ptr() % BOX_ALIGNMENT == 0 for tensor in tensors)


def spmm(
    operand: Tensor,
    values: Tensor,
    bias: Tensor | None,
    blocks: Blocks,
    shape: tuple[int, int],
    transposed: bool,
    setting: Configuration | None = None,
    boxes: bool = True,
) -> Tensor:
    """operand [T, I] W^T + bias -> [T, O]; transposed: operand [T, O] W -> [T, I].

    Masks with the same number of blocks in each block row use tensor descriptors if the chip has them and `boxes` is
    true.
    """
    setting = setting or tiles(operand.device, blocks.size)
    features = shape[1] if transposed else shape[0]
    T, B = operand.shape[0], blocks.size
    y = operand.new_empty(T, features)
    if T == 0:
        return y
    if blocks.count == 0:
        return y.zero_() if bias is None else y.copy_(bias.expand_as(y))
    start = blocks.column_start if transposed else blocks.row_start
    boxed = setting.spmm_box_T if transposed else setting.spmm_box
    if boxes and boxed is not None and blocks.per_row is not None and _boxes_fit(operand, values):
        tile, BK = boxed, min(boxed.step, B)
        matrix = values.view(shape[0], blocks.per_row * B)
        kernels.spmm_box[(-(-T // tile.tokens) * (features // B),)](
            TensorDescriptor.from_tensor(operand, [tile.tokens, BK]),
            TensorDescriptor.from_tensor(matrix, [BK, B] if transposed else [B, BK]),
            y,
            bias,
            start,
            blocks.place_and_row if transposed else blocks.column,
            T,
            features,
            B=B,
            BT=tile.tokens,
            BK=BK,
            GROUP=GROUP,
            TRANSPOSED=transposed,
            BIAS=bias is not None,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return y
    tile = setting.spmm
    kernels.spmm[(-(-T // tile.tokens) * (features // B),)](
        operand,
        values,
        y,
        bias,
        start,
        blocks.row_T if transposed else blocks.column,
        blocks.base_T if transposed else blocks.base,
        blocks.kept_T if transposed else blocks.kept,
        T,
        operand.shape[1],
        features,
        B=B,
        BT=tile.tokens,
        BK=min(tile.step, B),
        GROUP=GROUP,
        TRANSPOSED=transposed,
        BIAS=bias is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return y


def sddmm(
    dy: Tensor,
    x: Tensor,
    blocks: Blocks,
    nnz: int,
    setting: Configuration | None = None,
    boxes: bool = True,
    shares: int | None = None,
) -> Tensor:
    """Gradient of the values [K]: dy [T, O] transposed times x [T, I] at the kept blocks.

    If the blocks do not fill the chip, the tokens are divided into `shares` parts, which are summed in float32. The
    number of parts depends on the shapes only, so the bits are the same in every run.
    """
    setting = setting or tiles(dy.device, blocks.size)
    T, B = dy.shape[0], blocks.size
    if T == 0 or blocks.count == 0:
        return x.new_zeros(nnz)
    boxed = setting.sddmm_box if boxes and blocks.per_row is not None and _boxes_fit(dy, x) else None
    tile: Tile = boxed or setting.sddmm
    G = tile.group if blocks.per_row is not None and blocks.per_row % tile.group == 0 else 1
    programs = blocks.count // G if boxed else blocks.count
    shares = shares or shares_of_tokens(programs, -(-T // tile.tokens), chip(dy.device).processors)
    out = torch.empty(shares, nnz, dtype=x.dtype if shares == 1 else torch.float32, device=x.device)
    if boxed and blocks.per_row is not None:
        kernels.sddmm_box[(programs, shares)](
            TensorDescriptor.from_tensor(dy, [tile.tokens, B]),
            TensorDescriptor.from_tensor(x, [tile.tokens, B]),
            out,
            blocks.column,
            T,
            dy.shape[1],
            blocks.per_row,
            shares,
            B=B,
            G=G,
            BT=tile.tokens,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    else:
        kernels.sddmm[(programs, shares)](
            dy,
            x,
            out,
            blocks.row,
            blocks.column,
            blocks.base,
            blocks.kept,
            T,
            dy.shape[1],
            x.shape[1],
            nnz,
            shares,
            B=B,
            BT=tile.tokens,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out[0] if shares == 1 else out.sum(0).to(x.dtype)


def kept_before(pattern: SparsityPattern) -> Tensor:
    """Kept entries before each CHUNK of the flattened mask, int64; computed once and stored in the pattern."""
    before: Tensor | None = pattern.prepared.get("triton_before")
    if before is None:
        flat = pattern.mask().view(-1)
        counts = torch.nn.functional.pad(flat, (0, -flat.numel() % CHUNK)).view(-1, CHUNK).sum(1)
        before = counts.cumsum(0) - counts
        pattern.prepared["triton_before"] = before
    return before


def expand(values: Tensor, pattern: SparsityPattern) -> Tensor:
    """The dense weight [O, I]: `values` at the kept entries, zero elsewhere."""
    weight = values.new_empty(pattern.shape)
    before = kept_before(pattern)
    if weight.numel():
        kernels.expand[(before.shape[0],)](
            values, pattern.bits, before, weight, weight.numel(), CHUNK=CHUNK, num_warps=8
        )
    return weight


def gather(dense: Tensor, pattern: SparsityPattern) -> Tensor:
    """The entries [K] of a contiguous dense matrix [O, I] that the mask keeps, in row-major order."""
    values = dense.new_empty(pattern.nnz)
    before = kept_before(pattern)
    if dense.numel():
        kernels.gather[(before.shape[0],)](dense, pattern.bits, before, values, dense.numel(), CHUNK=CHUNK, num_warps=8)
    return values


def only_kept_entries(
    product: Tensor, operand: Tensor, weight: Tensor, bias: Tensor | None, pattern: SparsityPattern, transposed: bool
) -> None:
    """Compute the rows of `product` with a non-finite operand again, in place, without a synchronisation.

    The dense product gave 0 * Inf = NaN in all their features.
    """
    T, features = product.shape
    if T == 0 or features == 0:
        return
    inputs = operand.shape[1]
    stride_f, stride_k = (1, features) if transposed else (inputs, 1)
    kernels.only_kept_entries[(-(-T // 64),)](
        operand,
        weight,
        pattern.bits,
        bias,
        product,
        T,
        features,
        inputs,
        stride_f,
        stride_k,
        BT=64,
        BF=16,
        BK=8,
        BIAS=bias is not None,
        num_warps=4,
    )


def expanded_spmm(
    operand: Tensor, values: Tensor, bias: Tensor | None, pattern: SparsityPattern, transposed: bool
) -> Tensor:
    """The product of `spmm` for any mask: cuBLAS multiplies a dense weight that exists inside this call only."""
    weight = expand(values, pattern)
    product = operand @ weight if transposed else torch.nn.functional.linear(operand, weight, bias)
    only_kept_entries(product, operand, weight, bias, pattern, transposed)
    return product


def expanded_sddmm(dy: Tensor, x: Tensor, pattern: SparsityPattern) -> Tensor:
    """The product of `sddmm` for any mask: the kept entries of cuBLAS's dense gradient."""
    return gather(dy.t() @ x, pattern)
