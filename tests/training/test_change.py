"""Runs continued with deliberately changed values: their computation and their records."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from in_process import ONE_RANK, STEP, losses, train
from spdf_command import read_metrics, run_spdf

from spdf_dist.base.rank_variables import Ranks
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.cli.start import start
from spdf_dist.config.errors import UserError
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def whole(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps at a constant rate, with checkpoints at 5, 10 and 12."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(tiny_config, run)
    return run


@pytest.fixture
def at_step_5(whole: Path, tmp_path: Path) -> Path:
    """The same run at step 5, with its later metrics still in the folder."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("checkpoints/step_10", "checkpoints/step_12"):
        shutil.rmtree(run / name)
    (run / "result.json").unlink()
    return run


def test_another_learning_rate_needs_permission_and_gives_what_a_branch_gives(
    at_step_5: Path, whole: Path, tiny_config: Path, tmp_path: Path
) -> None:
    lower = "training.lr=1e-3"
    with pytest.raises(UserError, match=r"training.lr: 0.005 -> 0.001\); choose another run_dir, or add --change"):
        train(tiny_config, at_step_5, lower)
    train(tiny_config, at_step_5, lower, change=True)
    branch = tmp_path / "branch"
    train(tiny_config, branch, lower, f"training.init_from={whole}/checkpoints/step_5", "training.reset=[]")
    changed, expected, before = losses(at_step_5), losses(branch), losses(whole)
    assert {step: changed[step] for step in range(6, 13)} == expected
    assert {step: changed[step] for step in range(1, 6)} == {step: before[step] for step in range(1, 6)}
    (record,) = RunFolder(at_step_5).change_history()
    assert (record["after_step"], record["changes"]) == (5, ["training.lr: 0.005 -> 0.001"])
    train(tiny_config, at_step_5, lower)  # from now on this is the run's config


def test_a_finished_run_can_be_given_more_tokens(whole: Path, tiny_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_config, run, f"training.train_tokens={8 * STEP}")
    assert (run / "result.json").exists()
    train(tiny_config, run, f"training.train_tokens={12 * STEP}", change=True)
    assert losses(run) == losses(whole)
    assert RunFolder(run).read_json("result.json")["steps"] == 12  # type: ignore[index]


