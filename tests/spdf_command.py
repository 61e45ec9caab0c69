"""Runs the `spdf` command in its own process, and reads the metrics of a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
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


def start_and_signal(number: int, run: Path, after_step: int, *arguments: object) -> tuple[int, str]:
    """Start `spdf ARGUMENTS`, which trains ``run``, send a signal once a step is logged, and wait.

    SIGKILL also goes to its ranks. Returns exit code and stderr.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "spdf_dist", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_text().count('"loss"') >= after_step:
            break
        time.sleep(0.01)
    if number == signal.SIGKILL:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=200)
    return process.returncode, stderr
