"""Only one process writes an output. Errors are one line. Signals leave no partial output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spdf_dist.base.claims import claimed
from spdf_dist.cli.main import main, one_line
from spdf_dist.config.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from spdf_dist.base.claims import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hears(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def spdf(*words: object) -> list[str]:
    return [sys.executable, "-m", "spdf_dist", *map(str, words)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": f"document {n} tells of {n * n} and of {n % 7} other things"}) for n in range(400)]
    path.write_text("\n".join(lines))
    return path


def test_the_second_process_is_told(tmp_path: Path) -> None:
    target = tmp_path / "new/folder/out"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, target], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="another process is writing it"), claimed(target):
        pass
    holder.kill()
    holder.communicate()
    with claimed(target):  # the claim of a killed process is void
        target.write_text("whole")
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_failure_leaves_no_folder_and_no_lock(tmp_path: Path) -> None:
    with pytest.raises(ValueError), claimed(tmp_path / "a/b/out"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="is a link"), claimed(tmp_path / "out"):
        pass
    assert not (tmp_path / "victim").exists()


def test_devices_and_folders_where_nothing_can_be_written_have_no_claim() -> None:
    for path in ("/dev/null", "/dev/stdout", "/", "/proc/no/such/place"):
        with claimed(Path(path)):
            pass


@pytest.mark.parametrize("command", ["tokenizer", "pack"])
def test_of_two_that_make_one_thing_one_wins_and_it_is_whole(command: str, texts: Path, tiny_data, tmp_path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / ("t.model" if command == "tokenizer" else "packed")
    words: tuple[object, ...] = ("data", "tokenizer", "train", "--input", texts, "--vocab-size", 320, "--out", out)
    if command == "pack":
        words = ("data", "pack", "--input", texts, "--tokenizer", tiny_data.tokenizer, "--out", out, "--seq-len", 16)
        words += ("--workers", 1)
    for _ in range(3):
        racers = [subprocess.Popen(spdf(*words), stderr=subprocess.PIPE, text=True) for _ in range(3)]
        ends = [(racer.communicate()[1].replace("\r", "\n"), racer.returncode) for racer in racers]
        assert 0 in [code for _, code in ends]
        for said, code in ends:
            assert code == 0 or (code == 2 and "another process is writing it" in said.strip().splitlines()[-1])
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
        assert subprocess.run(spdf(*words), capture_output=True).returncode == 0  # a repetition does nothing
        subprocess.run(["rm", "-r", out], check=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
@pytest.mark.parametrize("after", [0.0, 0.1, 0.3, 1.0])
def test_a_signal_at_any_moment_leaves_nothing(number: int, after: float, texts: Path, tmp_path: Path) -> None:
    texts.write_text("\n".join([texts.read_text()] * 3000))
    words = ("data", "tokenizer", "train", "--input", texts, "--vocab-size", 320, "--out", tmp_path / "new/t.model")
    process = subprocess.Popen(spdf(*words), stderr=subprocess.PIPE, text=True)
    while not hears(process.pid, signal.SIGTERM):
        time.sleep(0.01)
    time.sleep(after)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said == f"spdf data: stopped by {signal.Signals(number).name}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["text.jsonl"]


def test_names_with_line_ends_stay_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = "no\nsuch\x1b[31m\u2028thing"
    for words in ([bad], ["inspect", bad], ["pretrain", bad], ["pretrain", "gpt2_small", f"{bad}=1"], ["inspect"]):
        code = main(words) if words != ["inspect"] else 2
        assert code == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == (1 if words != ["inspect"] else 0) and "\x1b" not in said
    assert one_line("a\tb\x00é") == "a\\tb\\x00é"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_exit_2_everywhere(texts: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    for words in (("data", "tokenizer", "train", "--input", texts, "--vocab-size", 320, "--out", closed / "t.model"),):
        done = subprocess.run(spdf(*words), capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
