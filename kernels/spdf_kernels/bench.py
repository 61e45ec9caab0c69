"""Measures the sparse products against the best dense ones and other sparse libraries in one run.

All contenders of a case run in turn in each round, so that a change of the machine's load affects all of them. A
speed-up is the median over rounds of (best dense time / time of the contender). The best dense product is the faster of
MKL and oneDNN. On one thread the clock is the processor time of this process, which does not include other load. On
several threads it is the wall clock.
"""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from spdf_kernels import backends, native, ops
from spdf_kernels.dense import dense_linear, is_emulated, widened_linear
from spdf_kernels.linear import sparse_linear
from spdf_kernels.pairs import clock, median_and_bound
from spdf_kernels.pattern import SparsityPattern
from spdf_kernels.state import model_state

OPERATIONS = ("forward", "dx", "dw")
SLOW = 4.0
"""A contender that is this many times slower than the median one runs only in every third round."""

Product = Callable[[], Any]


def machine() -> dict[str, Any]:
    """Processor, cores, instruction sets, versions, and the available back ends."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines[:40])}
    model = " ".join(fields[key] for key in ("model name",) if key in fields) or platform.processor()
    family = {key: int(fields[key]) for key in ("cpu family", "model") if key in fields}
    return {
        "cpu": model or platform.machine(),
        **{key.replace(" ", "_"): value for key, value in family.items()},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "mkl": torch.backends.mkl.is_available(),
        "onednn": torch.backends.mkldnn.is_available(),
        "backends": {name: reason or "available" for name, reason in backends.available_backends().items()},
    }


def fma_peak(threads: int, dtype: torch.dtype, seconds: float = 0.5) -> float | None:
    """Highest rate of multiply-adds in registers, FLOP/s, on `threads` threads; None if it cannot be measured."""
    if native.missing("portable") is not None:
        return None
    peak = ctypes.CDLL(str(native.LIBRARY)).spdf_fma_peak
    peak.restype, peak.argtypes = ctypes.c_double, [ctypes.c_int, ctypes.c_int, ctypes.c_double]
    return float(peak(dtype == torch.bfloat16, threads, seconds)) or None


FED_FROM = {"L1": 24 << 10, "L2": 512 << 10}
"""Sizes in bytes for `fma_fed`: the part of x that dW keeps in L1, and a size that fits L2."""


def fma_fed(size: int, seconds: float = 0.25) -> float | None:
    """Rate of fp32 multiply-adds that each load 64 bytes from a buffer of `size` bytes, FLOP/s on one thread.

    This is the limit of dW, in which every kept entry loads x. None without AVX-512.
    """
    if native.missing("avx512") is not None:
        return None
    fed = ctypes.CDLL(str(native.LIBRARY)).spdf_fma_fed
    fed.restype, fed.argtypes = ctypes.c_double, [ctypes.c_int64, ctypes.c_int, ctypes.c_double]
    return float(fed(size, 1, seconds)) or None


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Run torch and the kernels on `threads` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_mask(shape: tuple[int, int], sparsity: float, seed: int = 0) -> torch.Tensor:
    """Bool [out, in] with floor(sparsity * numel) entries pruned, uniformly at random."""
    numel = shape[0] * shape[1]
    order = torch.randperm(numel, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(numel, dtype=torch.bool)
    mask[order[: int(round(sparsity * 10**6) * numel // 10**6)]] = False
    return mask.view(shape)


def interleave(contenders: Mapping[str, Product], rounds: int, threads: int) -> dict[str, dict[int, float]]:
    """Seconds of each contender by round. The order rotates; much slower ones run in every third round only."""
    now = clock(threads)
    warm: dict[str, float] = {}
    for name, product in contenders.items():
        product()
        start = now()
        product()
        warm[name] = now() - start
    slow = {name for name, seconds in warm.items() if seconds > SLOW * statistics.median(warm.values())}
    names = list(contenders)
    times: dict[str, dict[int, float]] = {name: {} for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            if name in slow and number % 3:
                continue
            start = now()
            contenders[name]()
            times[name][number] = now() - start
    return times


def spread(times: Mapping[int, float]) -> dict[str, float]:
    """Median and quartiles in milliseconds, and the number of runs."""
    values = sorted(times.values())
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median_ms": 1e3 * statistics.median(values),
        "q1_ms": 1e3 * low,
        "q3_ms": 1e3 * high,
        "runs": len(values),
    }


def ratio(over: Mapping[int, float], under: Mapping[int, float]) -> tuple[float, float]:
    """(median of over / under by round, its lower confidence bound)."""
    return median_and_bound([over[number] / under[number] for number in over.keys() & under.keys()])


def dense_products(operation: str, x: torch.Tensor, dy: torch.Tensor, weight: torch.Tensor) -> dict[str, Product]:
    """The dense product by library: torch's default, and an explicit call of oneDNN."""
    linear = torch.nn.functional.linear
    if operation == "forward":
        left, right = x, weight
    elif operation == "dx":
        left, right = dy, weight.t()
    else:
        left, right = dy.t(), x.t()
    if x.dtype == torch.bfloat16:
        # an emulated product of torch takes minutes, and `dense_linear` does not use it
        if is_emulated(x.dtype, x.device):
            return {"widened": lambda: widened_linear(left, right, None)}
        return {"torch_bf16": lambda: linear(left, right)}  # oneDNN
    found: dict[str, Product] = {}
    if torch.backends.mkl.is_available():
        found["mkl"] = lambda: linear(left, right)
    else:
        found["torch"] = lambda: linear(left, right)
    if torch.backends.mkldnn.is_available():
        found["onednn"] = lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return found


