"""A kernel back end from one file outside the package, by the entry-point group `spdf.backends`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kernels_reference import assert_close, forward, random_pattern, random_tensor
from spdf_kernels import available_backends, backends, choose, describe, sparse_linear

BLOCKWISE = '''
import torch
from spdf_kernels.backends import Held, Routes

CALLS = []


class LoopOverRows:
    """Row by row, for patterns with few rows."""

    name = "rows"
    path = "loops"
    skips_work = True

    def available(self):
        return None

    def supports(self, device, dtype, pattern):
        return None if pattern.shape[0] <= 8 else "the back end rows takes at most 8 rows"

    def prepare(self, pattern, dtype):
        return Routes("rows", "rows", "torch")

    def spmm(self, x, values, bias, pattern):
        CALLS.append("spmm")
        y = x @ pattern.to_dense(values).t()
        return y if bias is None else y + bias

    def spmm_t(self, dy, values, pattern):
        CALLS.append("spmm_t")
        return dy @ pattern.to_dense(values)

    def sddmm(self, dy, x, pattern):
        CALLS.append("sddmm")
        return (dy.t() @ x)[pattern.mask()]

    def bytes(self, pattern):
        return Held(24, 0)


backend = LoopOverRows()
'''


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str) -> None:
    """Install a package with one module and one entry point as `pip install` does."""
    (folder / "rows_backend.py").write_text(source)
    metadata = folder / "rows_backend-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rows-backend\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[spdf.backends]\nrows = {target}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv("SPDF_KERNELS_BACKEND", raising=False)
    backends.backends.cache_clear()


@pytest.fixture(autouse=True)
def forget_it() -> Iterator[None]:
    yield
    backends.backends.cache_clear()


def test_a_back_end_of_one_file_runs_what_it_supports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, BLOCKWISE, "rows_backend:backend")
    import rows_backend  # type: ignore[import-not-found]

    assert next(iter(available_backends().items())) == ("rows", None)
    small, large = random_pattern(8, 12, 0.5, seed=0), random_pattern(9, 12, 0.5, seed=0)
    assert describe(small)[:3] == ("rows", "rows", "torch")
    assert describe(small).index_bytes == small.bits.numel() + 24
    assert describe(large).forward != "rows"
    x = random_tensor(5, 12, dtype=torch.float32, seed=1).requires_grad_()
    values = random_tensor(small.nnz, dtype=torch.float32, seed=2).requires_grad_()
    y = sparse_linear(x, values, small)
    assert_close(y.detach(), forward(x.detach(), values.detach(), small), terms=12)
    y.sum().backward()
    assert rows_backend.CALLS == ["spmm", "spmm_t", "sddmm"]
    assert choose(small, 16) in ("masked", "compressed")

    monkeypatch.setenv("SPDF_KERNELS_BACKEND", "portable")
    assert describe(small).forward == "portable"
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", "rows")
    with pytest.raises(ValueError, match="SPDF_KERNELS_BACKEND=rows: the back end rows takes at most 8 rows"):
        describe(large)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("import no_such_module", "rows_backend:backend", "does not load: ModuleNotFoundError"),
        ("backend = object()", "rows_backend:backend", "is not a spdf_kernels.backends.Backend"),
    ],
)
def test_a_broken_one_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str, reason: str
) -> None:
    monkeypatch.delitem(sys.modules, "rows_backend", raising=False)
    install(tmp_path, monkeypatch, source, target)
    assert reason in str(available_backends()["rows"])
    assert describe(random_pattern(8, 12, 0.5, seed=0)).forward != "rows"
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", "rows")
    with pytest.raises(ValueError, match="SPDF_KERNELS_BACKEND=rows is not available"):
        describe(random_pattern(8, 12, 0.5, seed=0))


def test_a_name_that_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rows_backend", raising=False)
    install(tmp_path, monkeypatch, BLOCKWISE.replace('name = "rows"', 'name = "torch"'), "rows_backend:backend")
    with pytest.raises(ValueError, match="2 kernel back ends are named 'torch'"):
        available_backends()
