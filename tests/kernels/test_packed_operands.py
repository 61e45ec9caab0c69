"""Products on packed operands equal those on row-major operands, which `bench gemm` compares."""

import pytest
import torch
from kernels_reference import BACKENDS, random_pattern, random_tensor
from spdf_kernels import describe, native, set_code_budget_mb, sparse_linear

GENERATED = [name for name in BACKENDS if name.startswith("jit")]


@pytest.mark.parametrize(("tokens", "features"), [(1, 1), (16, 3), (17, 4), (40, 33)])
def test_packing_and_back(tokens: int, features: int) -> None:
    x = random_tensor(tokens, features, dtype=torch.float32, seed=0)
    tiles = native.pack(x)
    assert tiles.shape == ((tokens + 15) // 16, features | 1, 16)
    assert tiles[-1, features - 1, (tokens - 1) % 16] == x[-1, -1]
    assert torch.equal(native.unpack(tiles, tokens, features), x)


@pytest.mark.parametrize("backend", GENERATED)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("out", "in_features", "tokens", "density"),
    [(1, 1, 1, 1.0), (33, 64, 17, 0.4), (64, 33, 100, 0.1), (40, 1537, 70, 0.2), (600, 96, 700, 0.5)],
)
def test_same_bits_as_row_major(
    out: int,
    in_features: int,
    tokens: int,
    density: float,
    transposed: bool,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", backend)
    pattern = random_pattern(out, in_features, density, seed=0)
    values = random_tensor(pattern.nnz, dtype=torch.float32, seed=1)
    operand = random_tensor(tokens, out if transposed else in_features, dtype=torch.float32, seed=2)
    tiles = native.spmm_packed(native.pack(operand), values, pattern, backend, transposed)
    assert tiles is not None
    features = in_features if transposed else out
    expected = native.spmm(operand, values, None, pattern, backend, transposed)
    assert torch.equal(native.unpack(tiles, tokens, features), expected)
    if not transposed:
        assert torch.equal(expected, sparse_linear(operand, values, pattern))


@pytest.mark.parametrize("backend", GENERATED)
def test_without_code_there_is_no_product(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", backend)
    tiles = native.pack(torch.ones(20, 32))
    nothing = random_pattern(32, 32, 0.0, seed=0)
    assert native.spmm_packed(tiles, torch.empty(0), nothing, backend, transposed=False) is None
    set_code_budget_mb(0)
    try:
        beyond = random_pattern(32, 32, 0.5, seed=0)
        describe(beyond)
        assert native.spmm_packed(tiles, torch.ones(beyond.nnz), beyond, backend, transposed=False) is None
    finally:
        set_code_budget_mb(2**20)
