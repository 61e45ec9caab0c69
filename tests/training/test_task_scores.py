"""Scores of lm-evaluation-harness during a run are those of `spdf eval` of the same checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from in_process import STEP, losses, train
from spdf_command import read_metrics, run_spdf

from spdf_dist.base.rank_variables import discover, without_ranks
from spdf_dist.cli.main import main
from spdf_dist.config.errors import UserError
from spdf_dist.training import task_scores
from spdf_dist.training.task_scores import TaskScores

TASK = """
task: held_out
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""


@pytest.fixture
def how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Config keys of a run of 6 steps that is scored with a task over a local file every 4 steps."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "held_out.jsonl"
    data.write_text("".join(json.dumps({"text": f"The {n}th house has {n} windows."}) + "\n" for n in range(6)))
    (folder / "held_out.yaml").write_text(TASK.format(data=data))
    options = f"callbacks.eval={{tasks: [held_out], every: 4, include_path: {folder}}}"
    return (options, "checkpoint.interval=2", f"training.train_tokens={6 * STEP}")


def scores(run: Path) -> dict[int, float]:
    """The logged score by step."""
    lines = [line for line in read_metrics(run) if "metrics" in line]
    return {line["step"]: line["metrics"]["eval/held_out/bits_per_byte"] for line in lines}


@pytest.mark.slow
def test_scores_are_those_of_the_command_and_the_run_stays_the_same(
    how: tuple[str, ...], tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(tiny_config, run, *how, "checkpoint.asynchronous=true")
    train(tiny_config, tmp_path / "without", *how[1:])
    assert losses(run) == losses(tmp_path / "without")
    found = scores(run)
    assert sorted(found) == [4, 6]
    capsys.readouterr()
    arguments = ["--tasks", "held_out", "--include-path", str(tmp_path / "tasks"), "--device", "cpu", "--json"]
    assert main(["eval", str(run / "checkpoints" / "step_4"), *arguments]) == 0
    own = json.loads(capsys.readouterr().out)
    assert own["tasks"]["held_out"]["bits_per_byte"] == found[4]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_wait_for_the_scores_and_a_continued_run_catches_up(
    how: tuple[str, ...], tiny_config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ("pretrain", tiny_config, *how, "parallel.data=2", "model.dropout=0", f"run_dir={run}")
    done = run_spdf(*command)
    assert done.returncode == 0, done.stderr
    found = scores(run)
    assert sorted(found) == [4, 6]
    kept = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"eval/' not in line]
    (run / "metrics.jsonl").write_text("\n".join(kept) + "\n")  # as after a kill during the last scoring
    (run / "result.json").unlink()
    done = run_spdf(*command)
    assert done.returncode == 0, done.stderr
    assert scores(run) == {6: pytest.approx(found[6])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{}", "callbacks.eval.tasks: name one or more tasks"),
        ("{tasks: x, every: 5}", "callbacks.eval.every: 5 is not a multiple of checkpoint.interval 2"),
        ("{tasks: x, evry: 5}", "callbacks.eval: .*evry"),
    ],
)
def test_wrong_options_are_an_error(options: str, message: str, tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(tiny_config, tmp_path / "run", f"callbacks.eval={options}", "checkpoint.interval=2")


def test_a_task_that_does_not_exist_is_an_error_before_the_first_step(
    how: tuple[str, ...], tiny_config: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"callbacks.eval: .*'held_ot' is not known, did you mean 'held_out'"):
        train(tiny_config, tmp_path / "run", how[0].replace("[held_out]", "held_ot"), *how[1:])


@pytest.fixture
def scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TaskScores, Any]:
    """A callback of one rank whose command is a script, and its run."""
    monkeypatch.setattr(TaskScores, "check", lambda self: None)
    said: list[str] = []
    groups = SimpleNamespace(rank=0, all_reduce_max=float, on_rank_zero=lambda action: action())
    config = SimpleNamespace(checkpoint=SimpleNamespace(interval=2), device="cpu")
    run: Any = SimpleNamespace(groups=groups, config=config, said=said, say=said.append, stop=False)
    run.stop_requested = lambda: run.stop
    return TaskScores(run, tasks="x"), run


def test_a_command_that_fails_is_a_warning(
    scorer: tuple[TaskScores, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    callback, run = scorer
    monkeypatch.setattr(task_scores.sys, "executable", script(tmp_path, "echo 'spdf eval: no data' >&2; exit 2"))
    callback.score(4, tmp_path)
    assert run.said == ["WARNING: the tasks of step 4 were not scored: no data"]


def test_a_stop_request_ends_the_command(
    scorer: tuple[TaskScores, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    callback, run = scorer
    monkeypatch.setattr(task_scores.sys, "executable", script(tmp_path, "exec sleep 60"))
    run.stop = True
    callback.score(4, tmp_path)
    assert run.said == []


def script(folder: Path, text: str) -> str:
    """An executable shell script."""
    path = folder / "command"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_command_is_no_rank_of_the_job() -> None:
    launched = {"RANK": "3", "WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "3", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3"}
    left = without_ranks({**launched, "PATH": "/bin", "SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "1"})
    assert left == {"PATH": "/bin", "SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "1"} and discover(left) is None
