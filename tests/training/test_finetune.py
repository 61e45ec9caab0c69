"""Dense fine-tuning of a sparse checkpoint: reactivation, new state, denominator of the loss, best checkpoint."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from in_process import finetune_here, finetuning_config
from spdf_command import read_metrics, run_spdf, start_and_signal

from spdf_dist.accounting.parameters import total_parameters
from spdf_dist.checkpoint.densify import densify
from spdf_dist.checkpoint.manifest import global_shapes
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.checkpoint.write import single_writer, whole
from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import FinetuneConfig, ModelConfig
from spdf_dist.training.finetune import keep_best, reactivated_weights
from spdf_dist.training.inputs import compare_with_disk
from spdf_dist.training.run_folder import RunFolder
from spdf_dist.training.training_state import TrainingState

SMALL = ModelConfig(num_layers=1, hidden_size=4, num_attention_heads=1, seq_length=2, vocab_size=3)

PRUNED = 2 * 12 * 32 * 32 * 3 // 4
"""Two layers with 12 d^2 linear weights each, at 75%."""


@pytest.fixture(scope="module")
def sparse_run(tiny_config, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("pretrained") / "run"
    short = ("training.train_tokens=1024", "training.warmup_tokens=0", "model.dropout=0")
    done = run_spdf("pretrain", tiny_config, f"run_dir={run}", *short)
    assert done.returncode == 0, done.stderr
    return run


def finetune(run: Path, sparse_run: Path, task_files: tuple[Path, Path], *overrides: str, code: int = 0) -> str:
    """Run `spdf finetune` and return its stderr."""
    done = run_spdf("finetune", finetuning_config(run, sparse_run, task_files), f"run_dir={run}", *overrides)
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def finetuned(sparse_run, task_files, tmp_path_factory) -> tuple[Path, str]:
    """A fine-tuned run and its stderr."""
    run = tmp_path_factory.mktemp("finetuned") / "run"
    return run, finetune(run, sparse_run, task_files)


def test_pruned_weights_wake_up_and_the_best_checkpoint_stays(finetuned):
    run, log = finetuned
    assert f"{PRUNED:,} pruned weights reactivated" in log
    summary = json.loads((run / "finetune.json").read_text())
    assert summary["reactivated"] == PRUNED and summary["reactivated_norm"] > 0
    steps = [line for line in read_metrics(run) if "loss" in line]
    assert len(steps) == 6 and steps[-1]["lr"] == 0.0 and steps[1]["lr"] == pytest.approx(3e-3)
    assert steps[-1]["loss"] < steps[0]["loss"]
    validation = {line["step"]: line["val_loss"] for line in read_metrics(run) if "val_loss" in line}
    assert summary["best_step"] == min(validation, key=validation.__getitem__)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step_{summary['best_step']}"]
    inspected = json.loads(run_spdf("inspect", run, "--json").stdout)
    assert all(weight["sparsity"] == 0 for weight in inspected["weights"])
    assert "complete already" in run_spdf("finetune", run / "config.yaml", f"run_dir={run}").stdout


def test_a_complete_fine_tuning_whose_files_have_changed_says_so(finetuned, sparse_run, task_files, tmp_path):
    run, copies = tmp_path / "run", tuple(tmp_path / file.name for file in task_files)
    for file, copy in zip(task_files, copies, strict=True):
        shutil.copy(file, copy)
    shutil.copytree(finetuned[0], run)
    config = load_config(FinetuneConfig, str(finetuning_config(run, sparse_run, copies)), [f"run_dir={run}"])
    folder = RunFolder(run)
    assert compare_with_disk(folder, config) == []
    copies[0].write_bytes(task_files[0].read_bytes() + b"\n")
    with pytest.raises(UserError, match="the training data have changed since"):
        compare_with_disk(folder, config)
    assert compare_with_disk(folder, config, change=True) == ["the training data"]
    copies[0].unlink()
    assert compare_with_disk(folder, config) == []
    other = shutil.copytree(finetuned[0], tmp_path / "other")
    moved = replace(config, finetune=replace(config.finetune, checkpoint=str(other)))
    with pytest.raises(UserError, match="the contents of the checkpoint to start from have changed"):
        compare_with_disk(folder, moved, change=True)


@pytest.mark.distributed
def test_the_first_lines_name_the_run_s_size_time_and_data(finetuned):
    run, output = finetuned
    summary = json.loads((run / "finetune.json").read_text())
    assert summary["steps"] == 6
    tokens = read_metrics(run)[-2]["consumed_tokens"]
    parameters = total_parameters(Checkpoint(run).model)
    assert f"finetune: {parameters:,} parameters; 6 steps of {round(tokens / 6):,} tokens; " in output
    assert f" FLOPs per step, {summary['total_flops']:.3g} in all" in output
    assert f"finetune: complete after 6 steps; best checkpoint {run}/checkpoints/step_6\n" in output
    assert "finetune: at least " in output and "finetune: a micro-batch took " in output
    assert f"finetune: trains on 22 pairs with {tokens // 2:,} target tokens for 2 epochs of 3 steps; " in output
    assert "finetune: validates on 6 pairs at most 2 times: " in output


def test_the_dry_run_tells_what_the_run_tells(finetuned, sparse_run, task_files, tmp_path):
    run, output = finetuned
    config = finetuning_config(tmp_path / "run", sparse_run, task_files)
    dry = run_spdf("finetune", config, f"run_dir={tmp_path / 'run'}", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert not (tmp_path / "run").exists()
    for line in output.splitlines():
        if line.startswith(("finetune: trains on ", "finetune: validates ")):
            assert line.removeprefix("finetune: ").split(" at least ")[0] in dry.stdout
    steps = [line for line in read_metrics(run) if "loss" in line]
    assert f"{steps[-1]['consumed_tokens']:,} in 6 steps" in dry.stdout and "at least " in dry.stdout
    assert f"checkpoint: {sparse_run}" in dry.stdout and "memory per rank (CPU)" in dry.stdout

    summary = json.loads(run_spdf("finetune", config, "parallel.data=2", "--dry-run", "--json").stdout)
    assert summary["total_flops"] == steps[-1]["total_flops"]
    assert summary["train_tokens"] == steps[-1]["consumed_tokens"]
    assert (summary["pairs"], summary["epochs"], summary["steps_per_epoch"], summary["warmup_steps"]) == (22, 2, 3, 2)
    assert summary["parameters"] == summary["nonzeros"] == total_parameters(Checkpoint(run).model)
    assert summary["layout"]["data"] == 2 and summary["communication_bytes_per_step"]["data_sent"] > 0
    wrong = run_spdf("finetune", config, "finetune.checkpoint=nowhere", "--dry-run")
    assert wrong.returncode == 2 and "nowhere" in wrong.stderr


def test_the_loss_is_per_target_token_at_any_data_parallelism_with_dropout(sparse_run, task_files, tmp_path):
    finetune(tmp_path / "one", sparse_run, task_files, "finetune.dropout=0.1")
    finetune(tmp_path / "two", sparse_run, task_files, "finetune.dropout=0.1", "parallel.data=2")
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    for key in ("loss", "grad_norm", "val_loss", "consumed_tokens", "model_flops"):
        assert [x[key] for x in one if key in x] == pytest.approx([x[key] for x in two if key in x], rel=1e-4)


@pytest.mark.distributed
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_divided_tokens_fine_tune_as_one_rank_does_and_repeat_themselves(family, tiny_config, task_files, tmp_path):
    origin = tmp_path / "pretrained"
    short = ("training.train_tokens=1024", "training.warmup_tokens=0", f"model.family={family}")
    done = run_spdf("pretrain", tiny_config, f"run_dir={origin}", *short)
    assert done.returncode == 0, done.stderr
    divided = ("parallel.tensor=2", "parallel.sequence=true")
    long = ("finetune.epochs=7", "finetune.patience=7", "checkpoint.interval=2", "checkpoint.keep=99")
    finetune(tmp_path / "one", origin, task_files, *long)
    finetune(tmp_path / "two", origin, task_files, *long, *divided)
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert one[-1]["step"] == 21
    for key in ("loss", "grad_norm", "val_loss", "consumed_tokens", "model_flops"):
        assert [x[key] for x in one if key in x] == pytest.approx([x[key] for x in two if key in x], rel=1e-4)

    dropped = (*long, *divided, "finetune.dropout=0.1")
    finetune(tmp_path / "dropped", origin, task_files, *dropped)
    stopped = tmp_path / "stopped"
    arguments = ("finetune", finetuning_config(stopped, origin, task_files), f"run_dir={stopped}", *dropped)
    code, stderr = start_and_signal(signal.SIGTERM, stopped, 3, *arguments)
    assert code == 75 and read_metrics(stopped)[-1]["step"] < 21, stderr
    finetune(stopped, origin, task_files, *dropped)

    def numbers(run: Path) -> list[tuple]:
        return [tuple(x.get(key) for key in ("step", "loss", "grad_norm", "val_loss")) for x in read_metrics(run)]

    assert numbers(stopped) == numbers(tmp_path / "dropped") != numbers(tmp_path / "two")


def test_only_weights_that_a_mask_kept_at_zero_are_reactivated(sparse_run, finetuned, tmp_path):
    dense = densify(sparse_run, tmp_path / "dense").path
    again = densify(finetuned[0], tmp_path / "again").path
    counts = [reactivated_weights(Checkpoint(path)) for path in (sparse_run, dense, finetuned[0], again)]
    assert counts == [PRUNED, PRUNED, 0, 0]


DISK_IS_FULL = """
import sys
from spdf_dist.cli.main import main
from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.training import run
from spdf_dist.training.saving import Saver

