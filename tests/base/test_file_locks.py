"""Locks, also where the file system refuses them."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time

import pytest

from spdf_dist.base import file_locks
from spdf_dist.base.file_locks import is_locked, try_lock, unlock
from spdf_dist.scoring import java

SHIM = """
#include <errno.h>
#include <stdlib.h>
int flock(int fd, int op) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""
HOLD = """
import sys, time
from pathlib import Path
from spdf_dist.base.file_locks import try_lock
print(try_lock(Path(sys.argv[1])) is not None, flush=True)
time.sleep(60)
"""


def test_one_holder_at_a_time_until_it_ends(tmp_path):
    held = try_lock(tmp_path / "lock")
    assert held is not None and is_locked(tmp_path / "lock") and try_lock(tmp_path / "lock") is None
    unlock(held)
    assert not is_locked(tmp_path / "lock")


@pytest.mark.parametrize("refusal", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_still_keeps_processes_of_one_machine_apart(refusal, tmp_path, monkeypatch, capfd):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "run/.lock"
    held = try_lock(path)
    assert held is not None
    warning = capfd.readouterr().err
    assert warning.count("\n") == 1 and "no file locks" in warning and str(path.parent) in warning
    assert is_locked(path) and try_lock(path) is None
    unlock(held)
    assert not is_locked(path)
    held = try_lock(path)
    assert held is not None
    unlock(held)
    assert [entry.name for entry in path.parent.iterdir()] == [".lock"]


def test_an_error_that_is_no_lack_of_locks_is_told(tmp_path, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output"):
        try_lock(tmp_path / "lock")


def refuse_locks(monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def no_links(*names, **how):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_holder_file_appears_with_its_content_so_that_no_clock_decides(links, tmp_path, monkeypatch):
    refuse_locks(monkeypatch)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    seen = []
    write = file_locks.json.dump

    def look_and_write(*content):
        seen.append([path.name for path in tmp_path.glob("*.holder")])
        write(*content)

    monkeypatch.setattr(file_locks.json, "dump", look_and_write)
    held = try_lock(tmp_path / "lock")
    assert held is not None and seen == [[]]
    for years in (-10, 10):
        monkeypatch.setattr(time, "time", lambda years=years: years * 365 * 86400.0)
        assert is_locked(tmp_path / "lock") and try_lock(tmp_path / "lock") is None
    unlock(held)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_an_empty_holder_file_of_an_older_version_or_a_full_disk_holds_nothing(tmp_path, monkeypatch):
    refuse_locks(monkeypatch)
    (tmp_path / ".lock.holder").touch()
    held = try_lock(tmp_path / "lock")
    assert held is not None
    unlock(held)


def test_a_holder_lives_on_when_its_machine_gets_another_name(tmp_path, monkeypatch):
    refuse_locks(monkeypatch)
    held = try_lock(tmp_path / "lock")
    assert held is not None
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
    assert is_locked(tmp_path / "lock") and try_lock(tmp_path / "lock") is None
    unlock(held)


def test_a_holder_is_found_without_proc(tmp_path, monkeypatch):
    refuse_locks(monkeypatch)
    monkeypatch.setattr(file_locks, "PROC", tmp_path / "proc")
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert file_locks.birth(os.getpid()) is not None and file_locks.birth(ended.pid) is None
    held = try_lock(tmp_path / "lock")
    assert held is not None and is_locked(tmp_path / "lock") and try_lock(tmp_path / "lock") is None
    unlock(held)


@pytest.fixture
def without_locks(tmp_path):
    """Variables under which a program's flock() fails with ENOSYS."""
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run(["c++", "-x", "c", "-shared", "-fPIC", "-o", tmp_path / "shim.so", tmp_path / "shim.c"], check=True)
    return {"LD_PRELOAD": str(tmp_path / "shim.so"), "FLOCK_ERRNO": str(errno.ENOSYS)}


def test_java_programs_keep_their_output_clean_without_locks(without_locks, monkeypatch):
    for name, value in without_locks.items():
        monkeypatch.setenv(name, value)
    assert java.ptb_tokenize(["A pub, by the river.", "It is cheap!"]) == ["a pub by the river", "it is cheap"]


def test_a_killed_holder_gives_way_without_locks(without_locks, tmp_path):
    environment = {**os.environ, **without_locks}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    answers = []
    for _ in range(2):
        holder = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        second = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for process in (holder, second):
            assert process.stdout is not None
            answers.append(process.stdout.readline())
        for process in (holder, second):
            process.kill()
            process.communicate()
    assert sorted(answers) == [b"False\n", b"False\n", b"True\n", b"True\n"]
