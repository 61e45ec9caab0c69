"""A run that is killed, stopped, or moved to another topology resumes exactly."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from spdf_command import read_metrics, run_spdf, start_and_signal

RANKS = ("parallel.tensor=2", "sparsity.execution=compressed")


def numbers(run: Path) -> list[tuple]:
    return [(line["step"], line.get("loss"), line.get("grad_norm"), line.get("val_loss")) for line in read_metrics(run)]


@pytest.fixture(scope="module")
def uninterrupted(tiny_config, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    done = run_spdf("pretrain", tiny_config, f"run_dir={run}", *RANKS)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.distributed
def test_kill_9_in_mid_run_changes_no_bit(uninterrupted, tiny_config, tmp_path):
    run = tmp_path / "run"
    code, _ = start_and_signal(signal.SIGKILL, run, 7, "pretrain", tiny_config, f"run_dir={run}", *RANKS)
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
    first = ("pretrain", tiny_config, f"run_dir={moved}", *RANKS, "model.dropout=0")
    code, stderr = start_and_signal(signal.SIGTERM, moved, 2, *first)
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


@pytest.mark.distributed
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_with_divided_tokens_and_dropout_a_run_resumes_bit_for_bit_recomputed_or_not(family, tiny_config, tmp_path):
    run = tmp_path / "run"
    divided = [f"run_dir={run}", f"model.family={family}", *RANKS, "parallel.sequence=true"]
    done = run_spdf("pretrain", tiny_config, *divided)
    assert done.returncode == 0, done.stderr
    before = numbers(run)
    for step in (10, 12):
        shutil.rmtree(run / "checkpoints" / f"step_{step}")
    done = run_spdf("pretrain", tiny_config, *divided, "training.activation_checkpointing=true")
    assert done.returncode == 0 and "continues from step 5" in done.stderr, done.stderr
    assert numbers(run) == before
