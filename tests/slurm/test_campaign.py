"""A short part of the fault campaign on a cluster whose nodes have their own networks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.mark.timeout(900)
def test_faults_of_the_cluster_lose_nothing(tmp_path: Path) -> None:
    report = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "chaos", "--only", "slurm", "--most", "2", "--minutes", "5", "--seed", "20"]
    done = subprocess.run(
        [*command, "--json", str(report)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(report.read_text())["slurm"]["counts"]["faults"] >= 1