def sparse_products(
    x: torch.Tensor, dy: torch.Tensor, values: torch.Tensor, pattern: SparsityPattern
) -> dict[str, Product]:
    """The kernels' products by operation, with row-major operands and results."""
    out_features, in_features = pattern.shape
    return {
        "forward": lambda: ops.spmm(x, values, None, pattern.handle, out_features),
        "dx": lambda: ops.spmm_transposed(dy, values, pattern.handle, in_features),
        "dw": lambda: ops.sddmm(dy, x, pattern.handle, pattern.nnz),
    }


def packed_products(
    x: torch.Tensor, dy: torch.Tensor, values: torch.Tensor, pattern: SparsityPattern
) -> dict[str, Product]:
    """The same products with tiles of tokens as operands and results, without packing. Empty without generated code."""
    backend = backends.describe(pattern, x.dtype).forward
    if x.dtype != torch.float32 or not backend.startswith("jit"):
        return {}
    x_tiles, dy_tiles = native.pack(x), native.pack(dy)
    return {
        "forward": lambda: native.spmm_packed(x_tiles, values, pattern, backend, transposed=False),
        "dx": lambda: native.spmm_packed(dy_tiles, values, pattern, backend, transposed=True),
    }


def peer_products(
    operation: str, x: torch.Tensor, dy: torch.Tensor, weight: torch.Tensor
) -> tuple[dict[str, Product], dict[str, str]]:
    """(products of other sparse libraries, reasons for missing ones). Each gets operands in its fastest layout."""
    found: dict[str, Product] = {}
    missing: dict[str, str] = {}
    if x.dtype != torch.float32:
        return {}, {"torch_csr": "fp32 only", "sparseprop": "fp32 only", "libxsmm": "fp32 only"}
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    csr = weight.to_sparse_csr()
    if operation == "forward":
        x_t = x.t().contiguous()
        found["torch_csr"] = lambda: csr @ x_t
    elif operation == "dx":
        transposed, dy_t = weight.t().contiguous().to_sparse_csr(), dy.t().contiguous()
        found["torch_csr"] = lambda: transposed @ dy_t
    else:
        dy_t = dy.t().contiguous()
        found["torch_csr"] = lambda: torch.sparse.sampled_addmm(csr, dy_t, x, beta=0.0)
    try:
        from sparseprop.modules.linear import SparseLinear  # type: ignore[import-not-found, unused-ignore]

        if operation == "forward":
            layer = SparseLinear(weight)

            def forward() -> None:
                with torch.no_grad():
                    layer(x)

            found["sparseprop"] = forward
        else:
            missing["sparseprop"] = "computes dX and dW in one call: see forward_backward"
    except ImportError as error:
        missing["sparseprop"] = f"not installed ({error})"
    missing["libxsmm"] = "not installed, or without Python bindings"
    return found, missing


def forward_backward(
    x: torch.Tensor, dy: torch.Tensor, weight: torch.Tensor, pattern: SparsityPattern, values: torch.Tensor
) -> dict[str, Product]:
    """Forward and backward through autograd: the kernels, dense through the faster library and through torch's
    default, and SparseProp if it is installed.
    """

    def through(function: Callable[[torch.Tensor], torch.Tensor], parameters: Sequence[torch.Tensor]) -> Product:
        def step() -> None:
            leaf = x.detach().requires_grad_()
            torch.autograd.grad(function(leaf), [leaf, *parameters], dy)

        return step

    dense, kept = weight.clone().requires_grad_(), values.clone().requires_grad_()
    found = {
        "sparse": through(lambda leaf: sparse_linear(leaf, kept, pattern), [kept]),
        "dense": through(lambda leaf: dense_linear(leaf, dense), [dense]),
        "dense_torch": through(lambda leaf: torch.nn.functional.linear(leaf, dense), [dense]),
    }
    if x.dtype == torch.float32:
        try:
            from sparseprop.modules.linear import SparseLinear

            layer = SparseLinear(weight)
            found["sparseprop"] = through(layer, list(layer.parameters()))
        except ImportError:
            pass  # the results of single products report that it is missing
    return found


