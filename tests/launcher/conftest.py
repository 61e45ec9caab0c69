"""Workflows over a stand-in for the `spdf` command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAKE = [sys.executable, str(Path(__file__).with_name("fake_spdf.py"))]

WORKFLOW = """
variants:
  dense: {sparsity.level: 0.0}
  s75: {sparsity: {level: 0.75}}
jobs:
  pretrain:
    kind: pretrain
    set:
      training: {train_tokens: 160, global_batch_size: 1, micro_batch_size: 1}
      model.seq_length: 8
  dense:
    kind: densify
    set: {checkpoint: "${jobs.pretrain.run_dir}"}
  finetune:
    kind: finetune
    set:
      finetune.checkpoint: ${jobs.dense.checkpoint}
      finetune.train: train.csv
      training: {global_batch_size: 8}
    grid:
      training.lr: [0.1, 2e-1]
  generate:
    kind: generate
    set: {checkpoint: "${jobs.finetune.run_dir}", task: e2e, input: train.csv}
  evaluate:
    kind: evaluate
    set: {task: e2e, hypotheses: "${jobs.generate.hypotheses}", references: ["${jobs.generate.references}"]}
  select:
    kind: select
    needs: [evaluate]
    set: {metric: bleu}
  report:
    kind: report
    needs: [select]
"""

DRIVER = """
import sys
from spdf_launcher import kinds, programs
programs.SPDF = tuple({fake!r})
kinds.check_arguments = lambda arguments: None
from spdf_dist.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


class Bench:
    """A folder with a workflow, and the `spdf` command, which runs the stand-in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "flow.yaml"
        self.dir = path / "work"
        self.driver = path / "driver.py"
        self.driver.write_text(DRIVER.format(fake=FAKE))
        self.file.write_text(WORKFLOW)
        (path / "train.csv").write_text("mr,ref\n")
        self.faults: dict[str, list[Any]] = {}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `spdf WORDS`."""
        return subprocess.Popen(
            [sys.executable, str(self.driver), *words],
            cwd=self.path,
            env=os.environ | {"FAKE_FAULTS": json.dumps(self.faults)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def spdf(self, *words: str, code: int = 0) -> str:
        """Run `spdf WORDS`. Returns standard output, or standard error when another exit code than 0 is expected."""
        process = self.start(*words)
        out, errors = process.communicate(timeout=120)
        assert process.returncode == code, f"{process.returncode}\n{out}\n{errors}"
        return out if code == 0 else out + errors

    def run(self, *more: str, code: int = 0) -> str:
        """`spdf run` of the workflow."""
        return self.spdf("run", str(self.file), "--dir", str(self.dir), "--on", "local", *more, code=code)

    def states(self, code: int = 0) -> dict[str, dict[str, Any]]:
        """`spdf status --json` by job."""
        process = self.start("status", str(self.dir), "--json")
        out, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        return {job["job"]: job for job in json.loads(out)["jobs"]}

    def manifest(self, job: str) -> dict[str, Any]:
        """A job's manifest."""
        return json.loads((self.dir / "jobs" / job / "manifest.json").read_text())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def no_parsers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Plan without the parsers of the commands."""
    from spdf_launcher import kinds

    monkeypatch.setattr(kinds, "check_arguments", lambda arguments: None)
    return lambda: None
