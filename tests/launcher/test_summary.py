"""The summary of a dry run before its list."""

from __future__ import annotations

from pathlib import Path

import pytest
from spdf_launcher import summary
from spdf_launcher.plan import plan
from spdf_launcher.workflow import load_workflow

from spdf_dist.accounting.flops import training_flops
from spdf_dist.config.budget import total_steps
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig


def test_a_summary_counts_jobs_flops_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flow.yaml").write_text(
        "variants: {dense: {}, s75: {sparsity.level: 0.75}}\n"
        "jobs:\n  pretrain: {kind: pretrain, config: cpu_1m, set: {training.train_tokens: 2560000}}\n"
        "  densified: {kind: densify, set: {checkpoint: '${jobs.pretrain.run_dir}'}}\n"
    )
    jobs = plan(load_workflow(str(tmp_path / "flow.yaml")), tmp_path / "work", ranks_from_launcher=False)
    model = load_config(PretrainConfig, "cpu_1m").model
    wanted = {job.id for job in jobs if job.id != "pretrain/dense"}
    monkeypatch.setattr(summary, "matrix_speed", lambda: 1e11)
    config = load_config(PretrainConfig, "cpu_1m", ["sparsity.level=0.75", "training.train_tokens=2560000"])
    sequences = total_steps(config) * config.training.global_batch_size
    flops = training_flops(model, config.sparsity) * sequences
    lines = summary.summary(jobs, wanted)
    assert lines[0].split() == ["pretrain", "1", "to", "run,", "1", "done"] and lines[1].split()[:2] == ["densify", "2"]
    assert lines[2] == f"pre-training: {flops:.3g} model FLOPs"
    assert summary.cost_of([job for job in jobs if job.id in wanted]).cpu_seconds == pytest.approx(flops / 4e10)
    assert "on this machine" in lines[3]


def test_the_speed_of_products_is_measured_in_a_moment() -> None:
    assert 1e8 < summary.matrix_speed(0.02) < 1e14