def measure_gemm(
    shape: tuple[int, int],
    sparsity: float,
    tokens: int,
    threads: int,
    dtype: torch.dtype,
    rounds: int,
    peak: float | None,
    peers: bool = True,
    operations: Sequence[str] = OPERATIONS,
) -> list[dict[str, Any]]:
    """One result per operation at a shape [out, in].

    With generated code, forward and dX also have a result on packed operands (`forward_packed`, `dx_packed`). If all
    three operations are requested, there is also `forward_backward`. `peak` is the FLOP/s of `fma_peak` at these
    threads and this dtype, for the fraction of the peak; None if it is not known.
    """
    out_features, in_features = shape
    generator = torch.Generator().manual_seed(1)
    mask = random_mask(shape, sparsity)
    pattern = SparsityPattern.from_mask(mask)
    weight = torch.where(mask, torch.randn(shape, generator=generator) * 0.02, torch.tensor(0.0)).to(dtype)
    x = torch.randn(tokens, in_features, generator=generator).to(dtype)
    dy = torch.randn(tokens, out_features, generator=generator).to(dtype)
    values = pattern.compress(weight)
    results = []
    with thread_count(threads):
        description = backends.describe(pattern, dtype)
        backend = {"forward": description.forward, "dx": description.grad_input, "dw": description.grad_values}
        sparse = sparse_products(x, dy, values, pattern)
        packed = packed_products(x, dy, values, pattern)
        flops = 2.0 * tokens * pattern.nnz
        for operation in operations:
            dense = dense_products(operation, x, dy, weight)
            others, missing = peer_products(operation, x, dy, weight) if peers else ({}, {})
            others, failed = _runnable(others)
            own = {"sparse": sparse[operation], **({"packed": packed[operation]} if operation in packed else {})}
            times = interleave({**own, **dense, **others}, rounds, threads)
            for name in own:
                result = _compare(times, name, list(dense), list(others))
                seconds = result["median_ms"] / 1e3
                result.update(
                    op=operation if name == "sparse" else f"{operation}_packed",
                    backend=backend[operation],
                    gflops=flops / seconds / 1e9,
                    peak_fraction=None if peak is None else flops / seconds / peak,
                    theoretical=1.0 / pattern.density,
                    peers_missing=missing | failed,
                )
                results.append(result)
        if tuple(operations) == OPERATIONS:
            times = interleave(forward_backward(x, dy, weight, pattern, values), rounds, threads)
            dense_names = [name for name in times if name.startswith("dense")]
            result = _compare(times, "sparse", dense_names, [name for name in times if name == "sparseprop"])
            result.update(op="forward_backward", backend=backend["forward"], theoretical=1.0 / pattern.density)
            results.append(result)
    for result in results:
        result.update(
            {"out": shape[0], "in": shape[1]}, sparsity=sparsity, tokens=tokens, threads=threads, dtype=_name(dtype)
        )
    return results


def _runnable(contenders: Mapping[str, Product]) -> tuple[dict[str, Product], dict[str, str]]:
    """The contenders that run on this machine, and the first line of the error of each other one."""
    found, failed = {}, {}
    for name, product in contenders.items():
        try:
            product()
            found[name] = product
        except (RuntimeError, NotImplementedError) as error:
            failed[name] = str(error).splitlines()[0]
    return found, failed


def _compare(
    times: Mapping[str, Mapping[int, float]], own: str, dense: Sequence[str], peers: Sequence[str]
) -> dict[str, Any]:
    best = min(dense, key=lambda name: statistics.median(times[name].values()))
    speedup, bound = ratio(times[best], times[own])
    return {
        **spread(times[own]),
        "speedup": speedup,
        "speedup_lower": bound,
        "best_dense": best,
        "dense": {name: spread(times[name]) for name in dense},
        "peers": {name: {**spread(times[name]), "speedup": ratio(times[best], times[name])[0]} for name in peers},
    }


def _name(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def measure_state(shape: tuple[int, int], sparsity: float, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Time to prepare a pattern for `dtype`, and bytes of model state per entry of W (dense: 16), by path."""
    measured: dict[str, Any] = {"out": shape[0], "in": shape[1], "sparsity": sparsity}
    for path, state in model_state(random_mask(shape, sparsity), dtype).items():
        if isinstance(state, str):
            measured[path] = {"missing": state}
            continue
        measured[path] = {
            "backends": list(state.backends),
            "prepare_ms": 1e3 * state.prepare_s,
            "index_bytes_per_nonzero": state.index_bytes / max(1, state.kept),
            "code_bytes_per_nonzero": state.code_bytes / max(1, state.kept),
            "state_bytes_per_weight": state.bytes / state.entries,
            "of_dense": state.summary()["of_dense"],
        }
    return measured
