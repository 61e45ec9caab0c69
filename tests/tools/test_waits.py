"""The measurement of how long training waits, on a tiny run."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "waits.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("saves", r"a step of 16 sequences of 32 tokens: .* s\nsynchronous: .* per checkpoint, .*\nasynchronous: .*\n"),
        ("data", r"fast disk: .* ms per step\nslow disk, prefetched: .*\nslow disk, not prefetched: .*\n"),
    ],
)
def test_both_measurements_run(
    what: str,
    pattern: str,
    tiny_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = importlib.util.spec_from_file_location("waits", TOOL)
    assert spec is not None and spec.loader is not None
    waits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(waits)
    monkeypatch.chdir(tmp_path)
    words = [what, str(tiny_config), "--steps", "4", "--saves", "1", "--rounds", "1", "--delay", "0.01", "--processor"]
    monkeypatch.setattr(sys, "argv", ["waits.py", *words])
    waits.main()
    assert re.fullmatch(pattern, capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