real = Saver.save

def save(self, state, *, wait):
    if state.step == 3:
        raise SpdfError("checkpoint step_3 was not saved: No space left on device")
    return real(self, state, wait=wait)

def prune(*arguments):
    raise OSError("not allowed")

Saver.save, run.prune = save, prune
sys.exit(main())
"""
"""`spdf` with a failing save of the third step, and without deletions during the run."""


def test_the_best_step_s_save_fails_and_the_best_that_was_saved_stays(sparse_run, task_files, tmp_path):
    run = tmp_path / "run"
    rising = ("training.lr=0.15", "finetune.warmup_steps=5")
    arguments = ["finetune", str(finetuning_config(run, sparse_run, task_files)), f"run_dir={run}", *rising]
    done = subprocess.run([sys.executable, "-c", DISK_IS_FULL, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    log = done.stderr
    losses = {line["step"]: line["val_loss"] for line in read_metrics(run) if "val_loss" in line}
    assert losses[3] < losses[6]
    assert "step 3 had the best validation loss" in log and "was not saved; the best saved one is none yet" in log
    assert "an old checkpoint was not deleted: not allowed" in log and "Traceback" not in log
    summary = json.loads((run / "finetune.json").read_text())
    assert (summary["best_step"], summary["best_val_loss"]) == (6, losses[6])
    assert Checkpoint(run).step == 6


def checkpoint_of(root: Path, step: int, loss: float | None, best_step: int) -> None:
    """A complete checkpoint with a training state."""
    state = vars(TrainingState(step=step, best_val_loss=loss, best_step=best_step))
    single_writer(root / f"step_{step}", step).write(
        (
            ("model", whole(name, torch.zeros(shape)), torch.zeros(shape))
            for name, shape in global_shapes(SMALL).items()
        ),
        masks=None,
        config_yaml="",
        tokenizer=None,
        manifest={"kind": "finetune", "model": asdict(SMALL), "sparsity": None, "state": state},
    )


def test_nothing_is_deleted_for_a_best_checkpoint_that_is_gone(tmp_path, capsys):
    for step, loss, best_step in ((2, 5.0, 2), (4, 4.0, 4), (5, 4.0, 4), (6, 3.0, 6), (7, 3.0, 6)):
        checkpoint_of(tmp_path, step, loss, best_step)
    shutil.rmtree(tmp_path / "step_6")
    shutil.copytree(tmp_path, tmp_path / "unknown", ignore=shutil.ignore_patterns("step_2", "step_4"))
    state = TrainingState(step=7, best_val_loss=3.0, best_step=6)
    assert keep_best(tmp_path / "unknown", replace(state)) == str(tmp_path / "unknown" / "step_7")
    assert sorted(path.name for path in (tmp_path / "unknown").iterdir()) == ["step_5", "step_7"]
    assert "the newest, step_7, is kept" in capsys.readouterr().err
    assert keep_best(tmp_path, state) == str(tmp_path / "step_4")
    assert (state.best_step, state.best_val_loss) == (4, 4.0)
    assert (
        "the best checkpoint, step_6, is missing or damaged; the best of the others, step_4, is kept"
        in capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_4"]
    with pytest.raises(SpdfError, match="no longer holds a complete checkpoint"):
        keep_best(tmp_path / "nowhere", state)


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
    dense = densify(sparse_run, tmp_path / "dense").path
    for overrides, words in (
        (
            (f"finetune.checkpoint={dense}", "finetune.keep_mask=true"),
            "is dense: start from the sparse checkpoint",
        ),
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


def test_another_checkpoint_under_the_same_path_is_not_continued_with(sparse_run, task_files, tmp_path):
    run, origin = tmp_path / "run", tmp_path / "origin"
    shutil.copytree(sparse_run, origin)
    finetune_here(run, origin, task_files, "finetune.max_steps=2", "finetune.warmup_steps=1")
    shutil.rmtree(origin)
    shutil.copytree(run / "checkpoints", origin)
    (run / "result.json").unlink()
    with pytest.raises(UserError, match="the contents of the checkpoint to start from have changed"):
        finetune_here(run, origin, task_files, "finetune.max_steps=2", "finetune.warmup_steps=1")
