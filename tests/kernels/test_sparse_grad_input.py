"""SpMM for dX: dx = dy W, on every back end of this machine, compared with float64 over kept entries."""

import pytest
import torch
from kernels_reference import BACKENDS, DTYPES, assert_close, grad_input, random_pattern, random_tensor
from spdf_kernels import SparsityPattern, sparse_linear

SHAPES = [
    (1, 1, 1),
    (3, 5, 2),
    (16, 31, 16),
    (64, 32, 17),
    (129, 63, 33),
    (769, 64, 15),
    (1537, 40, 17),
    (31, 257, 300),
]


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", request.param)
    return request.param


def gradient(dy: torch.Tensor, values: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    x = torch.zeros(dy.shape[0], pattern.shape[1], dtype=dy.dtype, requires_grad=True)
    return torch.autograd.grad(sparse_linear(x, values, pattern), x, dy)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.0, 0.03, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(("out", "in_features", "tokens"), SHAPES)
def test_matches_float64(out: int, in_features: int, tokens: int, density: float, dtype: torch.dtype) -> None:
    pattern = random_pattern(out, in_features, density, seed=out + in_features)
    dy = random_tensor(tokens, out, dtype=dtype, seed=1)
    values = random_tensor(pattern.nnz, dtype=dtype, seed=2)
    assert_close(gradient(dy, values, pattern), grad_input(dy, values, pattern), int(density * out) + 1)


@pytest.mark.parametrize("shape", [(70_000, 3), (3, 70_000)])
def test_huge(shape: tuple[int, int]) -> None:
    pattern = random_pattern(*shape, 0.1, seed=5)  # more rows or columns than 16 bits can index
    dy = random_tensor(5, shape[0], dtype=torch.float32, seed=1)
    values = random_tensor(pattern.nnz, dtype=torch.float32, seed=2)
    assert_close(gradient(dy, values, pattern), grad_input(dy, values, pattern), shape[0] // 10)


def test_empty_and_full_rows_and_columns() -> None:
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask[7], mask[33], mask[:, 11] = True, True, True
    mask[:, 20] = False
    pattern = SparsityPattern.from_mask(mask)
    dy = random_tensor(21, 40, dtype=torch.float32, seed=1)
    values = random_tensor(pattern.nnz, dtype=torch.float32, seed=2)
    assert_close(gradient(dy, values, pattern), grad_input(dy, values, pattern), 40)


def test_expanded_gradient() -> None:
    pattern = random_pattern(33, 65, 0.4, seed=0)
    values = random_tensor(pattern.nnz, dtype=torch.float32, seed=2)
    x = torch.zeros(2, 9, 65, requires_grad=True)
    sparse_linear(x, values, pattern).sum().backward()
    assert x.grad is not None
    assert_close(x.grad.view(18, 65), grad_input(torch.ones(18, 33), values, pattern), 33)


def test_transposed_gradient() -> None:
    pattern = random_pattern(33, 65, 0.4, seed=0)
    values = random_tensor(pattern.nnz, dtype=torch.float32, seed=2)
    dy = random_tensor(33, 21, dtype=torch.float32, seed=3).t()
    assert_close(gradient(dy, values, pattern), grad_input(dy, values, pattern), 33)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_non_finite_gradient_reaches_exactly_the_columns_that_its_row_keeps(bad: float, dtype: torch.dtype) -> None:
    pattern = random_pattern(40, 70, 0.3, seed=4)
    dy = random_tensor(19, 40, dtype=dtype, seed=1)
    dy[3, 17] = bad
    values = random_tensor(pattern.nnz, dtype=dtype, seed=2)
    expected = torch.ones(19, 70, dtype=torch.bool)
    expected[3] = ~pattern.mask()[17]
    assert torch.equal(torch.isfinite(gradient(dy, values, pattern)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_every_time(dtype: torch.dtype) -> None:
    pattern = random_pattern(200, 300, 0.25, seed=0)
    dy = random_tensor(500, 200, dtype=dtype, seed=1)
    values = random_tensor(pattern.nnz, dtype=dtype, seed=2)
    first = gradient(dy, values, pattern)
    for _ in range(5):
        assert torch.equal(gradient(dy, values, pattern), first)
