"""Files of hypotheses and references."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from spdf_dist.config.errors import UserError
from spdf_dist.data.tasks.write import check_place, write_lines


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # otherwise opening for writing would wait for a reader
    try:
        for path in (pipe, link):
            check_place(path)
            write_lines(path, ["one", "two"])
            assert stat.S_ISFIFO(pipe.lstat().st_mode)
            assert os.read(end, 100) == b"one\ntwo\n"
    finally:
        os.close(end)
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file, link = tmp_path / "there" / "hyps", tmp_path / "link"
    link.symlink_to(file)
    for text in ("first", "second"):  # the link is dangling at first
        check_place(link)
        write_lines(link, [text])
        assert link.is_symlink() and file.read_text() == f"{text}\n"
    assert [path.name for path in file.parent.iterdir()] == ["hyps"]


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UserError, match="in a circle"):
        check_place(tmp_path / "a")
