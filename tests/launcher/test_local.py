"""`spdf run --on local`: the life cycle of a workflow, with a stand-in for the trainer."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from spdf_launcher.cancel import cancel
from spdf_launcher.commands import status
from spdf_launcher.executors.local import Local
from spdf_launcher.status import JobState, is_more_to_come, read_plan

from spdf_dist.base.file_locks import birth
from spdf_dist.config.errors import UserError

SMALL = """
jobs:
  pretrain:
    kind: pretrain
    set:
      training: {train_tokens: 160, global_batch_size: 1, micro_batch_size: 1}
      model.seq_length: 8
  dense:
    kind: densify
    set: {checkpoint: "${jobs.pretrain.run_dir}"}
"""

GRID = """
jobs:
  pretrain:
    kind: pretrain
    set:
      training: {train_tokens: 0, global_batch_size: 1, micro_batch_size: 1}
      model.seq_length: 8
  finetune:
    kind: finetune
    set: {finetune.checkpoint: "${jobs.pretrain.run_dir}", finetune.train: train.csv}
    grid: {training.lr: [0.1, 0.2]}
  select:
    kind: select
    needs: [finetune]
    set: {metric: val_loss}
  final:
    kind: finetune
    set:
      finetune.checkpoint: ${jobs.pretrain.run_dir}
      finetune.train: train.csv
      training.lr: ${jobs.select.grid.training.lr}
      seed: 77
  dense:
    kind: densify
    set: {checkpoint: "${jobs.select.finetune.run_dir}"}
