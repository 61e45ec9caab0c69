"""Files appear only when complete, and links with the name of a temporary file are not followed."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from pathlib import Path

import pytest

from spdf_dist.base import atomic_files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    atomic_files.write_json(target, {"a": 1})
    atomic_files.write_json(target, {"a": 2})
    assert target.read_text() == '{\n "a": 2\n}\n'
    assert names(tmp_path) == ["a.json"]


def test_a_block_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_files.atomic_file(target) as file:
        file.write("new")
        raise ZeroDivisionError
    assert target.read_text() == "old" and names(tmp_path) == ["a"]


def test_names_are_unguessable_and_links_in_their_place_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert atomic_files.temporary_beside(tmp_path / "a") != atomic_files.temporary_beside(tmp_path / "a")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    trap = atomic_files.temporary_beside(tmp_path / "a")
    trap.symlink_to(victim)
    monkeypatch.setattr(atomic_files, "temporary_beside", lambda path: trap)
    with pytest.raises(FileExistsError):
        atomic_files.write_text(tmp_path / "a", "theirs")
    assert victim.read_text() == "mine"


def test_an_existing_file_can_be_protected(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    aside = tmp_path / "aside"
    aside.write_text("new")
    with pytest.raises(FileExistsError):
        atomic_files.rename_new(aside, target)
    assert target.read_text() == "old" and names(tmp_path) == ["a", "aside"]


def test_of_many_writers_of_a_new_file_one_wins(tmp_path: Path) -> None:
    target, won = tmp_path / "a", []

    def write(number: int) -> None:
        aside = tmp_path / f"aside-{number}"
        aside.write_text(f"{number}" * 1000)
        try:
            atomic_files.rename_new(aside, target)
            won.append(number)
        except FileExistsError:
            aside.unlink()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and target.read_text() == f"{won[0]}" * 1000 and names(tmp_path) == ["a"]


def test_a_folder_appears_whole_and_never_over_a_full_one(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic_files.atomic_folder(target) as aside:
        (aside / "x").write_text("1")
        assert not target.exists()
    with pytest.raises(OSError), atomic_files.atomic_folder(target) as aside:
        (aside / "x").write_text("2")
    assert (target / "x").read_text() == "1" and names(tmp_path) == ["folder"]


def test_a_folder_whose_name_cannot_be_forced_to_the_disk_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refuse_parent(handle: int) -> None:
        if os.path.samestat(os.fstat(handle), tmp_path.stat()):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        sync(handle)

    monkeypatch.setattr(os, "fsync", refuse_parent)
    with pytest.raises(OSError, match="quota"), atomic_files.atomic_folder(tmp_path / "new") as aside:
        (aside / "file").touch()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_fsync_of_folders_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fsync = os.fsync

    def refuse_folders(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    atomic_files.write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


def test_a_file_that_cannot_be_forced_to_the_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        atomic_files.write_text(tmp_path / "a", "x")
    assert not names(tmp_path)


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    atomic_files.temporary_beside(tmp_path / "a").write_text("half")
    atomic_files.temporary_beside(tmp_path / "b").mkdir()
    (tmp_path / "mine.tmp").write_text("kept")
    atomic_files.remove_temporaries(tmp_path)
    assert names(tmp_path) == ["mine.tmp"]


def test_the_remains_of_one_target_are_told_from_those_of_others(tmp_path: Path) -> None:
    long = ["a" * 60 + end for end in "12"]
    for name in ("a", "a.b", *long):
        atomic_files.temporary_beside(tmp_path / name).mkdir()
    (tmp_path / "victim").write_text("kept")
    atomic_files.temporary_beside(tmp_path / "a").symlink_to(tmp_path / "victim")
    atomic_files.remove_leftovers(tmp_path / "a")
    atomic_files.remove_leftovers(tmp_path / long[0])
    left = names(tmp_path)
    assert len(left) == 3 and "victim" in left and any(name.startswith(".a.b.") for name in left)
    atomic_files.remove_leftovers(tmp_path / long[1])
    assert len(names(tmp_path)) == 2


def test_a_folder_is_deleted_when_no_file_can_be_opened(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(OSError, match="Too many open files"), contextlib.ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        with atomic_files.atomic_folder(tmp_path / "made") as aside:
            (aside / "below").mkdir()
            (aside / "below" / "file").write_text("x")
            highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, before[1]))
            while True:
                opened.enter_context(Path(os.devnull).open())
    assert names(tmp_path) == []
