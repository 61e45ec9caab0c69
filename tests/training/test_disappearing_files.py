"""Training goes on when somebody deletes or renames files of its run, and ends with a run that is complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import ONE_RANK, STEP, train

from spdf_dist.checkpoint.find import latest
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.training.callbacks import MetricsFile, StepMetrics
from spdf_dist.training.run_folder import RunFolder

STEPS = 5


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("action", "warning"),
    [
        (lambda run: shutil.rmtree(run / "tensorboard"), "is no longer written: the file has been deleted"),
        (lambda run: (run / "metrics.jsonl").unlink(), ""),
        (
            lambda run: replace_by_folder(run / "metrics.jsonl"),
            "cannot be written: Is a directory; training continues",
        ),
        (lambda run: (run / "config.yaml").unlink(), "lacked config.yaml: written again"),
        (lambda run: shutil.rmtree(run / "tokenizer"), "lacked tokenizer: written again"),
        (lambda run: shutil.rmtree(run / "checkpoints"), ""),
        (lambda run: shutil.rmtree(run / "logs"), ""),
        (lambda run: run.rename(run.with_name("renamed")), "lacked config.yaml, data.json, tokenizer: written again"),
        (lambda run: shutil.rmtree(run), "lacked config.yaml, data.json, tokenizer: written again"),
    ],
    ids=["tensorboard", "metrics", "metrics a folder", "config", "tokenizer", "checkpoints", "logs", "renamed", "all"],
)
def test_training_ends_well_without_what_was_deleted(
    action: Callable[[Path], object],
    warning: str,
    tiny_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run, write = tmp_path / "run", MetricsFile.after_step

    def write_and_act(self: MetricsFile, metrics: StepMetrics, phases_ms: dict[str, float]) -> None:
        write(self, metrics, phases_ms)
        if metrics.step == 3:
            action(run)

    monkeypatch.setattr(MetricsFile, "after_step", write_and_act)
    overrides = ("checkpoint.interval=2", f"training.train_tokens={STEPS * STEP}")
    train(tiny_config, run, *overrides)
    said = capfd.readouterr().err
    assert warning in said and "Traceback" not in said
    if warning:
        assert said.count(warning) == 1
    found = latest(run / "checkpoints")
    assert found is not None and found.name == f"step_{STEPS}"
    config = load_config(PretrainConfig, str(tiny_config), [*ONE_RANK, *overrides, f"run_dir={run}"])
    assert RunFolder(run).is_complete(config)
