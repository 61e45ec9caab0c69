"""Errors that mean that the machine lacks memory, threads or files are one line."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from spdf_dist.cli import scarcity as module
from spdf_dist.cli.scarcity import scarcity


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("Unable to allocate 8.00 GiB"), "out of memory: Unable to allocate 8.00 GiB"),
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail]\nCUDA out of memory. Tried"), "out of memory: CUDA out of memory. Tried"),
        (RuntimeError("std::bad_alloc"), "out of memory: std::bad_alloc"),
        (ImportError("x.so: failed to map segment"), "out of memory: x.so: failed to map segment"),
        (RuntimeError("can't start new thread"), "a thread cannot be started: can't start new thread"),
        (
            RuntimeError("Traceback\nThe server socket has failed to bind. code: -24, message: too many open files"),
            "too many open files (ulimit -n allows this process 32)",
        ),
        (
            RuntimeError("Cannot resolve 127.0.0.1"),
            "a socket cannot be opened; are too few open files allowed (ulimit -n)? Cannot resolve 127.0.0.1",
        ),
        (RuntimeError("sizes differ"), None),
        (ImportError("No module named 'x'"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_what_the_machine_lacks(error: Exception, line: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def limit(kind: int) -> tuple[int, int]:
        number = 32 if kind == resource.RLIMIT_NOFILE else resource.RLIM_INFINITY
        return number, number

    monkeypatch.setattr(resource, "getrlimit", limit)
    assert scarcity(error) == line


def test_the_cause_counts_and_the_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.resource, "getrlimit", lambda kind: (2**30, 2**31))
    try:
        try:
            raise MemoryError("of an allocation")
        except MemoryError as cause:
            raise RuntimeError("a library gave up") from cause
    except RuntimeError as error:
        said = scarcity(error)
    assert said == "out of memory: of an allocation (ulimit -v allows this process 1.00 GiB)"
    silent = SystemError("error return without exception set")
    assert scarcity(silent) == f"out of memory: {silent} (ulimit -v allows this process 1.00 GiB)"
    monkeypatch.setattr(module.resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert scarcity(silent) is None


@pytest.mark.parametrize("megabytes", [300, 600])
def test_training_with_little_memory_is_one_line_and_leaves_nothing(
    megabytes: int, tiny_config: Path, tmp_path: Path
) -> None:
    """Below 1 GiB of addresses torch is not imported: it might end in native code, with other words."""
    done = subprocess.run(
        [sys.executable, "-m", "spdf_dist", "pretrain", str(tiny_config), f"run_dir={tmp_path}/run"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20)),
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("spdf pretrain:")]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert len(lines) == 1 and "ulimit -v allows this process" in lines[0]
    assert list(tmp_path.iterdir()) == []
