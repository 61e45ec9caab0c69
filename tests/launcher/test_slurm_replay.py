"""Submission and states with recorded output of Slurm 22.05, without a cluster."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from spdf_launcher.journal import Journal
from spdf_launcher.slurm import commands
from spdf_launcher.slurm.state import SlurmState, recover, slurm_states
from spdf_launcher.slurm.submit import wait_for_end
from spdf_launcher.status import JobState, read_plan

from spdf_dist.cli.main import main

GRID = """
jobs:
  pretrain:
    kind: pretrain
    set: {training: {train_tokens: 160, global_batch_size: 2, micro_batch_size: 1}, model.seq_length: 8}
    resources: {nodes: 2, gpus_per_node: 1, time: "1-00:00:00", mem: 64G}
  finetune:
    kind: finetune
    set: {finetune.checkpoint: "${jobs.pretrain.run_dir}", finetune.train: train.csv}
    grid: {training.lr: [0.1, 0.2, 0.3]}
    resources: {throttle: 2}
  generate:
    kind: generate
    set: {checkpoint: "${jobs.finetune.run_dir}", task: e2e, input: train.csv}
  select: {kind: select, needs: [finetune], set: {metric: val_loss}}
clusters:
  big: {partition: gpu, account: me, setup: [module load cuda], srun: [--cpu-bind=cores]}
"""


def replace(slurm: Path, program: str, script: str) -> None:
    """Put a shell script in the place of one of Slurm's commands."""
    (slurm / program).write_text(f"#!/bin/sh\n{script}\n")
    (slurm / program).chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with replaced Slurm commands, first on PATH. They write their files into it."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol"):
        script = Path(__file__).with_name("fake_slurm.py")
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {script} {name} "$@"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    return folder


def calls(slurm: Path, program: str) -> list[list[str]]:
    """The calls of a program."""
    lines = [json.loads(line) for line in (slurm / "calls").read_text().splitlines()]
    return [line[1:] for line in lines if line[0] == program]


def submit(bench, *more: str, code: int = 0) -> str:  # type: ignore[no-untyped-def]
    """`spdf run --on slurm`."""
    return bench.spdf("run", str(bench.file), "--dir", str(bench.dir), "--on", "slurm", *more, code=code)


