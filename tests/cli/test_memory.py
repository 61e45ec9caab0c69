"""Freed memory is kept by the process, so that a new large tensor causes no page faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from spdf_dist.cli.memory import keep_freed_memory
import torch

print(int(keep_freed_memory()))
for _ in range(16):  # 64 MiB, above any threshold that glibc adapts to
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24).sum()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> list[int]:
    """Whether the setting took effect, and the page faults of sixteen tensors in turn."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return [int(line) for line in run.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
def test_a_freed_tensor_is_used_again() -> None:
    kept, *_, last = faults()
    assert kept == 1
    assert last < 10
    kept, *_, last = faults(MALLOC_TRIM_THRESHOLD_="131072")  # the user's own setting is kept
    assert kept == 0
    assert last > 10
