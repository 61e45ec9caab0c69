"""The end of a batch job after its ranks have ended, and the reports of a rank to its launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from spdf_launcher import batch, rank, requeue

SCRIPTS = Path(__file__).parents[2] / "slurm"
TELL = "import os, sys; open(os.environ['SPDF_EXIT_FILE'], 'w').write(sys.argv[1]); sys.exit(int(sys.argv[2]))"
WAIT = (
    "import os, signal, sys, time\n"
    "signal.signal(signal.SIGUSR1, lambda n, f: (open(os.environ['SPDF_EXIT_FILE'], 'w').write('75'), sys.exit(0)))\n"
    "open(sys.argv[1], 'w').close(); time.sleep(30)"
)


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Count requeues instead of executing them, inside a Slurm job."""
    found: list[bool] = []
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(batch, "requeue_self", lambda: found.append(True))
    return found


def told(tmp_path: Path, told: object, code: int) -> int:
    """A batch job whose rank 0 reports ``told`` and whose srun exits with ``code``."""
    return batch.main([str(tmp_path), sys.executable, "-c", TELL, str(told), str(code)])


def test_done(tmp_path: Path, requeued: list[bool]) -> None:
    assert told(tmp_path, 0, 0) == 0 and not requeued
    assert (tmp_path / "logs/slurm-17.log").exists()


@pytest.mark.parametrize("code", [2, 3])
def test_final_codes_are_told_although_srun_says_1(tmp_path: Path, requeued: list[bool], code: int) -> None:
    assert told(tmp_path, code, 1) == code and not requeued


def test_a_lost_node_is_no_success_although_srun_says_0(tmp_path: Path, requeued: list[bool]) -> None:
    assert batch.main([str(tmp_path), sys.executable, "-c", "pass"]) == 1
    assert requeued == [True]


def test_three_failures_without_a_checkpoint_are_final(
    tmp_path: Path, requeued: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    told(tmp_path, 1, 1)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    told(tmp_path, 1, 1)
    assert len(requeued) == 2
    (tmp_path / "checkpoints/step_5").mkdir(parents=True)
    (tmp_path / "checkpoints/step_5/manifest.json").write_text("{}")
    told(tmp_path, 1, 1), told(tmp_path, 1, 1)
    assert len(requeued) == 4
    assert told(tmp_path, 1, 1) == 1 and len(requeued) == 4
    monkeypatch.delenv("SLURM_RESTART_COUNT")  # submitted again by hand
    told(tmp_path, 1, 1)
    assert len(requeued) == 5


@pytest.mark.parametrize(
    ("environment", "requeued"),
    [
        ({"SLURM_JOB_ID": "17"}, "17"),
        ({"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0"}, "17_0"),
        ({"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "2"}, "17_2"),
    ],
)
def test_an_array_task_requeues_itself_alone(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], requeued: str
) -> None:
    calls: list[list[str]] = []
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = subprocess.CompletedProcess([], 1, "", "no")
    monkeypatch.setattr(requeue.subprocess, "run", lambda words, **more: (calls.append(words), done)[1])
    with pytest.raises(SystemExit, match=f"could not requeue {requeued}: no"):
        requeue.requeue_self()
    assert calls == [["scontrol", "requeue", requeued]]


@pytest.mark.parametrize(("script", "variable"), [("pretrain_xl.sh", "RUN_DIR="), ("finetune_xl.sh", "RUNS=")])
def test_scripts_take_the_run_folder_from_the_environment_alone(tmp_path: Path, script: str, variable: str) -> None:
    words = ["bash", str(SCRIPTS / script), "sparsity.level=0.5", "run_dir=runs/other"]
    done = subprocess.run(words, env={"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path)}, capture_output=True)
    assert done.returncode == 2 and not done.stderr
    assert variable in done.stdout.decode() and len(done.stdout.splitlines()) == 1


def test_the_signal_saves_and_requeues(tmp_path: Path, requeued: list[bool]) -> None:
    ready = tmp_path / "ready"

    def send() -> None:
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=send).start()
    batch.main([str(tmp_path), sys.executable, "-c", WAIT, str(ready)])
    assert requeued == [True]
    assert '"outcome": "stopped"' in (tmp_path / "logs/attempts.jsonl").read_text()


@pytest.mark.parametrize(("heard", "requeues"), [("", 1), ("os.kill(os.getppid(), 15); ", 0)])
def test_a_stop_that_the_ranks_alone_heard_is_preemption(
    tmp_path: Path, requeued: list[bool], heard: str, requeues: int
) -> None:
    tell = TELL.replace("sys.exit", f"{heard}sys.exit")
    batch.main([str(tmp_path), sys.executable, "-c", tell, "75", "0"])
    assert len(requeued) == requeues
    assert '"outcome": "stopped"' in (tmp_path / "logs/attempts.jsonl").read_text()


@pytest.mark.parametrize(
    ("code", "ends", "rank_id"), [(0, 0, "0"), (75, 0, "0"), (3, 3, "0"), (75, 0, "1"), (2, 2, "1")]
)
def test_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, ends: int, rank_id: str) -> None:
    told_in = tmp_path / "exit_code"
    monkeypatch.setenv("RANK", rank_id)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["rank", f"--exit-file={told_in}", "pretrain", "x"])
    monkeypatch.setattr(rank, "main", lambda: code if sys.argv == ["rank", "pretrain", "x"] else 99)
    monkeypatch.setattr(rank, "SPEAK_SECONDS", 0.0)
    assert rank.run() == ends
    assert told_in.exists() == (rank_id == "0")
    if rank_id == "0":
        assert told_in.read_text() == f"{code}\n"
