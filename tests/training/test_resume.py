"""A run that is killed, stopped, or moved to another topology resumes exactly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from spdf_command import read_metrics, run_spdf

RANKS = ("parallel.tensor=2", "sparsity.execution=compressed")


def numbers(run: Path) -> list[tuple]:
    return [(line["step"], line.get("loss"), line.get("grad_norm"), line.get("val_loss")) for line in read_metrics(run)]


@pytest.fixture(scope="module")
def uninterrupted(tiny_config, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    done = run_spdf("pretrain", tiny_config, f"run_dir={run}", *RANKS)
    assert done.returncode == 0, done.stderr
    return run


def start_and_signal(config: Path, run: Path, number: int, after_step: int, *overrides: str) -> tuple[int, str]:
    """Start a run, send a signal once a step is logged, and wait. Returns exit code and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "spdf_dist", "pretrain", str(config), f"run_dir={run}", *RANKS, *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_text().count('"loss"') >= after_step:
            break
        time.sleep(0.01)
    if number == signal.SIGKILL:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=200)
    return process.returncode, stderr


@pytest.mark.distributed
def test_kill_9_in_mid_run_changes_no_bit(uninterrupted, tiny_config, tmp_path):
    run = tmp_path / "run"
    code, _ = start_and_signal(tiny_config, run, signal.SIGKILL, after_step=7)
    assert code != 0
    assert read_metrics(run)[-1]["step"] < 12
    done = run_spdf("pretrain", tiny_config, f"run_dir={run}", *RANKS)
    assert done.returncode == 0, done.stderr
    assert "continues from step 5" in done.stderr
    assert numbers(run) == numbers(uninterrupted)


@pytest.mark.distributed
def test_sigterm_saves_and_the_run_goes_on_at_another_topology_and_execution(tiny_config, tmp_path):
    moved, whole = tmp_path / "moved", tmp_path / "whole"
    # Without dropout, because the dropped attention weights depend on the division of heads.
    code, stderr = start_and_signal(tiny_config, moved, signal.SIGTERM, 2, "model.dropout=0")
    assert code == 75, stderr
    assert "after saving" in stderr
    stopped_at = read_metrics(moved)[-1]["step"]
    assert (moved / "checkpoints" / f"step_{stopped_at}" / "manifest.json").is_file()
    other = ("model.dropout=0", "sparsity.execution=masked", "parallel.data=2")
    done = run_spdf("pretrain", tiny_config, f"run_dir={moved}", *other)
    assert done.returncode == 0, done.stderr
    assert f"continues from step {stopped_at} " in done.stderr
    assert run_spdf("pretrain", tiny_config, f"run_dir={whole}", *other[:2]).returncode == 0
    for ours, theirs in zip(numbers(moved), numbers(whole), strict=True):
        assert [x for x in ours if x is not None] == pytest.approx([x for x in theirs if x is not None], rel=1e-4)


@pytest.mark.distributed
def test_ranks_whose_slice_keeps_nothing_save_and_continue(tiny_config, tmp_path):
    run = tmp_path / "run"
    blocks = (f"run_dir={run}", *RANKS, "sparsity.pattern=block:16")  # one of four blocks is kept, on one of two ranks
    done = run_spdf("pretrain", tiny_config, *blocks)
    assert done.returncode == 0, done.stderr
    before = numbers(run)
    for step in (10, 12):
        shutil.rmtree(run / "checkpoints" / f"step_{step}")
    done = run_spdf("pretrain", tiny_config, *blocks)
    assert done.returncode == 0 and "continues from step 5" in done.stderr, done.stderr
    assert numbers(run) == before


@pytest.mark.distributed
def test_a_llama_with_divided_tokens_continues_on_one_rank(tiny_config, tmp_path):
    run = tmp_path / "run"
    llama = [f"run_dir={run}", "model.family=llama", "model.num_key_value_heads=2", "model.tie_embeddings=false"]
    llama += ["model.dropout=0", "sparsity.execution=compressed"]
    done = run_spdf("pretrain", tiny_config, *llama, "parallel.tensor=2", "parallel.sequence=true")
    assert done.returncode == 0, done.stderr
    before = numbers(run)
    for step in (10, 12):
        shutil.rmtree(run / "checkpoints" / f"step_{step}")
    done = run_spdf("pretrain", tiny_config, *llama)
    assert done.returncode == 0 and "continues from step 5" in done.stderr, done.stderr
    for ours, theirs in zip(numbers(run), before, strict=True):
        assert [x for x in ours if x is not None] == pytest.approx([x for x in theirs if x is not None], rel=1e-4)
