"""Bytes of model state by path, as inspect and bench print them."""

import pytest
import torch
from kernels_reference import BACKENDS
from spdf_kernels import Description, SparsityPattern, available_backends, describe, native
from spdf_kernels.bench import measure_gemm, measure_state
from spdf_kernels.state import BYTES_OF_ENTRY, PathState, model_state, total_state


def random_mask(rows: int, columns: int, density: float) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) < density


def test_each_path_says_what_describe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = random_mask(96, 200, 0.25)
    states = model_state(mask)
    assert list(states) == ["compact", "generated"]
    rows, code = ("avx512", "jit") if "avx512" in BACKENDS else ("portable", "jit-avx2")
    for path, backend in (("compact", rows), ("generated", code)):
        state = states[path]
        if backend not in BACKENDS:
            assert state == available_backends()[backend]
            continue
        monkeypatch.setenv("SPDF_KERNELS_BACKEND", backend)
        pattern = SparsityPattern.from_mask(mask)
        description = describe(pattern)
        assert isinstance(state, PathState)
        assert state.backends == (description.forward, description.grad_input, description.grad_values)
        assert (state.kept, state.entries) == (pattern.nnz, 96 * 200)
        assert (state.index_bytes, state.code_bytes) == (description.index_bytes, description.code_bytes)
        assert state.bytes == BYTES_OF_ENTRY * pattern.nnz + state.index_bytes + state.code_bytes
        assert state.summary()["of_dense"] == state.bytes / (16 * 96 * 200)
        assert state.prepare_s > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measurements_describe_products_of_their_own_dtype(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the text would name another back end beyond the code budget, and build code that is never run."""
    seen: list[torch.dtype] = []

    def recorded(pattern: SparsityPattern, dtype: torch.dtype = torch.float32) -> Description:
        seen.append(dtype)
        return describe(pattern, dtype)

    monkeypatch.setattr("spdf_kernels.backends.describe", recorded)
    measure_state((32, 64), 0.5, dtype)
    measure_gemm((32, 64), 0.5, 16, 1, dtype, 1, None, peers=False, operations=("dw",))
    assert set(seen) == {dtype}


def test_a_machine_without_avx512_says_so_and_measures_the_portable_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda name: None if name == "portable" else "no AVX-512")
    states = model_state(random_mask(64, 64, 0.25))
    assert states["generated"] == "no AVX-512"
    assert isinstance(states["compact"], PathState) and set(states["compact"].backends) == {"portable"}


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("SPDF_KERNELS_BACKEND", "torch")
    model_state(random_mask(8, 8, 0.5))
    assert os.environ["SPDF_KERNELS_BACKEND"] == "torch"
    monkeypatch.delenv("SPDF_KERNELS_BACKEND")
    model_state(random_mask(8, 8, 0.5))
    assert "SPDF_KERNELS_BACKEND" not in os.environ


@pytest.mark.parametrize("forced", [name for name in BACKENDS if name != "torch"])
def test_a_forced_back_end_is_the_one_of_its_path(forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", forced)
    states = model_state(random_mask(8, 8, 0.5)).values()
    assert forced in [state.backends[0] for state in states if isinstance(state, PathState)]


def test_sums_over_weights() -> None:
    one = PathState(("jit", "jit", "avx512"), 10, 40, 5, 100, 0.5)
    two = PathState(("avx512", "avx512", "avx512"), 20, 80, 7, 0, 0.25)
    total = total_state([{"generated": one, "compact": "none"}, {"generated": two, "compact": "none"}])
    assert total["compact"] == "none"
    state = total["generated"]
    assert isinstance(state, PathState)
    assert state == PathState(("jit", "avx512"), 30, 120, 12, 100, 0.75)
    assert state.bytes == 16 * 30 + 12 + 100
