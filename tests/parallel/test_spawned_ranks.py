"""Ranks that the program starts itself: signals, logs, and the rank that reports a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spdf_dist.cli.main import main
from spdf_dist.config.errors import UserError
from spdf_dist.parallel.ranks import free_port, run_ranks

FAIL = """
import os, signal, sys, time
from spdf_dist.parallel.ranks import should_report_error
rank = int(os.environ["RANK"])
def fail(line, code):
    if should_report_error(line, code):
        print(line, file=sys.stderr, flush=True)
    sys.exit(code)
"""


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("fail('the shard is damaged', 2) if rank == 1 else time.sleep(0.5) or sys.exit(1)", 2, "the shard is damaged"),
        ("time.sleep(0.2 * rank); fail('no such key', 2)", 2, "no such key"),
        ("time.sleep(0.2 * (1 - rank)); fail('no such key', 2)", 2, "no such key"),
        ("1 / 0 if rank == 1 else time.sleep(0.5) or sys.exit(1)", 1, "rank 1 ended with exit code 1, see LOG"),
        (
            "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(0.5) or sys.exit(1)",
            137,
            "rank 1 was killed by SIGKILL, see LOG",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == 0 else time.sleep(60)", 137, "rank 0 was killed by SIGKILL"),
    ],
    ids=["one finds it", "all, 0 first", "all, 1 first", "traceback", "killed", "0 killed"],
)
def test_the_terminal_says_once_why_a_job_failed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], script: str, code: int, said: str
) -> None:
    assert run_ranks([sys.executable, "-c", FAIL + script], 2, tmp_path) == code
    assert capfd.readouterr().err == said.replace("LOG", str(tmp_path / "rank_1.log")) + "\n"


def test_a_log_that_cannot_be_written_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    script = f"open({str(tmp_path / 'started')!r}, 'w')"
    with pytest.raises(UserError, match=r"cannot write to .*file/logs: Not a directory"):
        run_ranks([sys.executable, "-c", script], 2, tmp_path / "file" / "logs")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("taken", "message"),
    [("notes.txt", "is not empty and holds no run"), (None, "is not a folder")],
    ids=["folder", "file"],
)
def test_a_run_dir_that_is_taken_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], taken: str | None, message: str
) -> None:
    run_dir = tmp_path / "mine"
    if taken:
        run_dir.mkdir()
    (run_dir / taken if taken else run_dir).write_text("not a run's")
    before = sorted(tmp_path.rglob("*"))
    arguments = [f"run_dir={run_dir}", "parallel.data=2", "data.train=nowhere", "device=cpu"]
    assert main(["pretrain", "cpu_4m", *arguments]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "--help"]])
def test_help_into_a_closed_pipe(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "spdf_dist", *words]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


PARENT = """
import sys
from pathlib import Path
from spdf_dist.parallel.ranks import run_ranks
sys.exit(run_ranks([sys.executable, "-c", sys.argv[1]], 2, Path("logs")))
"""
RANK = """
import os, signal, sys, time
from pathlib import Path
from spdf_dist.parallel.ranks import follow_parent
def stop(number, frame):
    Path("stopped_" + os.environ["RANK"]).write_text(signal.Signals(number).name)
    sys.exit(75)
Path("began_" + os.environ["RANK"]).touch()
time.sleep(DELAY)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, stop)
follow_parent()
Path("ready_" + os.environ["RANK"]).touch()
time.sleep(30)
"""
STOPPED = {"stopped_0": "SIGTERM", "stopped_1": "SIGTERM"}


def start_parent(folder: Path, *before: str, delay: float = 0.0) -> subprocess.Popen[bytes]:
    """Start a process with two ranks in ``folder``. ``before`` is a prefix of its command."""
    words = [*before, sys.executable, "-c", PARENT, RANK.replace("DELAY", str(delay))]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(folder: Path, name: str) -> dict[str, str]:
    """The contents of both ranks' files with this name, after waiting for them."""
    end = time.monotonic() + 20
    while len(found := list(folder.glob(f"{name}_?"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.05)
    return {path.name: path.read_text() for path in found}


@pytest.mark.parametrize(
    ("number", "expected"),
    [("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGTERM"), ("SIGINT", "SIGTERM"), ("SIGUSR1", "SIGUSR1")],
)
def test_signals_go_on_to_the_ranks(tmp_path: Path, number: str, expected: str) -> None:
    parent = start_parent(tmp_path)
    wait_for(tmp_path, "ready")
    parent.send_signal(signal.Signals[number])
    parent.wait(20)
    assert parent.returncode == 75
    assert wait_for(tmp_path, "stopped") == dict.fromkeys(STOPPED, expected)


def test_a_signal_waits_until_a_rank_can_handle_it(tmp_path: Path) -> None:
    parent = start_parent(tmp_path, delay=0.5)
    wait_for(tmp_path, "began")
    parent.send_signal(signal.SIGTERM)
    parent.wait(20)
    assert parent.returncode == 75 and wait_for(tmp_path, "stopped") == STOPPED


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
@pytest.mark.parametrize("when", ["ready", "began"])
def test_ranks_stop_when_the_process_that_started_them_is_killed(tmp_path: Path, when: str) -> None:
    parent = start_parent(tmp_path, delay=0.5)
    wait_for(tmp_path, when)
    parent.kill()
    parent.wait()
    assert wait_for(tmp_path, "stopped") == STOPPED


def test_nohup_is_kept(tmp_path: Path) -> None:
    parent = start_parent(tmp_path, "nohup")
    wait_for(tmp_path, "ready")
    parent.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert parent.poll() is None and not list(tmp_path.glob("stopped_*"))
    parent.terminate()
    parent.wait(20)
    assert parent.returncode == 75


COMMAND = """
import os, signal, sys, time
from types import SimpleNamespace
from spdf_dist.cli import main as cli
from spdf_dist.config.errors import UserError
def run(args):
    BODY
module = SimpleNamespace(HELP="", configure=lambda parser: None, run=run)
cli.entry_points = lambda: {"pretrain": SimpleNamespace(load=lambda: module)}
sys.exit(cli.main(["pretrain"]))
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_before_the_first_step_is_a_stop(number: str) -> None:
    body = f"os.kill(os.getpid(), signal.{number}); time.sleep(30)"
    done = subprocess.run([sys.executable, "-c", COMMAND.replace("BODY", body)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "spdf pretrain: stopped before the first step; run it again\n"


JOIN = """import torch.distributed as dist
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    """


@pytest.mark.distributed
@pytest.mark.parametrize("finds", ["rank == 1", "True"], ids=["one", "all"])
def test_under_a_launcher_one_rank_says_why(finds: str) -> None:
    body = f"{JOIN}if {finds}: raise UserError('the shard is damaged')\n    dist.barrier()"
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND.replace("BODY", body)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = "".join(process.communicate(timeout=100)[1] for process in processes)
    assert [process.returncode for process in processes] == [2, 2], said
    assert said == "spdf pretrain: the shard is damaged\n"
