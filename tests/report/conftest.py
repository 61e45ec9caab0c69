from __future__ import annotations

from pathlib import Path

import pytest
from made_up_runs import write_workflow


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    return write_workflow(tmp_path / "demo")
