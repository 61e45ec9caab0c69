"""SpMM forward: y = x W^T + bias, on every back end of this machine, compared with float64 over kept entries."""

import pytest
import torch
from kernels_reference import BACKENDS, DTYPES, assert_close, forward, random_pattern, random_tensor
from spdf_kernels import SparsityPattern, sparse_linear

SHAPES = [  # out, in, tokens
    (1, 1, 1),
    (5, 3, 2),
    (31, 16, 16),
    (32, 64, 17),
    (63, 129, 33),
    (64, 769, 15),
    (40, 1537, 17),
    (257, 31, 300),
]


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", request.param)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.0, 0.03, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(("out", "in_features", "tokens"), SHAPES)
def test_matches_float64(out: int, in_features: int, tokens: int, density: float, dtype: torch.dtype) -> None:
    pattern = random_pattern(out, in_features, density, seed=out + in_features)
    x = random_tensor(tokens, in_features, dtype=dtype, seed=1)
    values = random_tensor(pattern.nnz, dtype=dtype, seed=2)
    bias = random_tensor(out, dtype=dtype, seed=3)
    terms = int(density * in_features) + 1
    assert_close(sparse_linear(x, values, pattern), forward(x, values, pattern), terms)
    assert_close(sparse_linear(x, values, pattern, bias), forward(x, values, pattern) + bias.double(), terms)


def test_huge_k() -> None:
    pattern = random_pattern(3, 70_000, 0.1, seed=5)  # more columns than 16 bits can index
    x = random_tensor(5, 70_000, dtype=torch.float32, seed=1)
    values = random_tensor(pattern.nnz, dtype=torch.float32, seed=2)
    assert_close(sparse_linear(x, values, pattern), forward(x, values, pattern), 7000)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "in_features", "tokens"), [(256, 8, 2100), (250, 8, 2100), (1056, 1408, 520)])
def test_results_that_go_past_the_caches(out: int, in_features: int, tokens: int, dtype: torch.dtype) -> None:
    """1056 rows: generated code has two parts of blocks of 31, and the second begins inside a cache line."""
    pattern = random_pattern(out, in_features, 0.9, seed=1)
    x = random_tensor(tokens, in_features, dtype=dtype, seed=1)
    values = random_tensor(pattern.nnz, dtype=dtype, seed=2)
    bias = random_tensor(out, dtype=dtype, seed=3)
    exact = x.double() @ pattern.to_dense(values.double()).t() + bias.double()
    assert_close(sparse_linear(x, values, pattern, bias), exact, in_features)


def test_empty_and_full_rows_and_columns() -> None:
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask[7], mask[33], mask[:, 11] = True, True, True
    mask[:, 20] = False
    pattern = SparsityPattern.from_mask(mask)
    x = random_tensor(21, 50, dtype=torch.float32, seed=1)
    values = random_tensor(pattern.nnz, dtype=torch.float32, seed=2)
    assert_close(sparse_linear(x, values, pattern), forward(x, values, pattern), 50)


@pytest.mark.parametrize("shape", [(0, 24), (3, 0, 24), (2, 3, 4, 24), (24,)])
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    pattern = random_pattern(10, 24, 0.5, seed=0)
    x = random_tensor(*shape, dtype=torch.float32, seed=1)
    values = random_tensor(pattern.nnz, dtype=torch.float32, seed=2)
    y = sparse_linear(x, values, pattern)
    assert y.shape == (*shape[:-1], 10)
    assert_close(y.view(-1, 10), forward(x.reshape(-1, 24), values, pattern), 24)


@pytest.mark.parametrize(("out", "in_features"), [(0, 5), (5, 0), (0, 0)])
def test_weight_without_entries(out: int, in_features: int) -> None:
    pattern = SparsityPattern.from_mask(torch.zeros(out, in_features, dtype=torch.bool))
    bias = torch.ones(out)
    y = sparse_linear(torch.zeros(4, in_features), torch.zeros(0), pattern, bias)
    assert torch.equal(y, torch.ones(4, out))


def test_non_contiguous_operands() -> None:
    pattern = random_pattern(12, 20, 0.5, seed=0)
    x = random_tensor(20, 33, dtype=torch.float32, seed=1).t()
    values = random_tensor(2 * pattern.nnz, dtype=torch.float32, seed=2)[::2]
    assert not x.is_contiguous() and not values.is_contiguous()
    assert_close(sparse_linear(x, values, pattern), forward(x, values, pattern), 20)


def test_values_at_any_address() -> None:
    pattern = random_pattern(64, 64, 0.5, seed=0)
    flat = random_tensor(pattern.nnz + 1, dtype=torch.float32, seed=2)  # as in an optimizer's flat buffer
    x = random_tensor(16, 64, dtype=torch.float32, seed=1)
    assert_close(sparse_linear(x, flat[1:], pattern), forward(x, flat[1:], pattern), 64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_non_finite_input_reaches_exactly_the_rows_that_keep_it(bad: float, dtype: torch.dtype) -> None:
    pattern = random_pattern(70, 40, 0.3, seed=4)
    x = random_tensor(19, 40, dtype=dtype, seed=1)
    x[3, 17] = bad
    values = random_tensor(pattern.nnz, dtype=dtype, seed=2)
    y = sparse_linear(x, values, pattern)
    expected = torch.ones(19, 70, dtype=torch.bool)
    expected[3] = ~pattern.mask()[:, 17]
    assert torch.equal(torch.isfinite(y), expected)
    exact = forward(x, values, pattern)
    torch.testing.assert_close(y[~expected].double(), exact[~expected], equal_nan=True)
    assert_close(y[expected], exact[expected], 40)


def test_non_finite_value_reaches_its_row_alone() -> None:
    pattern = random_pattern(35, 40, 0.3, seed=4)
    values = random_tensor(pattern.nnz, dtype=torch.float32, seed=2)
    values[50] = float("nan")
    row = int(pattern.mask().nonzero()[50, 0])
    y = sparse_linear(random_tensor(5, 40, dtype=torch.float32, seed=1), values, pattern)
    assert bool(y[:, row].isnan().all())
    assert bool(torch.isfinite(y[:, torch.arange(35) != row]).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_every_time(dtype: torch.dtype) -> None:
    pattern = random_pattern(200, 300, 0.25, seed=0)
    x = random_tensor(500, 300, dtype=dtype, seed=1)
    values = random_tensor(pattern.nnz, dtype=dtype, seed=2)
    first = sparse_linear(x, values, pattern)
    for _ in range(5):
        assert torch.equal(sparse_linear(x, values, pattern), first)
