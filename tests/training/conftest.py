"""Fixtures of the tests that fine-tune."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training and validation pairs of E2E: 22 and 6."""
    folder = tmp_path_factory.mktemp("task")
    for name, start, count in (("train", 0, 22), ("validation", 50, 6)):
        # Targets of very different lengths: a mean of means would weight their tokens unequally.
        rows = [
            f'"name[House {n}], area[street {n % 7}]","The house {"and the house " * (n % 5)}has {n} windows."'
            for n in range(start, start + count)
        ]
        (folder / f"{name}.csv").write_text("mr,ref\n" + "\n".join(rows) + "\n")
    return folder / "train.csv", folder / "validation.csv"