def test_a_changed_batch_size_goes_on_with_the_next_sample_and_token(at_step_5: Path, tiny_config: Path) -> None:
    train(tiny_config, at_step_5, "training.global_batch_size=8", change=True)
    lines = [line for line in read_metrics(at_step_5) if "loss" in line]
    assert [line["consumed_tokens"] for line in lines[4:7]] == [5 * STEP, 5 * STEP + STEP // 2, 6 * STEP]
    assert lines[-1]["step"] == 5 + 14 and lines[-1]["consumed_tokens"] == 12 * STEP
    state = Checkpoint(at_step_5).manifest.state
    assert state["data_offset"] + 5 * 8 == 5 * 16


def test_what_changes_no_result_but_for_rounding_needs_no_permission(
    at_step_5: Path, whole: Path, tiny_config: Path
) -> None:
    free = ("training.micro_batch_size=8", "training.activation_checkpointing=true", "kernels.code_budget_mb=7")
    train(tiny_config, at_step_5, *free, "checkpoint.asynchronous=true")
    for step, ours in losses(at_step_5).items():
        assert ours == pytest.approx(losses(whole)[step], rel=1e-5)


@pytest.mark.parametrize("other", ["model.num_layers=3", "sparsity.level=0.5", "seed=7"])
def test_what_makes_another_run_cannot_be_changed(at_step_5: Path, tiny_config: Path, other: str) -> None:
    with pytest.raises(UserError, match="holds another run") as error:
        train(tiny_config, at_step_5, other, change=True)
    assert "--change" not in str(error.value)


def test_data_packed_anew_are_noticed(at_step_5: Path, tiny_config: Path) -> None:
    folder = RunFolder(at_step_5)
    known: Any = folder.read_json("data.json")
    known["digests"]["training"] = ["0" * 64]
    folder.write_json("data.json", known)
    with pytest.raises(UserError, match="began with other data: the training data have changed since"):
        train(tiny_config, at_step_5)
    train(tiny_config, at_step_5, change=True)
    assert folder.change_history()[-1]["changes"] == ["the training data: other content"]


def test_validation_data_that_are_training_data_are_a_warning(
    tiny_config: Path, tiny_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = (f"training.train_tokens={STEP}", "training.warmup_tokens=0")
    train(tiny_config, tmp_path / "apart", *short)
    assert "also training data" not in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(tiny_data.train, copy)
    train(tiny_config, tmp_path / "same", *short, f"data.validation={copy}")
    assert capsys.readouterr().err.count("WARNING: validation data that are also training data (1 data set)") == 1


def start_again(config: Path, run: Path, *overrides: str, change: bool = False) -> int:
    """The exit code of `spdf pretrain` for a complete run. Nothing may be trained."""

    def work(ranks: Ranks) -> None:
        raise AssertionError("it trains")

    loaded = load_config(PretrainConfig, str(config), [*ONE_RANK, *overrides, f"run_dir={run}"])
    return start("pretrain", [], loaded, work, change=change)


def test_a_complete_run_whose_inputs_have_changed_says_so(
    tiny_config: Path, tiny_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data, settings = tmp_path / "run", tmp_path / "packed", tmp_path / "more.json"
    shutil.copytree(tiny_data.train, data)
    settings.write_text("{}")
    keys = (f"data.train={data}", f"deepspeed={settings}", f"training.train_tokens={STEP}", "training.warmup_tokens=0")
    train(tiny_config, run, *keys)
    assert start_again(tiny_config, run, *keys) == 0
    assert capsys.readouterr().out == f"pretrain: {run} is complete already\n"

    settings.write_text("{ }")
    with pytest.raises(UserError, match="the settings in the DeepSpeed file have changed since"):
        start_again(tiny_config, run, *keys)
    settings.write_text("{}")
    shutil.rmtree(data)
    shutil.copytree(tiny_data.validation, data)  # other data under the same path
    with pytest.raises(UserError, match="began with other data: the training data have changed since"):
        start_again(tiny_config, run, *keys)
    assert start_again(tiny_config, run, *keys, change=True) == 0
    assert "has no steps left; since then the training data have changed" in capsys.readouterr().out
    (data / "index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index\.json"):
        start_again(tiny_config, run, *keys)
    shutil.rmtree(data)  # data may be deleted when the run is complete
    assert start_again(tiny_config, run, *keys) == 0


def test_another_checkpoint_under_the_path_that_a_run_began_from_is_a_warning(
    tiny_config: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, origin = tmp_path / "run", tmp_path / "origin"
    shutil.copytree(whole / "checkpoints/step_5", origin)
    keys = (f"training.init_from={origin}", "training.reset=[]", f"training.train_tokens={6 * STEP}")
    train(tiny_config, run, *keys)
    capsys.readouterr()
    assert start_again(tiny_config, run, *keys) == 0
    assert "WARNING" not in capsys.readouterr().err
    shutil.rmtree(origin)
    shutil.copytree(whole / "checkpoints/step_10", origin)
    said = f"training.init_from: {origin} is not the checkpoint that the run in {run} began with (step 5 of {origin})"
    assert start_again(tiny_config, run, *keys) == 0
    assert said in capsys.readouterr().err
    (run / "result.json").unlink()
    train(tiny_config, run, *keys)
    assert said in capsys.readouterr().err
    shutil.rmtree(origin)
    assert start_again(tiny_config, run, *keys) == 0
    assert "WARNING" not in capsys.readouterr().err


def test_rewind_goes_back_and_leaves_out_the_batches_that_hurt(whole: Path, tiny_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "result.json").unlink()
    with pytest.raises(UserError, match="step_4 does not exist"):
        train(tiny_config, run, rewind=4)
    train(tiny_config, run, rewind=5)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_10", "step_12", "step_5"]
    assert Checkpoint(run).manifest.state["data_offset"] == 7 * 16
    before, after = losses(whole), losses(run)
    assert after[5] == before[5] and after[6] != before[6] and sorted(after) == list(range(1, 13))
    (record,) = RunFolder(run).change_history()
    assert record["changes"] == ["rewound to step 5; the batches of steps 6 to 12 are skipped"]
    for name in ("step_10", "step_12"):
        shutil.rmtree(run / "checkpoints" / name)
    (run / "result.json").unlink()
    train(tiny_config, run)  # a later kill does not restore the batches
    assert losses(run) == after


def test_a_checkpoint_of_another_run_is_not_continued(
    at_step_5: Path, whole: Path, tiny_config: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    train(tiny_config, other, "training.lr=1e-3")
    shutil.copytree(other / "checkpoints/step_10", at_step_5 / "checkpoints/step_10")
    with pytest.raises(UserError, match=r"step_10 is a checkpoint of another run \(training\.lr: 0\.001 -> 0\.005\)"):
        train(tiny_config, at_step_5)
    train(tiny_config, at_step_5, change=True)
    assert RunFolder(at_step_5).change_history()[-1]["changes"] == ["training.lr: 0.001 -> 0.005"]


def test_a_rewind_deletes_no_copy_of_the_user(whole: Path, tiny_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.copytree(run / "checkpoints/step_12", run / "checkpoints/step_12.bak")
    with pytest.raises(UserError, match=r"step_12\.bak is a checkpoint of a later step: move it out"):
        train(tiny_config, run, rewind=5)
    assert len(list((run / "checkpoints").iterdir())) == 4


def test_inputs_under_the_same_path_are_compared(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}")
    old = {"training": ["a"], "validation": []}
    folder.keep_data(old)
    inputs = {**old, "tokenizer": ["b"], "deepspeed": ["c"], "checkpoint": ["d"]}
    folder.keep_data(inputs)  # a run of an older version, which did not record them
    for name, said in (
        ("tokenizer", "the files of the tokenizer"),
        ("deepspeed", "the settings in the DeepSpeed file"),
    ):
        with pytest.raises(UserError, match=f"{said} have changed since .*, or add --change"):
            folder.keep_data({**inputs, name: ["x"]})
    with pytest.raises(UserError, match="the checkpoint to start from have changed") as error:
        folder.keep_data({**inputs, "checkpoint": ["x"]}, change=True)
    assert "--change" not in str(error.value)
    folder.keep_data({**inputs, "tokenizer": ["x"]}, change=True)
    assert folder.change_history()[-1]["changes"] == ["the files of the tokenizer: other content"]


def test_a_finished_run_can_be_rewound_from_the_command_line(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    command = ("pretrain", whole / "config.yaml", f"run_dir={run}")
    done = run_spdf(*command, "--rewind", "4")
    assert done.returncode == 2 and "step_4 does not exist" in done.stderr
    done = run_spdf(*command, "--rewind", "10")
    assert done.returncode == 0 and "rewound to step 10" in done.stderr
    assert "complete already" in run_spdf(*command).stdout
