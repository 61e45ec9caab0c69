"""An executor from one file outside the package plans, runs, reports and cancels jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = '''
"""Runs jobs here, at the lowest priority."""

from spdf_launcher import programs
from spdf_launcher.executors import Executor


class Nice(Executor):
    name = "nice"
    help = "here, at a low priority"
    options = ("--niceness",)

    def __init__(self, options=None):
        self.niceness = options.niceness if options is not None and options.niceness is not None else 19

    @classmethod
    def add_options(cls, parser):
        parser.add_argument("--niceness", type=int, help="0 to 19 (19)")

    def program(self, job, workflow, root):
        return ["nice", "-n", str(self.niceness), *programs.SPDF]
'''
FLOW = "jobs: {made: {kind: synthetic-e2e, set: {seed: 1}}}\n"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The environment with an installed distribution of the module."""
    metadata = tmp_path / "site" / "nice_executor-1.dist-info"
    metadata.mkdir(parents=True)
    (tmp_path / "site" / "nice_executor.py").write_text(MODULE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: nice-executor\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[spdf.executors]\nnice = nice_executor:Nice\n")
    (tmp_path / "flow.yaml").write_text(FLOW)
    return os.environ | {"PYTHONPATH": str(tmp_path / "site")}


def spdf(env: dict[str, str], cwd: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "spdf_dist", *words], env=env, cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_executor_is_added_by_one_file(env: dict[str, str], tmp_path: Path) -> None:
    run = ["run", "flow.yaml", "--dir", "work"]
    assert "here, at a low priority" in spdf(env, tmp_path, "run", "--help")
    dry = spdf(env, tmp_path, *run, "--on", "nice", "--niceness", "7", "--dry-run", "--verbose")
    assert "nice -n 7 " in dry and not (tmp_path / "work").exists()
    refused = spdf(env, tmp_path, *run, "--on", "local", "--niceness", "7", code=2)
    assert "--niceness goes with --on nice" in refused and refused.count("\n") == 1
    assert "1 of 1 jobs done" in spdf(env, tmp_path, *run, "--on", "nice")
    manifest = json.loads((tmp_path / "work/jobs/made/manifest.json").read_text())
    assert manifest["status"] == "done" and manifest["argv"][:3] == ["nice", "-n", "19"]
    assert "made  done" in spdf(env, tmp_path, "status", "work")
    assert "nothing to cancel" in spdf(env, tmp_path, "cancel", "work")


def test_the_executor_of_the_documentation_works(env: dict[str, str], tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "workflows.md").read_text(encoding="utf-8")
    (tmp_path / "site" / "nice_executor.py").write_text(page.partition("```py\n")[2].partition("```")[0])
    dry = spdf(env, tmp_path, "run", "flow.yaml", "--dir", "work", "--on", "nice", "--dry-run", "--verbose")
    assert "nice -n 19 " in dry and "1 of 1 jobs to run" in dry
