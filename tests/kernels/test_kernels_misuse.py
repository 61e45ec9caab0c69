"""Wrong arguments of sparse_linear and of the back-end choice: a clear error, never a crash."""

import pytest
import torch
from kernels_reference import BACKENDS, random_pattern
from spdf_kernels import SparsityPattern, available_backends, describe, set_code_budget_mb, sparse_linear

PATTERN = random_pattern(6, 8, 0.5, seed=0)
X, VALUES, BIAS = torch.zeros(3, 8), torch.zeros(PATTERN.nnz), torch.zeros(6)


@pytest.mark.parametrize(
    ("x", "values", "bias", "error", "message"),
    [
        (torch.zeros(3, 7), VALUES, BIAS, ValueError, "x must have shape"),
        (torch.zeros(()), VALUES, BIAS, ValueError, "x must have shape"),
        (X, torch.zeros(PATTERN.nnz - 1), BIAS, ValueError, "values must have shape"),
        (X, torch.zeros(PATTERN.nnz, 1), BIAS, ValueError, "values must have shape"),
        (X, VALUES, torch.zeros(5), ValueError, "bias must have shape"),
        (X, VALUES, torch.zeros(1, 6), ValueError, "bias must have shape"),
        (X.int(), VALUES.int(), None, TypeError, "operands must be float32, bfloat16, float16 or float64"),
        (X.cfloat(), VALUES.cfloat(), None, TypeError, "operands must be float32, bfloat16, float16 or float64"),
        (X.bfloat16(), VALUES, None, TypeError, "share a dtype"),
        (X, VALUES, BIAS.bfloat16(), TypeError, "share a dtype"),
        (X.to("meta"), VALUES, None, ValueError, "x is on meta"),
        (X, VALUES.to("meta"), None, ValueError, "values is on meta"),
        ([[0.0] * 8], VALUES, None, TypeError, "x must be a torch tensor"),
        (X, None, None, TypeError, "values must be a torch tensor"),
    ],
)
def test_wrong_tensors(x: object, values: object, bias: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sparse_linear(x, values, PATTERN, bias)  # type: ignore[arg-type]


DY, K = torch.zeros(3, 6), PATTERN.nnz


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("operator", "operands", "error"),
    [
        ("spmm", (torch.zeros(3, 7), VALUES, None, 6), ValueError),
        ("spmm", (torch.zeros(8), VALUES, None, 6), ValueError),
        ("spmm", (torch.zeros(3, 8, 1), VALUES, None, 6), ValueError),
        ("spmm", (X, VALUES[1:], None, 6), ValueError),
        ("spmm", (X, VALUES, BIAS[1:], 6), ValueError),
        ("spmm", (X, VALUES, None, 7), ValueError),
        ("spmm", (X.int(), VALUES.int(), None, 6), TypeError),
        ("spmm", (X.bfloat16(), VALUES, None, 6), TypeError),
        ("spmm", (X, VALUES, BIAS.bfloat16(), 6), TypeError),
        ("spmm_transposed", (X, VALUES, 8), ValueError),
        ("spmm_transposed", (DY, VALUES[1:], 8), ValueError),
        ("spmm_transposed", (DY, VALUES, 9), ValueError),
        ("spmm_transposed", (DY, VALUES.bfloat16(), 8), TypeError),
        ("sddmm", (DY[1:], X, K), ValueError),
        ("sddmm", (DY, X[:, :1], K), ValueError),
        ("sddmm", (DY[:, 1:], X, K), ValueError),
        ("sddmm", (torch.zeros(()), torch.zeros(()), K), ValueError),
        ("sddmm", (DY, X, K + 1), ValueError),
        ("sddmm", (DY.bfloat16(), X, K), TypeError),
    ],
)
def test_operators_refuse_what_their_kernels_would_read_beyond(
    operator: str,
    operands: tuple[object, ...],
    error: type[Exception],
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", backend)
    with pytest.raises(error, match="operands"):
        getattr(torch.ops.spdf, operator)(*operands[:-1], PATTERN.handle, operands[-1])


def test_mask_instead_of_a_pattern() -> None:
    with pytest.raises(TypeError, match="must be a SparsityPattern"):
        sparse_linear(X, VALUES, PATTERN.mask())  # type: ignore[arg-type]


def test_meta_mask() -> None:
    with pytest.raises(ValueError, match="meta"):
        SparsityPattern.from_mask(torch.ones(2, 2, dtype=torch.bool, device="meta"))


def test_unknown_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", "avx9")
    with pytest.raises(ValueError, match=r"SPDF_KERNELS_BACKEND=avx9.*known are .*jit, .*avx512, .*portable, torch"):
        sparse_linear(X, VALUES, PATTERN)


def test_backend_that_this_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spdf_kernels.native.missing", lambda name: "no such instructions")
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", "avx512")
    assert available_backends()["avx512"] == "no such instructions"
    with pytest.raises(ValueError, match="avx512 is not available: no such instructions"):
        sparse_linear(X, VALUES, PATTERN)


@pytest.mark.parametrize("budget", [-1, -0.5, float("nan"), "8", None])
def test_wrong_code_budget(budget: float) -> None:
    with pytest.raises(ValueError, match="negative"):
        set_code_budget_mb(budget)


@pytest.mark.parametrize(
    ("megabytes", "size"), [(0.5, 2**19), (2**42, 2**62), (2**43, 2**62), (10**30, 2**62), (float("inf"), 2**62)]
)
def test_code_budgets_are_whole_bytes_that_fit_64_bits(
    megabytes: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr("spdf_kernels.native.set_code_budget", given.append)
    set_code_budget_mb(megabytes)
    assert given == [size] and isinstance(given[0], int)


@pytest.mark.parametrize("backend", BACKENDS)
def test_description_of_another_dtype(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", backend)
    with pytest.raises(TypeError, match="float32, bfloat16, float16 or float64, not"):
        describe(PATTERN, torch.int32)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "torch"])
def test_a_forced_backend_that_lacks_a_dtype(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", backend)
    with pytest.raises(ValueError, match=f"SPDF_KERNELS_BACKEND={backend}: .* not torch.float64"):
        sparse_linear(X.double(), VALUES.double(), PATTERN)
