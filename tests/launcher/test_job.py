"""The end of a job on Slurm: requeues and failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from spdf_launcher import job, requeue
from spdf_launcher.attempts import START, record
from spdf_launcher.executors import slurm
from spdf_launcher.executors.slurm import Slurm
from spdf_launcher.folder import read_lines
from spdf_launcher.journal import Journal
from spdf_launcher.plan import plan
from spdf_launcher.prepare import prepare
from spdf_launcher.workflow import load_workflow

from spdf_dist.base.file_locks import try_lock, unlock
from spdf_dist.workflow_folder import JobFolder

FLOW = """
jobs:
  train: {kind: pretrain, set: {training.train_tokens: 4096}}
  dense: {kind: densify, set: {checkpoint: somewhere}}
"""
HEAD = "import os, signal, sys\n"


class Requeued(Exception):
    """Replaces the end of a job by Slurm."""


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_parsers: object) -> Callable[[str, str], JobFolder]:
    """Prepares a job on Slurm whose command is Python code. Returns the end of its runner, and its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    (tmp_path / "somewhere").touch()
    (tmp_path / "flow.yaml").write_text(FLOW)
    root = tmp_path / "work"
    root.mkdir()

    def requeue() -> None:
        raise Requeued

    monkeypatch.setattr(slurm, "requeue_self", requeue)
    monkeypatch.setattr(slurm, "is_preempted", lambda: False)

    def start(name: str, command: str) -> JobFolder:
        workflow = load_workflow(str(tmp_path / "flow.yaml"))
        jobs = plan(workflow, root, ranks_from_launcher=True)
        monkeypatch.setattr(Slurm, "program", lambda *given: [job.sys.executable, "-c", HEAD + command])
        monkeypatch.setattr(Slurm, "reports_code", lambda *given: False)
        with Journal(root) as journal:
            prepare(workflow, jobs, root, Slurm(), journal, {name})
        return JobFolder(root / "jobs" / name)

    return start


def ends(folder: JobFolder) -> tuple[list[str], bool]:
    """Run a job once. Returns the ends of its attempts so far, and whether it was requeued."""
    requeued = False
    try:
        job.main([str(folder.path.parents[1]), folder.path.name])
    except Requeued:
        requeued = True
    return [line["outcome"] for line in read_lines(folder.attempts) if line["event"] == "end"], requeued


def test_a_preempted_job_goes_back_into_the_queue(attempt) -> None:  # type: ignore[no-untyped-def]
    folder = attempt("train", "sys.exit(75)")
    assert ends(folder) == (["stopped"], True)
    assert not folder.manifest.exists()


def held_by(folder: JobFolder, slurm_job: str) -> int:
    """The lock of a job whose last attempt still runs, in a job of Slurm."""
    record(folder, START, attempt=1, host="n2", slurm_job_id=slurm_job, checkpoint=-1)
    lock = try_lock(folder.lock)
    assert lock is not None
    return lock


def test_a_requeued_job_waits_for_its_attempt_on_a_lost_node(attempt, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    folder = attempt("dense", "os.mkdir('made')")
    (folder.out / "model").mkdir(parents=True)
    threading.Timer(3.0, unlock, [held_by(folder, "17")]).start()
    ends(folder)
    assert folder.out.is_dir() and [line["event"] for line in read_lines(folder.attempts)].count(START) == 2
    assert "dense: waits for the end of its earlier attempt on n2" in capsys.readouterr().err


def test_a_signal_ends_the_wait_and_the_job_goes_back_into_the_queue(attempt) -> None:  # type: ignore[no-untyped-def]
    folder = attempt("train", "")
    lock = held_by(folder, "17")
    threading.Timer(3.0, os.kill, [os.getpid(), signal.SIGUSR1]).start()
    assert ends(folder) == ([], True)
    unlock(lock)


def test_another_slurm_job_does_not_wait(attempt, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    folder = attempt("train", "")
    lock = held_by(folder, "16")
    assert ends(folder) == ([], False)
    assert "train: runs already" in capsys.readouterr().err
    unlock(lock)


def test_a_job_under_scancel_does_not(attempt) -> None:  # type: ignore[no-untyped-def]
    folder = attempt("train", "os.kill(os.getppid(), signal.SIGTERM); sys.exit(75)")
    assert ends(folder) == (["stopped"], False)


def test_a_cancelled_job_does_not(attempt) -> None:  # type: ignore[no-untyped-def]
    manifest = json.dumps({"status": "cancelled"})
    folder = attempt("train", f"open('work/jobs/train/manifest.json', 'w').write({manifest!r}); sys.exit(75)")
    assert ends(folder) == (["stopped"], False)


SIGNAL = "os.kill(os.getppid(), signal.SIGUSR1); signal.pause()"


def test_a_job_that_starts_anew_and_reaches_its_limit_fails_in_the_end(attempt) -> None:  # type: ignore[no-untyped-def]
    folder = attempt("dense", SIGNAL)
    assert ends(folder) == (["failed"], True)
    assert ends(folder) == (["failed"] * 2, True)
    assert ends(folder) == (["failed"] * 3, False)
    manifest = json.loads(folder.manifest.read_text())
    assert manifest["status"] == "failed"
    assert manifest["reason"] == (
        "reached its time limit, and starts from the beginning each time: raise jobs.dense.resources.time "
        "(3 times with no new checkpoint)"
    )


def test_training_at_its_limit_is_no_failure(attempt) -> None:  # type: ignore[no-untyped-def]
    folder = attempt("train", f"signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75)); {SIGNAL}")
    assert ends(folder) == (["stopped"], True)


@pytest.mark.parametrize("command", [SIGNAL, "os.kill(os.getpid(), signal.SIGTERM)", "sys.exit(75)", "sys.exit(130)"])
def test_preemption_of_a_job_that_starts_anew_is_no_failure(  # type: ignore[no-untyped-def]
    attempt, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "is_preempted", lambda: True)
    assert ends(attempt("dense", command)) == (["stopped"], True)


@pytest.mark.parametrize("command", ["os.kill(os.getpid(), signal.SIGTERM)", "sys.exit(2)"])
def test_other_ends_are_failures_as_ever(attempt, command: str) -> None:  # type: ignore[no-untyped-def]
    assert ends(attempt("dense", command))[0] == ["failed"]


@pytest.mark.parametrize(
    ("code", "said", "preempted"),
    [(0, "2026-11-23T10:13:44          \n", True), (0, "N/A         \n", False), (0, "", False), (1, "?", False)],
)
def test_preemption_as_slurm_tells_it(monkeypatch: pytest.MonkeyPatch, code: int, said: str, preempted: bool) -> None:
    done = subprocess.CompletedProcess([], code, said, "")
    monkeypatch.setattr(requeue.subprocess, "run", lambda *words, **more: done)
    assert requeue.is_preempted() is preempted
