"""Dense fine-tuning with Muon and at ZeRO stage 3: parity, exact resume, the best checkpoint, other layouts."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import finetune_here, finetuning_config, losses, tensors, train
from spdf_command import read_metrics, run_spdf, start_and_signal

from spdf_dist.checkpoint.densify import densify
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.errors import Stopped
from spdf_dist.training.engine import Engine

LONG = ("training.lr=0.02", "finetune.epochs=5", "finetune.patience=5", "finetune.warmup_steps=5")
MUON = ("training.optimizer=muon", *LONG)
STEPS = 15
Files = tuple[Path, Path]


@pytest.fixture(scope="module")
def files(task_files: Files) -> Files:
    """The training pairs, and validation pairs of another style, whose loss is best in the middle of the run."""
    rows = [f'"name[House {n}], area[street {n}]","The {n}th house on the street has {n} windows."' for n in range(6)]
    validation = task_files[1].with_name("other.csv")
    validation.write_text("mr,ref\n" + "\n".join(rows) + "\n")
    return task_files[0], validation


@pytest.fixture(scope="module")
def dense(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that was pre-trained at 75% sparsity and then densified."""
    folder = tmp_path_factory.mktemp("dense")
    train(tiny_config, folder / "run", "training.train_tokens=1024", "training.warmup_tokens=0")
    return densify(folder / "run", folder / "dense").path


def stopped_in_step(number: int, run: Path, origin: Path, files: Files, *overrides: str) -> None:
    """Fine-tune in this process, which gets SIGTERM when its ``number``-th step begins."""
    step, steps = Engine.step, []

    def counted(self: Engine, *arguments: Any, **more: Any) -> Any:
        steps.append(None)
        if len(steps) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Engine, "step", counted)
        finetune_here(run, origin, files, *overrides)


def divided(run: Path, origin: Path, files: Files, *overrides: str) -> Path:
    """Fine-tune on ranks of their own."""
    done = run_spdf("finetune", finetuning_config(run, origin, files), f"run_dir={run}", *overrides)
    assert done.returncode == 0, done.stderr
    return run


def numbers(run: Path) -> list[dict[str, float]]:
    """The results of each line of the metrics."""
    keys = ("step", "loss", "grad_norm", "val_loss", "lr")
    return [{key: line[key] for key in keys if key in line} for line in read_metrics(run)]


def assert_close(run: Path, reference: Path) -> None:
    """Losses, gradient norms, rates and validation losses within 1e-4, and the same best step."""
    found, wanted = numbers(run), numbers(reference)
    assert len(found) == len(wanted)
    for one, two in zip(found, wanted, strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    assert best(run)["best_step"] == best(reference)["best_step"]


def best(run: Path) -> dict[str, Any]:
    """The result of a finished run, whose only checkpoint must be the best."""
    summary: dict[str, Any] = json.loads((run / "finetune.json").read_text())
    validation = {line["step"]: line["val_loss"] for line in read_metrics(run) if "val_loss" in line}
    assert summary["best_step"] == min(validation, key=validation.__getitem__)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step_{summary['best_step']}"]
    return summary


@pytest.fixture(scope="module")
def with_muon(dense: Path, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("muon") / "run"
    finetune_here(run, dense, files, *MUON)
    return run


@pytest.fixture(scope="module")
def at_stage_0(dense: Path, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("stage_0") / "run"
    finetune_here(run, dense, files, *LONG, "parallel.zero_stage=0")
    return run


def test_muon_resumes_exactly_and_keeps_the_best_checkpoint(
    with_muon: Path, dense: Path, files: Files, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stopped_in_step(4, run, dense, files, *MUON)
    assert max(losses(run)) < STEPS
    finetune_here(run, dense, files, *MUON)
    assert numbers(run) == numbers(with_muon)
    summary = best(run)
    assert (
        0 < summary["best_step"] < STEPS == summary["steps"]
        and summary["reactivated"] > 0 < summary["reactivated_norm"]
    )
    again, saved = tensors(run), Checkpoint(run).manifest
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors(with_muon).items())
    assert saved.optimizer == {"updates": summary["best_step"], "name": "muon"}
    assert "exp_avg_sq" not in saved.tensors["layers.0.W_Q"].slices


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["parallel.data=2", "parallel.tensor=2"])
def test_muon_fine_tunes_on_two_ranks_as_on_one(
    layout: str, with_muon: Path, dense: Path, files: Files, tmp_path: Path
) -> None:
    assert_close(divided(tmp_path / "run", dense, files, *MUON, layout), with_muon)


@pytest.mark.distributed
def test_a_run_with_muon_that_was_stopped_goes_on_in_another_layout(
    with_muon: Path, dense: Path, files: Files, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stopped_in_step(4, run, dense, files, *MUON, "parallel.zero_stage=0")
    divided(run, dense, files, *MUON, "parallel.tensor=2", "parallel.data=2")
    assert_close(run, with_muon)


@pytest.mark.distributed
def test_stage_3_on_two_ranks_fine_tunes_as_stage_0_on_one_and_resumes_exactly(
    at_stage_0: Path, dense: Path, files: Files, tmp_path: Path
) -> None:
    layout = (*LONG, "parallel.zero_stage=3", "parallel.data=2")
    through = divided(tmp_path / "through", dense, files, *layout)
    assert_close(through, at_stage_0)
    assert 0 < best(through)["best_step"] < STEPS

    run = tmp_path / "run"
    arguments = ("finetune", finetuning_config(run, dense, files), f"run_dir={run}", *layout)
    code, stderr = start_and_signal(signal.SIGTERM, run, 2, *arguments)
    assert code == 75 and max(losses(run)) < STEPS, stderr
    elsewhere = shutil.copytree(run, tmp_path / "elsewhere")
    divided(run, dense, files, *layout)
    assert numbers(run) == numbers(through)
    again = tensors(run)
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors(through).items())

    finetune_here(elsewhere, dense, files, *LONG, "parallel.zero_stage=0")
    assert_close(elsewhere, at_stage_0)


def test_stage_3_goes_on_from_stage_0_and_its_checkpoint_is_a_start_like_any_other(
    at_stage_0: Path, dense: Path, files: Files, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stopped_in_step(4, run, dense, files, *LONG, "parallel.zero_stage=0")
    finetune_here(run, dense, files, *LONG, "parallel.zero_stage=3")
    assert_close(run, at_stage_0)
    for start in (run, at_stage_0):
        finetune_here(tmp_path / f"next_{start.parent.name}", start, files, "parallel.zero_stage=3")
    ours, theirs = (losses(tmp_path / f"next_{start.parent.name}") for start in (run, at_stage_0))
    assert list(ours) == list(theirs)
    for step, line in theirs.items():
        assert ours[step] == pytest.approx(line, rel=1e-3)
