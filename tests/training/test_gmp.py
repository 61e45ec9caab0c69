"""Gradual magnitude pruning in the whole trainer: the model is rebuilt at each level, in one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from spdf_command import read_metrics, run_spdf

from spdf_dist.checkpoint.read import Checkpoint

pytestmark = pytest.mark.slow  # each run of the trainer takes seconds

GMP = (
    "model.dropout=0",
    "sparsity.algorithm=gmp",
    "sparsity.schedule=linear",
    "sparsity.update={every: 3, stop: 10}",  # dense, then 25%, 50% and 75% after steps 3, 6 and 9 of 12
)


def pretrain(config: Path, run: Path, *overrides: str) -> dict[int, float]:
    done = run_spdf("pretrain", config, f"run_dir={run}", *GMP, *overrides)
    assert done.returncode == 0, done.stderr
    return {line["step"]: line["loss"] for line in read_metrics(run) if "loss" in line}


@pytest.fixture(scope="module")
def alone(tiny_config, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("gmp") / "run"
    pretrain(tiny_config, run, "parallel.data=1", "sparsity.execution=masked", "checkpoint.keep=20")
    return run


def test_each_level_keeps_the_largest_weights_of_the_one_before(alone):
    flops = [line["model_flops"] for line in read_metrics(alone) if "loss" in line]
    assert len(set(flops)) == 4 and flops == sorted(flops, reverse=True)
    levels = {}
    for step in (3, 6, 9, 12):
        checkpoint = Checkpoint(alone / "checkpoints" / f"step_{step}")
        levels[step] = 0.0 if checkpoint.sparsity is None else checkpoint.sparsity.level
    assert levels == {3: 0.0, 6: 0.25, 9: 0.5, 12: 0.75}
    before, after = (Checkpoint(alone / "checkpoints" / f"step_{step}") for step in (9, 12))
    for name in after.masks:
        weight, mask = before.read_array(name), after.masks[name]
        assert not (mask & ~before.masks[name]).any() and abs(mask.mean() - 0.25) < 1e-3
        assert np.abs(weight[mask]).min() >= np.abs(weight[before.masks[name] & ~mask]).max()
    assert after.manifest.optimizer == {"updates": 12}
    inspected = run_spdf("inspect", alone, "--json")
    assert inspected.returncode == 0, inspected.stderr
    assert abs(json.loads(inspected.stdout)["linear_sparsity"] - 0.75) < 1e-3


@pytest.mark.parametrize("step", [5, 6, 9])
def test_a_run_resumes_exactly_within_and_at_a_change(alone, tiny_config, tmp_path, step):
    shutil.copytree(alone, tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step_")) > step:
            shutil.rmtree(folder)
    how = ("parallel.data=1", "sparsity.execution=masked", "checkpoint.keep=20")
    again = pretrain(tiny_config, tmp_path / "run", *how)
    assert again == {line["step"]: line["loss"] for line in read_metrics(alone) if "loss" in line}


@pytest.mark.distributed
def test_other_layouts_and_executions_have_the_same_losses(alone, tiny_config, tmp_path):
    losses = pretrain(
        tiny_config, tmp_path / "run", "parallel.tensor=2", "parallel.data=2", "sparsity.execution=compressed"
    )
    expected = {line["step"]: line["loss"] for line in read_metrics(alone) if "loss" in line}
    assert losses == pytest.approx(expected, rel=1e-4)
