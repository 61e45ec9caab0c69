"""Progress bars when the system's clock is set, and where standard error is not a terminal."""

from __future__ import annotations

import io
import os
import time

import pytest

from spdf_dist.base.progress_bar import ProgressBar

HOUR = 3600.0


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("jump", [-HOUR, 10 * 365 * 24 * HOUR])
def test_a_jump_of_the_clock_neither_freezes_a_bar_nor_shows_in_its_times(jump, monkeypatch):
    jumped = []
    monkeypatch.setattr("tqdm.std.time", lambda: time.time() + sum(jumped))
    shown = Terminal()
    bar = ProgressBar(total=4, file=shown, mininterval=0.0, miniters=1)
    jumped.append(jump)
    for _ in range(3):
        bar.update()
    assert bar.format_dict["elapsed"] < 60
    bar.close()
    lines = shown.getvalue().split("\r")
    assert "3/4" in lines[-1] and "-" not in lines[-1] and "00:00" in lines[-1]


def test_a_file_gets_lines_and_only_from_long_work(capsys):
    shown = io.StringIO()
    with ProgressBar(total=4, desc="packing", file=shown, mininterval=0.0, delay=0.0, leave=False) as bar:
        for _ in range(4):
            bar.update()
    lines = shown.getvalue().splitlines()
    assert "\r" not in shown.getvalue() and "" not in lines
    assert lines[0].startswith("packing:   0%") and "4/4" in lines[-1]
    with ProgressBar(total=4) as bar:
        bar.update(4)
    assert capsys.readouterr().err == ""


def test_a_terminal_without_a_size_shows_the_bar():
    leader, follower = os.openpty()  # 0 columns, as in some containers
    terminal = os.fdopen(follower, "w")
    with (
        os.fdopen(leader, "rb", buffering=0) as shown,
        terminal,
        ProgressBar(total=1, desc="pack", file=terminal) as bar,
    ):
        bar.update()
        bar.refresh()
        text = shown.read(4096).decode()
    assert "pack:" in text
