"""A short form of `make chaos`, in less than a minute: some faults of every part."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.fuzz import kinds
from chaos.mutations import mutate

SEED = 20


@pytest.mark.slow
def test_the_campaign_s_short_form(tmp_path: Path) -> None:
    report = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "chaos", "--minutes", "5", "--fuzzed", "6", "--most", "6", "--seed", str(SEED)]
    done = subprocess.run(
        [*command, "--json", str(report)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["seed"] == SEED and found["fuzz"]["tried"] == 6 * len(kinds())
    assert found["kills"]["counts"]["kills"] >= 1 and found["signals"]["counts"]["signals"] >= 1
    assert sum(found["races"]["counts"].values()) >= 1 and sum(found["limits"]["counts"].values()) >= 1
    assert found["refusals"]["counts"]["refusals"] >= 1


def test_damage_is_drawn_from_the_seed_alone() -> None:
    content = b'{"step": 27, "name": "x"}' * 10
    drawn = [mutate(content, random.Random(f"{seed}")) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
