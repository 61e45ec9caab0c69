"""Workflows on the real cluster, with a stand-in for the trainer."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from cluster import wait_for

pytestmark = pytest.mark.slurm

CHAIN = """
variants:
  dense: {sparsity.level: 0.0}
  s75: {sparsity.level: 0.75}
jobs:
  pretrain:
    kind: pretrain
    set:
      training: {train_tokens: 320, global_batch_size: 4, micro_batch_size: 1}
      model.seq_length: 8
    resources: {nodes: 2, ranks_per_node: 2, tensor: 2, time: "10:00"}
  dense:
    kind: densify
    set: {checkpoint: "${jobs.pretrain.run_dir}"}
  finetune:
    kind: finetune
    set: {finetune.checkpoint: "${jobs.dense.checkpoint}", finetune.train: train.csv}
    grid: {training.lr: [0.1, 0.2], seed: [1, 2]}
    resources: {throttle: 3}
  generate:
    kind: generate
    set: {checkpoint: "${jobs.finetune.run_dir}", task: e2e, input: train.csv}
  evaluate:
    kind: evaluate
    set: {task: e2e, hypotheses: "${jobs.generate.hypotheses}", references: ["${jobs.generate.references}"]}
  select:
    kind: select
    needs: [evaluate]
    set: {metric: bleu}
  report:
    kind: report
    needs: [select]
"""

ONE = """
jobs:
  pretrain:
    kind: pretrain
    set:
      training: {train_tokens: 320, global_batch_size: 2, micro_batch_size: 1}
      model.seq_length: 8
    resources: {nodes: 2}
  dense:
    kind: densify
    set: {checkpoint: "${jobs.pretrain.run_dir}"}
"""

CELLS = """
jobs:
  pretrain:
    kind: pretrain
    set: {training: {train_tokens: 0, global_batch_size: 1, micro_batch_size: 1}, model.seq_length: 8}
  finetune:
    kind: finetune
    set: {finetune.checkpoint: "${jobs.pretrain.run_dir}", finetune.train: train.csv}
    grid: {training.lr: [0.1, 0.2], seed: [1, 2]}
