"""Choice and description of the back end, the budget of generated code, threads, the dense product."""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from kernels_reference import BACKENDS, forward, grad_input, random_pattern, random_tensor
from spdf_kernels import (
    available_backends,
    dense,
    dense_linear,
    describe,
    native,
    reference,
    set_code_budget_mb,
    slow_precision,
    sparse_linear,
)
from spdf_kernels.choose import products
from torch.utils._python_dispatch import TorchDispatchMode

NATIVE = [name for name in BACKENDS if name != "torch"]
GENERATED = [name for name in BACKENDS if name.startswith("jit")]


def linux_release() -> tuple[int, ...]:
    """Version of the running Linux kernel, such as (6, 3); (0,) on other systems."""
    return tuple(int(n) for n in re.findall(r"\d+", platform.release())[:2]) if sys.platform == "linux" else (0,)


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_every_backend_is_there_or_says_why_not() -> None:
    backends = available_backends()
    assert list(backends) == ["triton-block", "triton-expand", "jit", "avx512", "jit-avx2", "portable", "torch"]
    assert backends["torch"] is None
    assert all(reason is None or len(reason) > 10 for reason in backends.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_description_names_the_forced_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", backend)
    pattern = random_pattern(128, 256, 0.25, seed=0)
    description = describe(pattern)
    assert description.forward == description.grad_input == backend
    assert description.index_bytes >= pattern.nnz * 2
    assert (description.code_bytes > 0) == backend.startswith("jit")


@pytest.mark.parametrize(
    ("backend", "share"), [("avx512", 0.38), ("portable", 0.38), ("jit", 0.60), ("jit-avx2", 1.05)]
)
def test_state_at_75_percent_sparsity(backend: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend not in BACKENDS:
        pytest.skip(str(available_backends()[backend]))
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", backend)
    pattern = random_pattern(768, 768, 0.25, seed=0)
    description = describe(pattern)
    dense = 16 * 768 * 768  # parameter, gradient and two moments of four bytes each
    assert 16 * pattern.nnz + description.index_bytes + description.code_bytes <= share * dense


@pytest.mark.parametrize(("backend", "rows"), [("jit", "avx512"), ("jit-avx2", "portable")])
def test_beyond_the_code_budget_compressed_rows_take_over(
    backend: str, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend not in BACKENDS:
        pytest.skip(str(available_backends()[backend]))
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", backend)
    x = random_tensor(20, 256, dtype=torch.float32, seed=1)
    within = random_pattern(128, 256, 0.25, seed=0)
    assert describe(within).forward == backend
    set_code_budget_mb(0)
    try:
        beyond = random_pattern(128, 256, 0.25, seed=0)
        description = describe(beyond)
    finally:
        set_code_budget_mb(2**20)
    assert description.forward == description.grad_input == rows and description.code_bytes == 0
    assert describe(within).forward == backend
    values = random_tensor(within.nnz, dtype=torch.float32, seed=2)
    torch.testing.assert_close(sparse_linear(x, values, within), sparse_linear(x, values, beyond))


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("tokens", [7, 70, 300])  # the first has too few to divide, so that rows are divided
def test_bits_do_not_depend_on_threads(backend: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", backend)
    pattern = random_pattern(600, 900, 0.5, seed=0)  # enough work for several threads
    x = random_tensor(tokens, 900, dtype=torch.float32, seed=1).requires_grad_()
    values = random_tensor(pattern.nnz, dtype=torch.float32, seed=2).requires_grad_()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        y = sparse_linear(x, values, pattern)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, values))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("backend", GENERATED)
@pytest.mark.skipif(
    linux_release() < (6, 3), reason="PR_SET_MDWE, which makes such a host of a process, came with Linux 6.3"
)
def test_code_in_a_file_in_memory_keeps_no_descriptor(backend: str) -> None:
    """Code in a process on a host that forbids execution of written memory. Descriptors must not leak."""
    program = """
import ctypes, os, torch
from spdf_kernels import SparsityPattern, describe, sparse_linear
assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
before = len(os.listdir("/proc/self/fd"))
pattern = SparsityPattern.from_mask(torch.ones(40, 50, dtype=torch.bool))
assert describe(pattern).forward == os.environ["SPDF_KERNELS_BACKEND"]
y = sparse_linear(torch.ones(3, 50), torch.ones(2000), pattern)
assert torch.equal(y, torch.full((3, 40), 50.0))
print(len(os.listdir("/proc/self/fd")) - before)
"""
    environment = os.environ | {"SPDF_KERNELS_BACKEND": backend}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (run.stdout, run.returncode) == ("0\n", 0), run.stderr


@pytest.mark.skipif(not NATIVE, reason="no native back end")
def test_threads_that_use_a_pattern_for_the_first_time_share_one_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    library, made = native._loaded(), []

    class SlowLibrary:
        spdf_pattern_free = library.spdf_pattern_free

        def spdf_pattern_new(self, *arguments: int) -> int:
            time.sleep(0.1)
            made.append(library.spdf_pattern_new(*arguments))
            return made[-1]

    monkeypatch.setattr(native, "_loaded", SlowLibrary)
    pattern = random_pattern(20, 30, 0.5, seed=0)
    with ThreadPoolExecutor(3) as pool:
        structures = list(pool.map(native._structure, [pattern] * 3))
    assert structures == 3 * made


class CountOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_reference_takes_all_non_finite_tokens_at_once(transposed: bool) -> None:
    """A step with values that are not finite must not take a hundred times as long as another."""
    pattern = random_pattern(40, 40, 0.3, seed=4)
    values = random_tensor(pattern.nnz, dtype=torch.float32, seed=2)
    values[7] = 0.0  # times Inf gives NaN at kept entries
    pattern.flat_index()
    operations = []
    for tokens in (2, 30):
        x = random_tensor(32, 40, dtype=torch.float32, seed=1)
        x[:tokens, 17], x[:tokens, 3] = float("inf"), float("nan")
        with CountOperations() as counter:
            y = (
                reference.spmm_transposed(x, values, pattern)
                if transposed
                else reference.spmm(x, values, None, pattern)
            )
        operations.append(counter.count)
        exact = (grad_input if transposed else forward)(x, values, pattern)
        torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert operations[1] == operations[0]


@pytest.mark.parametrize("shape", [(17,), (0, 17), (3, 17), (40, 17), (3, 9, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dense_linear(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias = (
        random_tensor(*size, dtype=dtype, seed=seed).requires_grad_()
        for seed, size in enumerate([shape, (11, 17), (11,)])
    )
    ours, theirs = dense_linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(y.sum(), (x, weight, bias)) for y in (ours, theirs)]
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right)


def test_dense_linear_with_wrong_shapes_raises_like_torch() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        dense_linear(torch.zeros(40, 17), torch.zeros(11, 16))


@pytest.mark.parametrize(
    "bias",
    [torch.arange(12.0)[::2], torch.arange(12.0)[6:], torch.ones(1).expand(6), torch.tensor(2.0), torch.ones(1)]
    + [torch.arange(6.0).view(1, 6), torch.arange(120.0).view(20, 6)],
    ids=["strided", "offset", "expanded", "0-d", "one", "row", "matrix"],
)
def test_dense_linear_with_a_bias_that_is_not_dense(bias: torch.Tensor) -> None:
    x, weight = (random_tensor(*shape, dtype=torch.float32, seed=0) for shape in [(20, 4), (6, 4)])
    torch.testing.assert_close(dense_linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize("shape", [(6, 0), (0, 4), (0, 0), (9, 1100), (1100, 9)])  # > 1,024 inputs: dW by oneDNN
def test_dense_linear_of_empty_and_wide_weights(shape: tuple[int, int]) -> None:
    tensors = [
        random_tensor(*size, dtype=torch.float32, seed=seed).requires_grad_()
        for seed, size in enumerate([(20, shape[1]), shape, shape[:1]])
    ]
    dy = random_tensor(20, shape[0], dtype=torch.float32, seed=3)
    gradients = []
    for linear in (dense_linear, torch.nn.functional.linear):
        y = linear(*tensors)
        gradients.append((y, *torch.autograd.grad(y, tensors, dy)))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # 1,100 terms, summed in another order


@pytest.fixture
def without_bf16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_BF16_IS_EMULATED", True)


@pytest.mark.parametrize("tokens", [1, 15, 40])
def test_bf16_without_its_instructions_is_multiplied_in_float32(tokens: int, without_bf16_products: None) -> None:
    """All three products equal float32 products of the widened operands, rounded once."""
    x, weight, bias = (
        random_tensor(*size, dtype=torch.bfloat16, seed=seed).requires_grad_()
        for seed, size in enumerate([(2, tokens, 17), (11, 17), (11,)])
    )
    dy = random_tensor(2, tokens, 11, dtype=torch.bfloat16, seed=4)
    wide = [tensor.detach().float().requires_grad_() for tensor in (x, weight, bias)]
    y, exact = dense_linear(x, weight, bias), torch.nn.functional.linear(*wide)
    assert y.dtype == torch.bfloat16
    found = (y, *torch.autograd.grad(y, (x, weight, bias), dy))
    expected = (exact, *torch.autograd.grad(exact, wide, dy.float()))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs, rtol=2**-8, atol=1e-5)
    torch.library.opcheck(dense.widened_linear, (x[0], weight, bias))


def test_a_slow_precision_names_what_to_set(without_bf16_products: None) -> None:
    assert "training.precision=fp32" in str(slow_precision(torch.bfloat16))
    assert slow_precision(torch.float32) is None


def test_auto_compares_with_the_widened_dense_product(
    without_bf16_products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    widened = []
    linear = dense.widened_linear
    monkeypatch.setattr(dense, "widened_linear", lambda *operands: widened.append(1) or linear(*operands))
    products(random_pattern(24, 40, 0.5, seed=0), 32, torch.bfloat16)[0]()
    assert widened


def test_a_library_of_another_version_is_refused_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ABI_VERSION", native.ABI_VERSION + 1)
    with pytest.warns(UserWarning, match="sparse products on the CPU are slow until it is built again"):
        library, reason = native._load()
    assert library is None and "is of version" in str(reason)
