"""Dense fine-tuning of a sparse checkpoint: reactivation, fresh state, the loss's denominator, the best checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from spdf_command import read_metrics, run_spdf

PRUNED = 2 * 12 * 32 * 32 * 3 // 4
"""Of two layers with 12 d^2 linear weights each, at 75%."""


@pytest.fixture(scope="module")
def sparse_run(tiny_config, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("pretrained") / "run"
    short = ("training.train_tokens=1024", "training.warmup_tokens=0", "model.dropout=0")
    done = run_spdf("pretrain", tiny_config, f"run_dir={run}", *short)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def task_files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("task")
    for name, start, count in (("train", 0, 22), ("validation", 50, 6)):
        # Targets of very different lengths: a mean of means would weigh their tokens unequally.
        rows = [
            f'"name[House {n}], area[street {n % 7}]","The house {"and the house " * (n % 5)}has {n} windows."'
            for n in range(start, start + count)
        ]
        (folder / f"{name}.csv").write_text("mr,ref\n" + "\n".join(rows) + "\n")
    return folder / "train.csv", folder / "validation.csv"


def finetune(run: Path, sparse_run: Path, task_files: tuple[Path, Path], *overrides: str, code: int = 0) -> str:
    config = run.parent / f"{run.name}.yaml"
    config.write_text(
        f"""
device: cpu
finetune: {{checkpoint: {sparse_run}, train: {task_files[0]}, validation: {task_files[1]}, epochs: 2, warmup_steps: 2,
            dropout: 0}}
training: {{global_batch_size: 8, micro_batch_size: 2, lr: 3e-3}}
"""
    )
    done = run_spdf("finetune", config, f"run_dir={run}", *overrides)
    assert done.returncode == code, done.stderr
    return done.stderr


def test_pruned_weights_wake_up_and_the_best_checkpoint_stays(sparse_run, task_files, tmp_path):
    run = tmp_path / "run"
    log = finetune(run, sparse_run, task_files)
    assert f"{PRUNED:,} pruned weights reactivated" in log
    facts = json.loads((run / "finetune.json").read_text())
    assert facts["reactivated"] == PRUNED and facts["reactivated_norm"] > 0
    steps = [line for line in read_metrics(run) if "loss" in line]
    assert len(steps) == 6 and steps[-1]["lr"] == 0.0 and steps[1]["lr"] == pytest.approx(3e-3)
    assert steps[-1]["loss"] < steps[0]["loss"]
    validation = {line["step"]: line["val_loss"] for line in read_metrics(run) if "val_loss" in line}
    assert facts["best_step"] == min(validation, key=validation.__getitem__)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step_{facts['best_step']}"]
    inspected = json.loads(run_spdf("inspect", run, "--json").stdout)
    assert all(weight["sparsity"] == 0 for weight in inspected["weights"])
    assert "complete already" in run_spdf("finetune", run / "config.yaml", f"run_dir={run}").stdout


@pytest.mark.distributed
def test_the_loss_is_per_target_token_at_any_data_parallelism(sparse_run, task_files, tmp_path):
    finetune(tmp_path / "one", sparse_run, task_files)
    finetune(tmp_path / "two", sparse_run, task_files, "parallel.data=2")
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    for key in ("loss", "grad_norm", "val_loss", "consumed_tokens", "model_flops"):
        assert [x[key] for x in one if key in x] == pytest.approx([x[key] for x in two if key in x], rel=1e-4)


def test_a_kept_mask_stays_and_max_steps_ends_the_schedule(sparse_run, task_files, tmp_path):
    run = tmp_path / "run"
    short = ("finetune.max_steps=4", "finetune.warmup_steps=1")
    finetune(run, sparse_run, task_files, "finetune.keep_mask=true", "sparsity.execution=compressed", *short)
    steps = [line for line in read_metrics(run) if "loss" in line]
    assert [(line["step"], line["total_steps"]) for line in steps] == [(n, 4) for n in (1, 2, 3, 4)]
    assert steps[0]["lr"] == pytest.approx(3e-3) and steps[-1]["lr"] == 0.0
    assert [line["step"] for line in read_metrics(run) if "val_loss" in line] == [3, 4]
    inspected = json.loads(run_spdf("inspect", run, "--json").stdout)
    assert all(weight["sparsity"] == 0.75 and weight["pruned_nonzero"] == 0 for weight in inspected["weights"])
    assert json.loads((run / "finetune.json").read_text())["reactivated"] == 0


def test_wrong_input_is_one_line(sparse_run, task_files, tmp_path):
    for overrides, words in (
        (("finetune.checkpoint=nowhere",), "nowhere"),
        (("finetune.train=nowhere.csv",), "nowhere.csv"),
        (("finetune.task=e3e",), "e2e"),
        (("finetune.warmup_steps=99",), "warmup_steps"),
        (("finetune.max_steps=0",), "max_steps"),
        (("parallel.tensor=3",), "heads"),
    ):
        log = finetune(tmp_path / "run", sparse_run, task_files, *overrides, code=2)
        assert words in log and len(log.strip().splitlines()) == 1, log
        assert not (tmp_path / "run").exists()