"""


def lines(path: Path) -> list[str]:
    """The journal of a folder."""
    return (path / "journal.jsonl").read_text().splitlines()


def test_chain_with_variants_and_grid(fake) -> None:  # type: ignore[no-untyped-def]
    fake.write(CHAIN)
    said = fake.run()
    assert said.count("submitted ") == 13, said
    states = fake.wait_end()
    assert len(states) == 31 and all(job["state"] == "done" for job in states.values()), states
    for name in ("pretrain.s75", "finetune.dense", "evaluate.s75", "select.dense", "report"):
        assert set(fake.slurm_states(name)) == {"COMPLETED"}
    choice = json.loads((fake.dir / "jobs/select/s75/out/choice.json").read_text())
    assert choice["cell"] == {"seed": "1", "training.lr": "0.1"}
    assert fake.manifest("pretrain/s75")["nodes"][0].startswith("n[")
    assert "0 jobs submitted, 0 in the queue already, 31 done and unchanged" in fake.run()


def test_written_scripts_can_be_submitted_by_hand(fake) -> None:  # type: ignore[no-untyped-def]
    fake.write(ONE)
    fake.run()
    fake.wait_end()
    (fake.dir / "jobs/dense/manifest.json").unlink()
    fake.cluster.command("sbatch", str(fake.dir / "slurm/dense.sbatch"))
    wait_for((fake.dir / "jobs/dense/manifest.json").exists, 30, "the job submitted by hand")


def test_dry_run_prints_and_checks(fake) -> None:  # type: ignore[no-untyped-def]
    fake.write(CHAIN)
    said = fake.run("--dry-run", "--verbose")
    assert "#SBATCH --array=0-3%3" in said and "#SBATCH --signal=B:USR1@120" in said
    assert "31 of 31 jobs to run; sbatch accepts every script; dry run" in said
    assert not fake.dir.exists()


def test_sbatch_refuses_nothing_is_submitted(fake) -> None:  # type: ignore[no-untyped-def]
    fake.write(CHAIN)
    said = fake.run("jobs.report.resources.nodes=1", "jobs.report.resources.gpus_per_node=9", code=2)
    assert said.strip().splitlines()[-1].startswith("spdf run: sbatch refuses report.sbatch: ")
    assert "submitted" not in said and not fake.cluster.command("squeue", "-h")
    said = fake.run("clusters.test.partition=nowhere", code=2)
    assert "nowhere" in said or "invalid partition" in said


def test_failed_for_good_cancels_what_follows(fake) -> None:  # type: ignore[no-untyped-def]
    fake.faults = {"jobs/pretrain": [2]}
    fake.write(ONE)
    assert "submitted" in fake.run()
    states = fake.wait_end(60)
    assert states["pretrain"]["state"] == "failed" and states["pretrain"]["reason"] == "spdf fake: told to end with 2"
    assert states["dense"]["state"] == "cancelled" and "pretrain" in states["dense"]["reason"]
    assert "told to end with 2" in fake.spdf("status", str(fake.dir), code=1)
    assert fake.manifest("pretrain")["attempts"] == 1
    # A second run submits only missing jobs, each once.
    again = fake.run()
    assert again.count("submitted ") == 2 and "2 jobs submitted" in again
    assert {job["state"] for job in fake.wait_end(60).values()} == {"done"}


def test_a_job_whose_parent_was_never_made_does_not_start(fake) -> None:  # type: ignore[no-untyped-def]
    fake.write(ONE)
    fake.run()
    fake.wait_end(60)
    (fake.dir / "jobs/pretrain/manifest.json").unlink()
    (fake.dir / "jobs/dense/manifest.json").unlink()
    # Slurm runs a job whose dependency is an id that it does not know.
    fake.cluster.command("sbatch", "--dependency=afterok:999999", str(fake.dir / "slurm/dense.sbatch"))
    wait_for((fake.dir / "jobs/dense/manifest.json").exists, 30, "the job to judge its parent")
    assert fake.manifest("dense")["status"] == "cancelled"
    assert fake.manifest("dense")["reason"] == "pretrain is not done"


def test_one_cell_that_diverges_is_named(fake) -> None:  # type: ignore[no-untyped-def]
    fake.faults = {"finetune/s75/seed=2,lr=0.1": [3]}
    fake.write(CHAIN.replace("dense: {sparsity.level: 0.0}", "dense: null"))
    fake.run()
    states = fake.wait_end()
    assert states["report"]["state"] == "done"
    cell = "s75/seed=2,lr=0.1"
    assert states[f"finetune/{cell}"]["reason"] == "spdf fake: told to end with 3"
    assert states[f"evaluate/{cell}"]["state"] == "cancelled"
    choice = json.loads((fake.dir / "jobs/select/s75/out/choice.json").read_text())
    assert len(choice["candidates"]) == 3 and choice["left_out"][0].startswith(f"evaluate/{cell}: ")
    fake.spdf("status", str(fake.dir))  # exit code 0: the workflow is complete
    assert "0 jobs submitted" in fake.run()


def test_crashes_are_retried_and_counted(fake) -> None:  # type: ignore[no-untyped-def]
    fake.faults = {"jobs/pretrain": ["kill", "half", "kill", ""]}
    fake.write(ONE)
    fake.run()
    states = fake.wait_end()
    assert {job["state"] for job in states.values()} == {"done"}
    assert states["pretrain"]["restarts"] == 3
    assert [line["step"] for line in fake.metrics("pretrain")] == list(range(1, 21))


def test_a_cell_that_is_tried_again_leaves_the_others_alone(fake) -> None:  # type: ignore[no-untyped-def]
    # The last task to start has the id of the array as its SLURM_JOB_ID.
    fake.faults = {"finetune/seed=2,lr=0.2": ["half", ""]}
    fake.write(CELLS)
    fake.run()
    states = fake.wait_end()
    assert {job["state"] for job in states.values()} == {"done"}
    assert {name: job["restarts"] for name, job in states.items() if job["restarts"]} == {"finetune/seed=2,lr=0.2": 1}
    assert fake.slurm_states("finetune").count("PENDING") == 1  # written for a requeued task


def start_training(fake) -> str:  # type: ignore[no-untyped-def]
    """Submit a slow pre-training and wait for two of its steps. Returns its Slurm id."""
    fake.faults = {"jobs/pretrain": ["steady", ""]}
    fake.write(ONE)
    fake.run()
    wait_for(lambda: len(fake.metrics("pretrain")) >= 2, 60, "two steps")
    return fake.states()["pretrain"]["slurm_id"]


def test_signal_before_the_limit_saves_requeues_and_goes_on(fake) -> None:  # type: ignore[no-untyped-def]
    slurm_id = start_training(fake)
    fake.cluster.command("scancel", "--batch", "--signal=USR1", slurm_id)
    states = fake.wait_end(120)
    assert {job["state"] for job in states.values()} == {"done"}
    assert states["pretrain"]["slurm_id"] == slurm_id
    attempts = (fake.dir / "jobs/pretrain/attempts.jsonl").read_text()
    assert attempts.count('"outcome": "stopped"') == 1 and '"outcome": "failed"' not in attempts
    assert [line["step"] for line in fake.metrics("pretrain")] == list(range(1, 21))


def outcomes(path: Path) -> list[str]:
    """The ends of a job's attempts."""
    attempts = [json.loads(line) for line in (path / "attempts.jsonl").read_text().splitlines()]
    return [line["outcome"] for line in attempts if line["event"] == "end"]