def test_dependencies_and_arrays(bench, slurm: Path) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    said = submit(bench)
    assert "8 jobs submitted, 0 in the queue already" in said
    submitted = [words for words in calls(slurm, "sbatch") if "--parsable" in words]
    options = {Path(words[-1]).stem: set(words[1:-1]) for words in submitted}
    assert not any(word.startswith("--dependency") for word in options["pretrain"])
    assert {"--dependency=afterok:1", "--array=0,1,2%2"} <= options["finetune"]
    assert {"--dependency=aftercorr:2", "--array=0,1,2"} <= options["generate"]
    assert "--dependency=afterany:2_0,afterany:2_1,afterany:2_2" in options["select"]
    comments = {word for words in options.values() for word in words if word.startswith("--comment=spdf ")}
    assert len(comments) == 4
    text = (bench.dir / "slurm/pretrain.sbatch").read_text()
    for line in ("nodes=2", "gpus-per-node=1", "time=1-00:00:00", "mem=64G", "signal=B:USR1@120", "requeue",
                 "kill-on-invalid-dep=yes", "partition=gpu", "account=me"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in text
    assert "\nmodule load cuda\n" in text and "MASTER_ADDR=$(scontrol show hostnames" in text
    program = json.loads((bench.dir / "jobs/pretrain/job.json").read_text())["program"]
    assert program[0] == "srun" and "--kill-on-bad-exit=1" in program and "--cpu-bind=cores" in program
    intents = [line for line in (bench.dir / "journal.jsonl").read_text().splitlines() if '"intent"' in line]
    assert len(intents) == 4


@pytest.mark.parametrize(
    ("cluster", "start"),
    [
        ({}, [sys.executable, "-m", "spdf_dist"]),
        ({"python": "/opt/venv/bin/python"}, ["srun", "--nodes=1", "--ntasks=1"]),
        ({"srun": ["--container-image=/shared/spdf.sqsh"]}, ["srun", "--nodes=1", "--ntasks=1"]),
    ],
)
def test_where_a_container_is_every_command_starts_in_it(  # type: ignore[no-untyped-def]
    bench, slurm: Path, cluster: dict[str, Any], start: list[str]
) -> None:
    text = GRID.partition("clusters:")[0] + "  dense: {kind: densify, set: {checkpoint: '${jobs.pretrain.run_dir}'}}\n"
    bench.file.write_text(f"{text}clusters: {{big: {json.dumps(cluster)}}}\n")
    submit(bench)
    python = cluster.get("python", sys.executable)
    for name in ("dense", "generate/lr=0.1"):
        program = json.loads((bench.dir / "jobs" / name / "job.json").read_text())["program"]
        assert program[: len(start)] == start
        assert program[-3 - len(cluster.get("srun", [])) :] == [*cluster.get("srun", []), python, "-m", "spdf_dist"]
    assert f"exec {sys.executable} -m spdf_launcher.job" in (bench.dir / "slurm/dense.sbatch").read_text()


def test_the_remedies_of_the_cluster_page_reach_the_batch_script(bench, slurm: Path) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    submit(
        bench,
        "clusters.big.account=other",
        "clusters.big.sbatch=[--exclude=n3]",
        "clusters.big.env={NCCL_SOCKET_IFNAME: ib0, GLOO_SOCKET_IFNAME: ib0, NCCL_DEBUG: INFO}",
        "jobs.pretrain.resources.time=2-00:00:00",
        "jobs.pretrain.resources.mem=128G",
        "jobs.pretrain.resources.signal_seconds=300",
        "jobs.pretrain.set.training.global_batch_size=4",
        "jobs.pretrain.set.training.micro_batch_size=2",
        "jobs.pretrain.set.training.activation_checkpointing=true",
        "jobs.pretrain.set.parallel.timeout_minutes=60",
        "jobs.pretrain.set.checkpoint.asynchronous=true",
    )
    text = (bench.dir / "slurm/pretrain.sbatch").read_text()
    for option in ("account=other", "exclude=n3", "time=2-00:00:00", "mem=128G", "signal=B:USR1@300"):
        assert f"#SBATCH --{option}\n" in text
    for variable in ("NCCL_SOCKET_IFNAME=ib0", "GLOO_SOCKET_IFNAME=ib0", "NCCL_DEBUG=INFO"):
        assert f"export {variable}\n" in text
    job = json.loads((bench.dir / "jobs/pretrain/job.json").read_text())
    training = job["config"]["training"]
    assert (training["micro_batch_size"], training["activation_checkpointing"]) == (2, True)
    assert job["config"]["parallel"]["timeout_minutes"] == 60 and job["config"]["checkpoint"]["asynchronous"] is True


def test_refusal_submits_nothing(bench, slurm: Path) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    (slurm / "refuse").write_text("select")
    said = submit(bench, code=2)
    assert said.strip().startswith("spdf run: sbatch refuses select.sbatch: ") and len(said.strip().splitlines()) == 1
    assert not [words for words in calls(slurm, "sbatch") if "--parsable" in words]


def test_no_slurm_on_this_machine(bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = submit(bench, code=2)
    assert "no Slurm on this machine" in said and len(said.strip().splitlines()) == 1
    assert not bench.dir.exists()
    assert "so Slurm did not check them" in submit(bench, "--dry-run")


def test_paths_that_a_shell_would_read(bench, slurm: Path) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    bench.dir = bench.path / "a b"
    assert "batch scripts take no spaces, quotes or % in paths" in submit(bench, code=2)


def journal(root: Path, *lines: tuple[str, dict[str, object]]) -> None:
    """A folder with these lines in its journal."""
    root.mkdir(exist_ok=True)
    with Journal(root) as written:
        for event, content in lines:
            written.write(event, **content)


def test_states(tmp_path: Path, slurm: Path) -> None:
    root = tmp_path / "work"
    tasks: list[tuple[str, dict[str, int | None]]] = [
        ("1", {"pretrain": None}),
        ("2", {"cell/a": 0, "cell/b": 1}),
        ("3", {"next/a": 0}),
        ("4", {"other": None}),
    ]
    journal(
        root, *[("submitted", {"id": i, "tasks": t, "keys": dict.fromkeys(t, "k"), "comment": i}) for i, t in tasks]
    )
    (slurm / "replay").write_text("squeue_early")
    early = slurm_states(root)
    assert early["pretrain"] == SlurmState("1", "RUNNING", "None") and early["pretrain"].in_words() == ("running", None)
    assert early["cell/b"].id == "2_1" and early["cell/b"].in_words()[0] == "waiting"
    assert early["other"].in_words() == ("queued", "Resources")
    (slurm / "replay").write_text("squeue_late")
    late = slurm_states(root)
    assert late["cell/a"].in_words() == ("failed", "Slurm: FAILED (NonZeroExitCode)") and not late["cell/a"].is_live
    assert late["next/a"].in_words() == ("cancelled", "a job that it needs did not finish")
    (slurm / "replay").write_text("squeue_purged")
    purged = slurm_states(root)
    assert purged["pretrain"].state == "COMPLETED"  # from the plain file of finished jobs: there is no slurmdbd
    assert purged["cell/a"].in_words()[0] == "lost"


def test_a_submission_without_its_line_is_found_by_its_comment(tmp_path: Path, slurm: Path) -> None:
    root = tmp_path / "work"
    intent = {"comment": "spdf abc 2", "tasks": {"cell/a": 0, "cell/b": 1}, "keys": {"cell/a": "k", "cell/b": "k"}}
    never = {"comment": "spdf abc 9", "tasks": {"x": None}, "keys": {"x": "k"}}
    journal(root, ("intent", intent), ("intent", never))
    (slurm / "replay").write_text("squeue_early")
    assert recover(root) == [{**intent, "id": "2"}]


def test_a_second_run_leaves_the_queue_alone(bench, slurm: Path) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    submit(bench)
    count = len([words for words in calls(slurm, "sbatch") if "--parsable" in words])
    recorded = json.loads((Path(__file__).parent / "recorded/slurm.json").read_text())["squeue_early"]["stdout"]
    assert recorded.startswith("2_0|PENDING|Dependency|") and "1|RUNNING|None|" in recorded
    (slurm / "replay").write_text("squeue_early")
    said = submit(bench)
    # The recording has 1, 2 and 3 with their cells, and 4, exactly as submitted.
    assert "0 jobs submitted, 8 in the queue already" in said
    assert len([words for words in calls(slurm, "sbatch") if "--parsable" in words]) == count
    assert os.environ["FAKE_SLURM"] == str(slurm)


def test_waiting_for_a_job_that_was_lost_is_no_success(bench, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(GRID)
    submit(bench)
    jobs = read_plan(bench.dir)
    lost = [JobState(job.id, "lost", "1", 0, None, None) for job in jobs]
    monkeypatch.setattr("spdf_launcher.slurm.submit.gather", lambda root: lost)
    assert wait_for_end(jobs, bench.dir) == 1


def test_a_banner_of_a_site_s_own_sbatch_is_not_the_job_id(bench, slurm: Path) -> None:  # type: ignore[no-untyped-def]
    real = (slurm / "sbatch").read_text().splitlines()[1].removeprefix("exec ")
    replace(slurm, "sbatch", f"echo 'Welcome to the cluster'; {real}; code=$?; echo; exit $code")
    said = submit(bench)
    assert "submitted        1" in said and "Welcome" not in said


SUBMISSION = 'case "$*" in *--test-only*) exit 0;; esac; '


def here(bench, *words: str) -> int:  # type: ignore[no-untyped-def]
    """Exit code of `spdf WORDS` in this process."""
    return main([str(word) for word in (*words[:1], bench.file, "--dir", bench.dir, "--on", "slurm")])


@pytest.mark.parametrize(
    ("script", "message"),
    [("printf 'caf\\351 closed'", "instead of a job id"), ("exec sleep 60", "sbatch did not answer in 1 s")],
    ids=["garbage", "hangs"],
)
def test_an_sbatch_that_does_not_tell_its_job_is_one_line_and_its_job_is_found_later(  # type: ignore[no-untyped-def]
    script: str, message: str, bench, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "ANSWER_SECONDS", 1.0)
    monkeypatch.chdir(bench.path)
    replace(slurm, "sbatch", SUBMISSION + script)
    assert here(bench, "run") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and message in said[0]
    events = [json.loads(line)["event"] for line in (bench.dir / "journal.jsonl").read_text().splitlines()]
    assert events.count("intent") == 1 and "refused" not in events and "submitted" not in events


@pytest.mark.parametrize(
    ("script", "message", "code"),
    [
        ("printf 'caf\\351: no jobs'", "instead of its jobs", 2),
        ("exec sleep 60", "squeue did not answer in 1 s", 1),
        ("exit 7", "Slurm does not answer: exit code 7", 2),
    ],
    ids=["garbage", "hangs", "fails"],
)
def test_a_squeue_without_an_answer_makes_no_job_lost(  # type: ignore[no-untyped-def]
    script: str,
    message: str,
    code: int,
    bench,
    slurm: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(commands, "ANSWER_SECONDS", 1.0)
    monkeypatch.chdir(bench.path)
    assert here(bench, "run") == 0
    replace(slurm, "squeue", script)
    capsys.readouterr()
    assert here(bench, "run") == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and message in said[0]
    assert main(["status", str(bench.dir)]) == 0
    shown = capsys.readouterr()
    assert message in shown.err and "lost" not in shown.out
