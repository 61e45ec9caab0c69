"""Block-sparse products in Triton equal dense ones, for masks, token counts and both forms of the kernels."""

from __future__ import annotations

import os

import pytest
import torch
from block_masks import KINDS, Case, assert_near, block_grid, block_mask
from spdf_kernels import triton as gpu
from spdf_kernels.triton.blocks import Blocks, blocks_of

products = pytest.importorskip("spdf_kernels.triton.products") if gpu.missing() is None else None
SIZES = (32,) if gpu.interpreted() else (128, 64)
TOKENS = (70,) if gpu.interpreted() or os.environ.get("PRETEND_CUDA") else (1, 1000, 4096)
DTYPES = (torch.float32, torch.bfloat16, torch.float16) if gpu.interpreted() else (torch.bfloat16, torch.float16)


def made(kind: str, size: int, tokens: int, dtype: torch.dtype, device: torch.device) -> tuple[Case, Blocks]:
    case = Case(block_mask(block_grid(kind, 3, 4), size), tokens, dtype, device)
    blocks = blocks_of(case.pattern, (size,))
    assert blocks is not None
    return case, blocks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_three_products_are_those_of_the_dense_weight(
    kind: str, size: int, tokens: int, dtype: torch.dtype, device: torch.device
) -> None:
    case, blocks = made(kind, size, tokens, dtype, device)
    shape = case.pattern.shape
    for boxes in (True, False):
        y = products.spmm(case.x, case.values, case.bias, blocks, shape, transposed=False, boxes=boxes)
        assert_near(y, case.y + case.bias.double())
        dx = products.spmm(case.dy, case.values, None, blocks, shape, transposed=True, boxes=boxes)
        assert_near(dx, case.dx)
        for shares in (1, 2):
            dvalues = products.sddmm(case.dy, case.x, blocks, case.pattern.nnz, boxes=boxes, shares=shares)
            assert_near(dvalues, case.dvalues)


@pytest.mark.parametrize("size", SIZES)
def test_an_odd_number_of_blocks_a_row_takes_one_block_a_program(size: int, device: torch.device) -> None:
    grid = torch.tensor([[True, False, True, True], [False, True, True, True]])
    case = Case(block_mask(grid, size), 40, torch.bfloat16, device)
    blocks = blocks_of(case.pattern, (size,))
    assert blocks is not None and blocks.per_row == 3
    assert_near(products.sddmm(case.dy, case.x, blocks, case.pattern.nnz), case.dvalues)


@pytest.mark.parametrize("size", SIZES)
def test_no_token_and_no_block_make_results_without_a_launch(size: int, device: torch.device) -> None:
    case, blocks = made("balanced", size, 0, torch.bfloat16, device)
    shape = case.pattern.shape
    assert products.spmm(case.x, case.values, None, blocks, shape, transposed=False).shape == (0, shape[0])
    assert not products.sddmm(case.dy, case.x, blocks, case.pattern.nnz).any()
    nothing = Case(torch.zeros(2 * size, size, dtype=torch.bool), 5, torch.bfloat16, device)
    empty = blocks_of(nothing.pattern, (size,))
    assert empty is not None and empty.count == 0
    y = products.spmm(nothing.x, nothing.values, nothing.bias, empty, nothing.pattern.shape, transposed=False)
    assert torch.equal(y, nothing.bias.expand_as(y))


@pytest.mark.parametrize("size", SIZES)
def test_values_that_begin_anywhere_take_pointers_instead_of_descriptors(size: int, device: torch.device) -> None:
    case, blocks = made("balanced", size, 33, torch.bfloat16, device)
    moved = torch.cat([case.values.new_zeros(1), case.values])[1:]
    assert moved.data_ptr() % products.BOX_ALIGNMENT != 0
    y = products.spmm(case.x, moved, None, blocks, case.pattern.shape, transposed=False)
    assert_near(y, case.y)


@pytest.mark.parametrize("size", SIZES)
def test_a_launch_gives_the_same_bits_each_time(size: int, device: torch.device) -> None:
    case, blocks = made("unbalanced", size, 70, torch.bfloat16, device)
    first, second = (
        (
            products.spmm(case.x, case.values, case.bias, blocks, case.pattern.shape, transposed=False),
            products.sddmm(case.dy, case.x, blocks, case.pattern.nnz, shares=2),
        )
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_an_infinite_input_reaches_the_rows_that_keep_its_block_and_no_other(size: int, device: torch.device) -> None:
    case, blocks = made("unbalanced", size, 20, torch.bfloat16, device)
    case.x[3, 0] = torch.inf
    y = products.spmm(case.x, case.values, None, blocks, case.pattern.shape, transposed=False)
    kept = case.pattern.mask()[:, 0]
    assert not torch.isfinite(y[3, kept]).any()
    assert torch.isfinite(y[3, ~kept]).all() and torch.isfinite(y[:3]).all() and torch.isfinite(y[4:]).all()