def preempt(cluster) -> None:  # type: ignore[no-untyped-def]
    """Submit a job that preempts all nodes."""
    words = ("--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    cluster.command("sbatch", *words)


def test_preempted_training_saves_requeues_and_goes_on(fake) -> None:  # type: ignore[no-untyped-def]
    slurm_id = start_training(fake)
    preempt(fake.cluster)
    states = fake.wait_end(120)
    assert {job["state"] for job in states.values()} == {"done"}
    assert states["pretrain"]["slurm_id"] == slurm_id
    assert outcomes(fake.dir / "jobs/pretrain") == ["stopped", "done"]
    assert [line["step"] for line in fake.metrics("pretrain")] == list(range(1, 21))


def test_limit_and_preemption_of_a_job_that_starts_anew(fake) -> None:  # type: ignore[no-untyped-def]
    fake.faults = {"jobs/dense": ["hang", "hang", ""]}
    fake.write(ONE)
    fake.run()
    dense = fake.dir / "jobs/dense"

    def hangs(attempts: int) -> bool:
        counter = dense / "fake_attempts"
        return counter.exists() and len(counter.read_text()) == attempts

    wait_for(lambda: hangs(1), 60, "the first attempt")
    preempt(fake.cluster)
    wait_for(lambda: hangs(2), 60, "the second attempt")
    fake.cluster.command("scancel", "--batch", "--signal=USR1", fake.states()["dense"]["slurm_id"])
    assert {job["state"] for job in fake.wait_end(120).values()} == {"done"}
    assert outcomes(dense) == ["stopped", "failed", "done"]


def test_what_a_person_takes_out_of_the_queue_stays_out(fake) -> None:  # type: ignore[no-untyped-def]
    slurm_id = start_training(fake)
    fake.cluster.command("scancel", slurm_id)
    wait_for(lambda: not fake.cluster.command("squeue", "-h"), 60, "the queue to be empty")
    job = fake.cluster.job(slurm_id)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")
    assert '"outcome": "stopped"' in (fake.dir / "jobs/pretrain/attempts.jsonl").read_text()


def test_cancel_and_go_on(fake) -> None:  # type: ignore[no-untyped-def]
    start_training(fake)
    said = fake.spdf("cancel", str(fake.dir))
    assert "told to save and stop" in said and "taken out of the queue" in said
    wait_for(lambda: not fake.cluster.command("squeue", "-h"), 60, "the queue to be empty")
    assert {job["state"] for job in fake.states().values()} == {"cancelled"}
    fake.run()
    assert {job["state"] for job in fake.wait_end().values()} == {"done"}
    assert [line["step"] for line in fake.metrics("pretrain")] == list(range(1, 21))


@pytest.mark.parametrize("seconds", [0.3, 1.2, 2.1])
def test_launcher_killed_while_submitting(fake, seconds: float) -> None:  # type: ignore[no-untyped-def]
    fake.write(CHAIN)
    slow = fake.path / "bin"
    slow.mkdir()
    # The real sbatch, with pauses before and after it in which it can be killed.
    (slow / "sbatch").write_text('#!/bin/sh\nsleep 0.15\n/usr/bin/sbatch "$@"\ncode=$?\nsleep 0.15\nexit $code\n')
    (slow / "sbatch").chmod(0o755)
    fake.more_env = {"PATH": f"{slow}:{os.environ['PATH']}"}
    process = fake.start("run", str(fake.file), "--dir", str(fake.dir), "--on", "slurm")
    intents = lambda: (fake.dir / "journal.jsonl").read_text().count('"intent"')  # noqa: E731
    wait_for(lambda: (fake.dir / "journal.jsonl").exists() and intents() > 0, 60, "the first submission")
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = intents()
    assert before < 13
    fake.more_env = {}
    wait_for(lambda: fake.start("run", str(fake.file), "--dir", str(fake.dir), "--on", "slurm").wait() == 0, 30, "run")
    names = fake.cluster.command("squeue", "-h", "-t", "all", "-o", "%k").split("\n")
    mine = json.loads(next(x for x in (fake.dir / "journal.jsonl").read_text().splitlines() if '"folder"' in x))["id"]
    comments = {name for name in names if f" {mine} " in name}
    assert len(comments) == 13
    states = fake.wait_end()
    assert {job["state"] for job in states.values()} == {"done"}
    assert {fake.manifest(job)["attempts"] for job in states} == {1}


def test_two_workflows_at_once(fake) -> None:  # type: ignore[no-untyped-def]
    fake.write(ONE)
    other = fake.path / "work2"
    fake.run()
    fake.run(dir=other)
    assert {job["state"] for job in fake.wait_end().values()} == {"done"}
    assert {job["state"] for job in fake.wait_end(dir=other).values()} == {"done"}
    ids = [json.loads(line).get("id") for path in (fake.dir, other) for line in lines(path)]
    submitted = [x for x in ids if x and x.isdigit()]
    assert len(submitted) == len(set(submitted)) == 4


def test_a_queued_job_with_other_inputs_is_named(fake) -> None:  # type: ignore[no-untyped-def]
    fake.faults = {"jobs/pretrain": ["slow"]}
    fake.write(ONE)
    fake.run()
    said = fake.run("jobs.pretrain.set.seed=7", code=2)
    assert "is in the queue as" in said and "with other inputs" in said


@pytest.mark.slow
def test_the_real_time_limit(fake) -> None:  # type: ignore[no-untyped-def]
    fake.faults = {"jobs/pretrain": ["slow", ""]}
    fake.write(ONE)
    limit = "jobs.pretrain.resources={nodes: 2, time: '2:00', signal_seconds: 30}"
    fake.run(limit, "jobs.pretrain.set.training.train_tokens=16000")  # 1000 steps, 0.2 s each: more than the limit
    states = fake.wait_end(240)
    assert {job["state"] for job in states.values()} == {"done"}
    assert states["pretrain"]["restarts"] == 1
    assert '"outcome": "stopped"' in (fake.dir / "jobs/pretrain/attempts.jsonl").read_text()
    assert "TIMEOUT" not in fake.slurm_states("pretrain")
    assert [line["step"] for line in fake.metrics("pretrain")] == list(range(1, 1001))
