"""Products of unstructured masks by expansion: exact expand and gather, and only kept entries where x is not finite."""

from __future__ import annotations

import pytest
import torch
from block_masks import Case, assert_near
from spdf_kernels import SparsityPattern
from spdf_kernels import triton as gpu

products = pytest.importorskip("spdf_kernels.triton.products") if gpu.missing() is None else None
SHAPES = ((96, 130), (1, 1), (7, 4099), (64, 64))


def random_mask(shape: tuple[int, int], density: float = 0.25) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < density


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_expand_and_gather_are_exact(
    shape: tuple[int, int], density: float, dtype: torch.dtype, device: torch.device
) -> None:
    mask = random_mask(shape, density).to(device)
    pattern = SparsityPattern.from_mask(mask)
    values = torch.randn(pattern.nnz).to(device, dtype)
    weight = products.expand(values, pattern)
    assert torch.equal(weight, torch.zeros(shape, dtype=dtype, device=device).masked_scatter(mask, values))
    dense = torch.randn(shape).to(device, dtype)
    assert torch.equal(products.gather(dense, pattern), dense[mask])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_three_products_are_those_of_the_dense_weight(dtype: torch.dtype, device: torch.device) -> None:
    case = Case(random_mask((96, 130)), 37, dtype, device)
    y = products.expanded_spmm(case.x, case.values, case.bias, case.pattern, transposed=False)
    assert_near(y, case.y + case.bias.double())
    assert_near(products.expanded_spmm(case.dy, case.values, None, case.pattern, transposed=True), case.dx)
    assert_near(products.expanded_sddmm(case.dy, case.x, case.pattern), case.dvalues)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("transposed", [False, True])
def test_an_input_that_is_not_finite_reaches_the_kept_entries_alone(
    value: float, transposed: bool, device: torch.device
) -> None:
    case = Case(random_mask((40, 50)), 70, torch.float32, device)
    operand = case.dy if transposed else case.x
    finite = case.dx if transposed else case.y
    mask = case.pattern.mask()
    operand[5, 2] = operand[66, 7] = value
    result = products.expanded_spmm(operand, case.values, None, case.pattern, transposed)
    for row, place in ((5, 2), (66, 7)):
        reached = mask[place] if transposed else mask[:, place]
        assert not torch.isfinite(result[row, reached]).any()
        part = operand[row].clone()
        part[place] = 0
        exact = part.double() @ (case.weight.double() if transposed else case.weight.double().t())
        assert_near(result[row, ~reached], exact[~reached])
    rest = [row for row in range(70) if row not in (5, 66)]
    assert_near(result[rest], finite[rest])
