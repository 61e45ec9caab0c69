"""The processor of this machine: the cores of this process, and what /proc/cpuinfo describes."""

from __future__ import annotations

import os
from pathlib import Path

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "neon", "asimd", "sve")


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_fields() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    block = text.split("\n\n", 1)[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}


def cpu_features() -> list[str]:
    """The vector instruction sets that matter here."""
    fields = cpu_fields()
    present = (fields.get("flags") or fields.get("Features") or "").split()
    return [name for name in CPU_FEATURES if name in present]