"""


def wait_for(condition, seconds: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    """Wait until ``condition()`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def steps_of(path: Path) -> list[int]:
    """The training steps in a metrics file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_everything_runs_once_and_is_skipped_after(bench) -> None:  # type: ignore[no-untyped-def]
    first = bench.run()
    assert "19 of 19 jobs done, 0 of them before" in first
    manifest = bench.manifest("finetune/s75/lr=0.1")
    assert manifest["status"] == "done" and manifest["attempts"] == 1
    assert set(manifest["inputs"]["parents"]) == {"dense/s75"}
    assert manifest["inputs"]["files"].keys() == {str(bench.path / "train.csv")}
    assert manifest["metrics"]["val_loss"] == pytest.approx(10.0)
    assert manifest["nodes"] and manifest["versions"]["python"] and manifest["argv"]
    choice = json.loads((bench.dir / "jobs/select/s75/out/choice.json").read_text())
    assert choice["cell"] == {"training.lr": "0.1"} and choice["value"] == pytest.approx(0.9)
    assert len(choice["candidates"]) == 2
    assert "19 of 19 jobs done, 19 of them before" in bench.run()
    assert all(job["state"] == "done" for job in bench.states().values())
    # Only the variant with the changed level and its dependent jobs run again.
    again = bench.run("variants.s75.sparsity.level=0.5")
    assert "19 of 19 jobs done, 9 of them before" in again
    assert "pretrain/dense " in again and "finetune/dense/lr=0.1  skipped" in again
    assert (bench.dir / ".replaced/1/pretrain/s75/run/metrics.jsonl").exists()


def test_a_changed_input_file_runs_what_reads_it_again(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    bench.run()
    (bench.path / "train.csv").write_text("mr,ref\nother,text\n")
    again = bench.run()
    assert "pretrain         skipped" in again
    assert "6 of 6 jobs done, 1 of them before" in again


def test_ranks_and_intervals_do_not_run_a_job_again(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.run()
    assert "2 of them before" in bench.run("jobs.pretrain.set.parallel.tensor=2", "jobs.pretrain.set.checkpoint.keep=3")


def stop_in_training(bench, job: str) -> Path:  # type: ignore[no-untyped-def]
    """Stop a workflow while ``job`` trains. Returns the metrics of its run."""
    process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local")
    metrics = bench.dir / "jobs" / job / "run/metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(steps_of(metrics)) >= 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    return metrics


def test_other_validation_batches_start_a_run_anew(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": ["slow", ""]}
    stop_in_training(bench, "pretrain")
    bench.run("jobs.pretrain.set.validation.batches=3")
    assert (bench.dir / ".replaced/1/pretrain/run/metrics.jsonl").exists()
    assert "2 of them before" in bench.run("jobs.pretrain.set.validation.batches=3")


def test_a_perplexity_without_its_unusable_lines_is_done(bench) -> None:  # type: ignore[no-untyped-def]
    scored = 'kind: perplexity\n    set: {checkpoint: "${jobs.pretrain.run_dir}", data: train.csv}'
    bench.file.write_text(SMALL.replace('kind: densify\n    set: {checkpoint: "${jobs.pretrain.run_dir}"}', scored))
    bench.faults = {"pretrain/run": ["remarks", 1, 1, 1]}
    assert "spdf perplexity: train.csv:1: no text" in bench.run()
    manifest = bench.manifest("dense")
    assert manifest["attempts"] == 1 and manifest["metrics"]["perplexity"] == 7.5
    # The output of an earlier attempt does not prove the success of a later one.
    (bench.dir / "jobs/dense/manifest.json").unlink()
    assert "told to end with 1 (3 times" in bench.run(code=1)


def test_choice_feeds_later_jobs(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    bench.run()
    config = (bench.dir / "jobs/final/config.yaml").read_text()
    assert "lr: '0.1'" in config or "lr: 0.1" in config
    assert bench.manifest("dense")["argv"][3:] == [
        str(bench.dir / "jobs/finetune/lr=0.1/run"),
        str(bench.dir / "jobs/dense/out/dense"),
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_stops_and_the_same_command_goes_on(bench, number: int) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": ["slow", ""]}
    process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local")
    metrics = bench.dir / "jobs/pretrain/run/metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(steps_of(metrics)) >= 2)
    assert bench.states()["pretrain"]["state"] == "running"
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 75, errors
    assert "stopped" in out
    assert bench.states()["pretrain"]["state"] == "stopped"
    assert bench.states()["dense"]["state"] == "waiting"
    watched = bench.start("status", str(bench.dir), "--watch")
    table, note = watched.communicate(timeout=30)
    assert "stopped" in table and "no job is running" in note and watched.returncode == 0
    bench.run()
    assert steps_of(metrics) == list(range(1, 21))
    assert bench.states()["pretrain"]["restarts"] == 1


def test_several_jobs_run_at_a_time(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    bench.faults = {"jobs/finetune": ["slow", ""]}
    process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local", "--jobs", "2")
    wait_for((bench.dir / "plan.json").exists)
    most = 0
    while process.poll() is None:
        most = max(most, [job["state"] for job in bench.states().values()].count("running"))
    out, errors = process.communicate()
    assert process.returncode == 0 and "6 of 6 jobs done" in out, errors
    assert most == 2
    starts = [json.loads(line) for line in (bench.dir / "journal.jsonl").read_text().splitlines()]
    order = [line["job"] for line in starts if line["event"] in ("start", "end")]
    assert order.index("select") > max(i for i, name in enumerate(order) if name.startswith("finetune"))


def test_a_signal_stops_all_jobs_that_run(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    bench.faults = {"jobs/finetune": ["slow", ""]}
    process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local", "--jobs", "2")
    wait_for((bench.dir / "plan.json").exists)
    wait_for(lambda: [job["state"] for job in bench.states().values()].count("running") == 2)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 75 and out.count("stopped") == 2, errors
    assert "6 of 6 jobs done" in bench.run()


def test_no_jobs_at_a_time_is_refused(bench) -> None:  # type: ignore[no-untyped-def]
    process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local", "--jobs", "0")
    assert process.wait() == 2 and "--jobs 0: at least one" in process.stderr.read()


def test_launcher_killed_the_job_lives_on_and_is_joined(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": ["slow", ""]}
    process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local")
    metrics = bench.dir / "jobs/pretrain/run/metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(steps_of(metrics)) >= 2)
    process.kill()
    process.communicate()
    bench.run()
    assert bench.manifest("pretrain")["attempts"] == 1
    assert steps_of(metrics) == list(range(1, 21))


def test_runner_killed_waits_for_its_command_and_goes_on(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": ["slow", ""]}
    process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local")
    attempts = bench.dir / "jobs/pretrain/attempts.jsonl"
    metrics = bench.dir / "jobs/pretrain/run/metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(steps_of(metrics)) >= 2)
    os.kill(json.loads(attempts.read_text().splitlines()[0])["pid"], signal.SIGKILL)
    process.communicate(timeout=30)
    bench.run()
    assert steps_of(metrics) == list(range(1, 21))
    assert bench.manifest("pretrain")["attempts"] == 2


def test_a_runner_that_left_no_manifest_is_no_success(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": ["slow"]}
    process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local")
    metrics = bench.dir / "jobs/pretrain/run/metrics.jsonl"
    wait_for(metrics.exists)
    os.kill(json.loads((bench.dir / "jobs/pretrain/attempts.jsonl").read_text().splitlines()[0])["pid"], signal.SIGKILL)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 1, errors
    assert "ended with exit code -9 and no manifest" in out


def test_what_an_earlier_attempt_left_in_the_run_folder_is_waited_for(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    run = bench.dir / "jobs/pretrain/run"
    (bench.dir / "journal.jsonl").parent.mkdir()
    (bench.dir / "journal.jsonl").touch()
    run.mkdir(parents=True)
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local")
        log = bench.dir / "jobs/pretrain/job.log"
        wait_for(lambda: log.exists() and "an earlier attempt still runs in" in log.read_text())
        time.sleep(1.0)
        assert "fake spdf" not in log.read_text()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert bench.manifest("pretrain")["attempts"] == 1


def test_second_launcher_says_so_and_stops(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": ["slow"]}
    process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local")
    metrics = bench.dir / "jobs/pretrain/run/metrics.jsonl"
    wait_for(metrics.exists)
    said = bench.run(code=2)
    assert f"another launcher is at work there (process {process.pid} on " in said
    assert len(said.strip().splitlines()) == 1
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_failures_are_counted_without_a_new_checkpoint_in_between(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": ["kill", "kill", "half", "kill", ""]}
    bench.run()
    manifest = bench.manifest("pretrain")
    assert manifest["status"] == "done" and manifest["attempts"] == 5


def test_killed_three_times_in_a_row(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": ["half", "kill", "kill", ""]}
    assert "ended by SIGKILL; last line: fake spdf pretrain" in bench.run(code=1)
    assert bench.manifest("pretrain")["attempts"] == 3


def test_failed_for_good_cancels_the_rest_and_runs_again_on_request(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": [1, 1, 1, ""]}
    said = bench.run(code=1)
    assert "spdf fake: told to end with 1 (3 times with no new checkpoint)" in said
    states = bench.states(code=1)
    assert states["pretrain"]["state"] == "failed"
    assert states["dense"]["state"] == "cancelled" and states["dense"]["reason"].startswith(
        "pretrain failed: spdf fake"
    )
    bench.run()
    assert bench.states()["dense"]["state"] == "done"


@pytest.mark.parametrize("code", [2, 3])
def test_bad_input_and_divergence_are_never_tried_again(bench, code: int) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": [code, ""]}
    bench.run(code=1)
    manifest = bench.manifest("pretrain")
    assert (manifest["status"], manifest["exit_code"], manifest["attempts"]) == ("failed", code, 1)


def test_one_cell_that_diverges_is_named_and_left_out(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    bench.faults = {"finetune/lr=0.1": [3]}
    bench.run()
    choice = json.loads((bench.dir / "jobs/select/out/choice.json").read_text())
    assert choice["job"] == "finetune/lr=0.2"
    assert choice["left_out"] == ["finetune/lr=0.1: spdf fake: told to end with 3"]
    assert bench.states()["finetune/lr=0.1"]["state"] == "failed"
    # The choice is made, so that the cell is not tried again.
    assert "finetune/lr=0.1  skipped" in bench.run()


def test_no_cell_finished(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    bench.faults = {"finetune/lr": [3]}
    said = bench.run(code=1)
    assert "spdf select: no cell of select finished" in said
    assert bench.states(code=1)["final"]["state"] == "cancelled"


def test_cancel_one_job_and_what_needs_it(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    bench.faults = {"finetune/lr=0.1": ["crawl"]}
    process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local")
    metrics = bench.dir / "jobs/finetune/lr=0.1/run/metrics.jsonl"
    wait_for(metrics.exists)
    said = bench.spdf("cancel", str(bench.dir), "finetune/lr=0.1")
    assert "finetune/lr=0.1: told to save and stop" in said
    process.communicate(timeout=60)
    assert process.returncode == 1
    states = bench.states(code=1)
    assert (
        states["finetune/lr=0.1"]["state"] == "cancelled" and states["finetune/lr=0.1"]["reason"] == "by `spdf cancel`"
    )
    assert states["finetune/lr=0.2"]["state"] == "done" and states["select"]["state"] == "cancelled"
    bench.run()
    assert bench.states()["select"]["state"] == "done"


def test_cancel_everything(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": ["slow"]}
    process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local")
    wait_for((bench.dir / "jobs/pretrain/run/metrics.jsonl").exists)
    bench.spdf("cancel", str(bench.dir))
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert "nothing to cancel" in bench.spdf("cancel", str(bench.dir))


def test_cancel_between_the_start_of_a_runner_and_its_lock(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": [2]}
    bench.run(code=1)
    (bench.dir / "jobs/pretrain/manifest.json").unlink()
    jobs = read_plan(bench.dir)
    assert cancel(bench.dir, jobs, jobs, Local()) == ["pretrain: cancelled"]
    runner = [sys.executable, "-m", "spdf_launcher.job", str(bench.dir), "pretrain"]
    assert subprocess.run(runner).returncode == 75
    assert bench.manifest("pretrain")["status"] == "cancelled"
    assert not (bench.dir / "jobs/pretrain/run/metrics.jsonl").exists()
    bench.run()


def test_cancel_tells_a_command_that_outlived_its_runner(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": ["slow"]}
    process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local")
    wait_for((bench.dir / "jobs/pretrain/run/metrics.jsonl").exists)
    attempts = bench.dir / "jobs/pretrain/attempts.jsonl"
    started, command = (json.loads(line) for line in attempts.read_text().splitlines())
    os.kill(started["pid"], signal.SIGKILL)
    process.communicate(timeout=30)
    said = bench.spdf("cancel", str(bench.dir), "pretrain")
    assert "pretrain: its runner is gone; its command was told to save and stop" in said
    wait_for(lambda: birth(command["pid"]) is None)


def test_cancel_signals_no_process_that_has_the_id_of_a_dead_one(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": [2]}
    bench.run(code=1)
    folder = bench.dir / "jobs/pretrain"
    (folder / "manifest.json").unlink()
    start = json.loads((folder / "attempts.jsonl").read_text().splitlines()[0])
    with subprocess.Popen(["sleep", "60"]) as stranger, (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for line in (start | {"pid": stranger.pid}, {"event": "command", "pid": stranger.pid, "birth": 1}):
            with (folder / "attempts.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        assert "was not found, so it could not be stopped" in bench.spdf("cancel", str(bench.dir), "pretrain")
        time.sleep(0.2)
        assert stranger.poll() is None
        stranger.kill()


def test_logs(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.run()
    assert "fake spdf densify" in bench.spdf("logs", str(bench.dir), "dense")
    everything = bench.spdf("logs", str(bench.dir), "-f")
    assert "==> pretrain <==" in everything and "fake spdf densify" in everything
    assert "no job 'dens', did you mean 'dense'?" in bench.spdf("logs", str(bench.dir), "dens", code=2)


def test_following_logs_ends_when_nothing_more_comes(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": ["slow", ""]}
    stop_in_training(bench, "pretrain")
    assert "fake spdf pretrain" in bench.spdf("logs", str(bench.dir), "-f")
    assert bench.spdf("logs", str(bench.dir), "dense", "-f") == ""


def test_following_logs_goes_on_while_a_job_that_is_needed_runs(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": ["slow"]}
    process = bench.start("run", str(bench.file), "--dir", str(bench.dir), "--on", "local")
    wait_for((bench.dir / "jobs/pretrain/run/metrics.jsonl").exists)
    assert "fake spdf densify" in bench.spdf("logs", str(bench.dir), "dense", "-f")
    process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("pretrain", "dense", "launcher", "more"),
    [
        ("running", "waiting", False, True),
        ("queued", "waiting", False, True),
        ("stopped", "waiting", False, False),
        ("done", "ready", False, False),
        ("done", "ready", True, True),
        ("running", "done", True, False),
        ("failed", "cancelled", True, False),
    ],
)
def test_what_may_yet_write(  # type: ignore[no-untyped-def]
    bench, pretrain: str, dense: str, launcher: bool, more: bool
) -> None:
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": [2]}
    bench.run(code=1)
    states = [JobState(name, state, None, 0, None, None) for name, state in (("pretrain", pretrain), ("dense", dense))]
    assert is_more_to_come(["dense"], states, read_plan(bench.dir), launcher) is more


def test_status_of_a_folder_without_a_workflow(bench) -> None:  # type: ignore[no-untyped-def]
    said = bench.spdf("status", str(bench.path), code=2)
    assert "holds no workflow" in said and len(said.strip().splitlines()) == 1


def test_dry_run_touches_nothing(bench) -> None:  # type: ignore[no-untyped-def]
    said = bench.run("--dry-run")
    assert "19 of 19 jobs to run; dry run, nothing was started" in said
    assert not bench.dir.exists()


def test_a_folder_with_something_else_in_it(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.dir.mkdir()
    (bench.dir / "thesis.tex").write_text("years of work")
    assert "holds thesis.tex and no workflow" in bench.run(code=2)


def test_output_that_is_missing_is_a_failure(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": [0, 0, 0]}
    said = bench.run(code=1)
    assert "the command succeeded, but its checkpoints reach only step 0 of 20" in said


@pytest.mark.parametrize("older", [False, True])
def test_a_folder_that_was_moved_goes_on(bench, older: bool) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    bench.run()
    choice = bench.dir / "jobs/select/out/choice.json"
    if older:  # older choices have absolute paths
        content = json.loads(choice.read_text())
        made = {name: {"run_dir": str(bench.dir / paths["run_dir"])} for name, paths in content["outputs"].items()}
        choice.write_text(json.dumps(content | {"outputs": made}))
    before, bench.dir = bench.dir, bench.path / "moved"
    before.rename(bench.dir)
    choice = bench.dir / "jobs/select/out/choice.json"
    for job in ("final", "dense"):
        (bench.dir / "jobs" / job / "manifest.json").unlink()
    assert "6 of 6 jobs done, 4 of them before" in bench.run()
    assert bench.manifest("dense")["argv"][3] == str(bench.dir / "jobs/finetune/lr=0.1/run")
    for job in ("select", "dense"):
        (bench.dir / "jobs" / job / "manifest.json").unlink()
    assert "6 of 6 jobs done" in bench.run()
    assert str(before) not in choice.read_text()


def test_a_run_that_was_stopped_goes_on_in_a_folder_that_was_moved(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    bench.faults = {"finetune/lr=0.1": ["slow", ""]}
    stop_in_training(bench, "finetune/lr=0.1")
    before, bench.dir = bench.dir, bench.path / "moved"
    before.rename(bench.dir)
    assert "6 of 6 jobs done, 1 of them before" in bench.run()
    run = bench.dir / "jobs/finetune/lr=0.1/run"
    assert steps_of(run / "metrics.jsonl") == [1, 2, 3, 4]
    tree = yaml.safe_load((run / "config.yaml").read_text())
    assert tree["run_dir"] == str(run) and tree["finetune"]["checkpoint"] == str(bench.dir / "jobs/pretrain/run")


@pytest.mark.parametrize("content", ["{}", '{"jobs": [{"id": "a"}]}', '{"jobs": null}'])
def test_a_plan_of_another_version_is_one_line(bench, content: str) -> None:  # type: ignore[no-untyped-def]
    bench.dir.mkdir()
    (bench.dir / "journal.jsonl").touch()
    (bench.dir / "plan.json").write_text(content)
    with pytest.raises(UserError, match="is not a plan that this version reads"):
        read_plan(bench.dir)


def test_folders_that_cannot_be_are_one_line_each(bench) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    for command in ("status", "logs", "cancel"):
        said = bench.spdf(command, "x" * 300, code=2)
        assert "File name too long" in said and len(said.strip().splitlines()) == 1
    for on in ("local", "slurm"):
        said = bench.spdf("run", str(bench.file), "--dir", "x" * 300, "--on", on, "--dry-run", code=2)
        assert "File name too long" in said and len(said.strip().splitlines()) == 1
    (bench.dir / "journal.jsonl").mkdir(parents=True)
    said = bench.run(code=2)
    assert "journal.jsonl is a folder" in said and len(said.strip().splitlines()) == 1


def test_status_needs_no_right_to_write(bench, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(SMALL)
    bench.faults = {"jobs/pretrain": [2]}
    bench.run(code=1)
    for job in ("pretrain", "dense"):
        (bench.dir / "jobs" / job / "manifest.json").unlink()
    opened = os.open

    def refuse(path: str, flags: int, *more: int) -> int:
        if str(path).endswith("lock") and (flags & os.O_RDWR or not may_read):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    may_read = True
    assert status.run(argparse.Namespace(dir=bench.dir, watch=False, json=True)) == 0
    may_read = False
    with pytest.raises(PermissionError):  # `main` makes a line of it
        status.run(argparse.Namespace(dir=bench.dir, watch=False, json=True))
