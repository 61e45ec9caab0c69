"""SparsityPattern: from a mask and back, compress and expand, read-only."""

import copy

import pytest
import torch
from kernels_reference import random_pattern
from spdf_kernels import SparsityPattern


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (1, 1), (3, 5), (8, 8), (17, 129)])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_mask_comes_back(shape: tuple[int, int], density: float) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
    pattern = SparsityPattern.from_mask(mask)
    assert torch.equal(pattern.mask(), mask)
    assert pattern.shape == shape and pattern.nnz == int(mask.sum())
    assert pattern.density == (int(mask.sum()) / mask.numel() if mask.numel() else 0.0)


def test_later_changes_of_the_mask_do_not_reach_it() -> None:
    mask = torch.ones(4, 4, dtype=torch.bool)
    pattern = SparsityPattern.from_mask(mask)
    mask.zero_()
    pattern.mask().zero_()
    assert bool(pattern.mask().all()) and pattern.nnz == 16


def test_values_are_in_row_major_order() -> None:
    pattern = random_pattern(9, 11, 0.5, seed=1)
    weight = torch.arange(99.0).view(9, 11)
    values = pattern.compress(weight)
    assert torch.equal(values, weight[pattern.mask()])
    assert torch.equal(pattern.to_dense(values), weight * pattern.mask())


def test_compress_and_to_dense_are_differentiable() -> None:
    pattern = random_pattern(9, 11, 0.5, seed=1)
    weight = torch.randn(9, 11, requires_grad=True)
    pattern.to_dense(pattern.compress(weight)).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, pattern.mask().float())


def test_read_only() -> None:
    pattern = random_pattern(4, 4, 0.5, seed=1)
    with pytest.raises(AttributeError, match="read-only"):
        pattern.nnz = 3  # type: ignore[misc]
    with pytest.raises(TypeError, match="from_mask"):
        SparsityPattern()


def test_a_copied_layer_shares_it() -> None:
    pattern = random_pattern(4, 4, 0.5, seed=1)
    assert copy.deepcopy(pattern) is pattern


@pytest.mark.parametrize("mask", [[[True]], torch.ones(2, 2), torch.ones(2, 2, dtype=torch.uint8), None])
def test_mask_of_another_type(mask: object) -> None:
    with pytest.raises(TypeError, match="mask must"):
        SparsityPattern.from_mask(mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (4,), (2, 2, 2)])
def test_mask_of_another_rank(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        SparsityPattern.from_mask(torch.ones(shape, dtype=torch.bool))


def test_tensors_of_another_shape() -> None:
    pattern = random_pattern(4, 6, 0.5, seed=1)
    with pytest.raises(ValueError, match="weight must have shape"):
        pattern.compress(torch.zeros(6, 4))
    with pytest.raises(ValueError, match="values must have shape"):
        pattern.to_dense(torch.zeros(pattern.nnz + 1))
    with pytest.raises(TypeError, match="values must be a torch tensor"):
        pattern.to_dense([1.0])  # type: ignore[arg-type]
