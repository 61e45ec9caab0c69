"""One real cluster for all Slurm tests. Each test has its own folder and leaves the cluster idle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cluster import Cluster

DRIVER = """
import sys
from spdf_launcher import kinds
if {fake!r}:
    kinds.check_arguments = lambda arguments: None
from spdf_dist.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.start()
    except Exception:
        print(cluster.logs())
        cluster.stop()
        raise
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(session_cluster: Cluster) -> Iterator[Cluster]:
    yield session_cluster
    session_cluster.command("scancel", "--full", "--user=root", check=False)
    for name in session_cluster.names:
        if name not in session_cluster.daemons:
            session_cluster.start_node(name)
    session_cluster.wait_idle()


class SlurmBench:
    """A folder with workflows, and the `spdf` command on the cluster."""

    def __init__(self, path: Path, cluster: Cluster, fake: bool) -> None:
        self.path, self.cluster = path, cluster
        self.dir = path / "work"
        self.file = path / "flow.yaml"
        self.driver = path / "driver.py"
        self.driver.write_text(DRIVER.format(fake=fake))
        self.python = sys.executable
        if fake:
            self.python = str(path / "fake_python")
            script = Path(__file__).with_name("fake_python.py")
            Path(self.python).write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
            Path(self.python).chmod(0o755)
        (path / "train.csv").write_text("mr,ref\n")
        self.faults: dict[str, list[Any]] = {}
        self.more_env: dict[str, str] = {}

    def write(self, jobs: str, name: str = "flow.yaml", cluster: str = "") -> Path:
        """Write a workflow for this cluster."""
        env = {"FAKE_FAULTS": json.dumps(self.faults), "OMP_NUM_THREADS": "1"}
        head = f"clusters:\n  test:\n    python: {self.python}\n    env: {json.dumps(env)}\n{cluster}"
        (self.path / name).write_text(head + jobs)
        return self.path / name

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `spdf WORDS`."""
        return subprocess.Popen(
            [sys.executable, str(self.driver), *words],
            cwd=self.path,
            env=self.cluster.env | self.more_env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def spdf(self, *words: str, code: int = 0, timeout: float = 300) -> str:
        """Run `spdf WORDS` and return its output."""
        process = self.start(*words)
        out, errors = process.communicate(timeout=timeout)
        assert process.returncode == code, f"{process.returncode}\n{out}\n{errors}\n{self.tail()}"
        return out + errors

    def run(self, *more: str, code: int = 0, dir: Path | None = None, timeout: float = 300) -> str:
        """`spdf run --on slurm`."""
        words = ("run", str(self.file), "--dir", str(dir or self.dir), "--on", "slurm", *more)
        return self.spdf(*words, code=code, timeout=timeout)

    def states(self, dir: Path | None = None) -> dict[str, dict[str, Any]]:
        """`spdf status --json` by job."""
        process = self.start("status", str(dir or self.dir), "--json")
        out, errors = process.communicate(timeout=60)
        assert out, errors
        return {job["job"]: job for job in json.loads(out)["jobs"]}

    def wait_end(self, seconds: float = 180, dir: Path | None = None) -> dict[str, dict[str, Any]]:
        """Wait until every job of the workflow has ended."""
        end = time.monotonic() + seconds
        while True:
            states = self.states(dir)
            if all(job["state"] in ("done", "failed", "cancelled") for job in states.values()):
                return states
            assert time.monotonic() < end, f"{states}\n{self.tail()}"
            time.sleep(0.5)

    def manifest(self, job: str, dir: Path | None = None) -> dict[str, Any]:
        """A job's manifest."""
        return json.loads(((dir or self.dir) / "jobs" / job / "manifest.json").read_text())

    def metrics(self, job: str, dir: Path | None = None) -> list[dict[str, Any]]:
        """The training steps of a job's run."""
        path = (dir or self.dir) / "jobs" / job / "run/metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if "loss" in line]

    def slurm_states(self, job: str) -> list[str]:
        """Slurm's states of the attempts of a job, from its file of finished jobs.

        The manifest of a job becomes `done` before Slurm writes its line, so this waits for it.
        """
        end = time.monotonic() + 60
        while True:
            log = (self.cluster.base / "jobcomp.log").read_text()
            found = [line.split("JobState=")[1].split()[0] for line in log.splitlines() if f" Name={job} " in line]
            if found or time.monotonic() > end:
                return found
            time.sleep(0.2)

    def tail(self) -> str:
        """The last output of the jobs, for the message of a failure."""
        paths = [*sorted(self.path.glob("work*/jobs/**/job.log")), *sorted(self.path.glob("work*/slurm/*.out"))]
        return "\n".join(
            f"== {path}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-8:]) for path in paths
        )


@pytest.fixture
def fake(tmp_path: Path, cluster: Cluster) -> SlurmBench:
    """Workflows with the stand-in trainer."""
    return SlurmBench(tmp_path, cluster, fake=True)


@pytest.fixture
def real(tmp_path: Path, cluster: Cluster) -> SlurmBench:
    """Workflows with the real trainer."""
    return SlurmBench(tmp_path, cluster, fake=False)
