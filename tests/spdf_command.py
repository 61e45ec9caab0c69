"""Runs the `spdf` command in its own process, and reads the metrics of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def run_spdf(*arguments: object, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the `spdf` command with one core per rank. The caller checks the exit code."""
    return subprocess.run(
        [sys.executable, "-m", "spdf_dist", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def read_metrics(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
