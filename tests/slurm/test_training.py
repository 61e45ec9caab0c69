"""The real trainer with a tiny model on the cluster: two nodes, gloo. Limits, crashes and kills lose nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
STEPS = 200
MODEL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "seq_length": 32, "vocab_size": 512}

PRETRAIN = """
jobs:
  pretrain:
    kind: pretrain
    set:
      device: cpu
      model: {model}
      sparsity: {{level: 0.75, execution: compressed}}  # `auto` measures, and a disturbed run might choose differently
      training: {{train_tokens: {tokens}, global_batch_size: 4, micro_batch_size: 2, lr: 1e-3}}
      data.train: {packed}
      checkpoint: {{interval: 20, keep: 2}}
    resources: {{nodes: 2, ranks_per_node: 1, time: "10:00"}}
"""

DEMO = """
base: demo
variants: {dense: null, untrained: null}
jobs:
  text.set.max-mb: 1
  tokenizer.set.vocab-size: 512
  packed.set.seq-len: 32
  packed-validation.set.seq-len: 32
  pretrain:
    set:
      model: {num_layers: 2, hidden_size: 32, num_attention_heads: 2, seq_length: 32, vocab_size: 512}
      training: {train_tokens: 5120, warmup_tokens: 512, global_batch_size: 16, micro_batch_size: 4}
      parallel.data: null
    resources: {nodes: 2, ranks_per_node: 2, tensor: 2}
  finetune:
    set:
      finetune: {epochs: 1, warmup_steps: 0, train: small.csv, validation: small.csv}
      training.micro_batch_size: 8
      parallel.data: null
    grid: {training.lr: [1e-3, 5e-4], training.global_batch_size: [8, 16]}
    resources.throttle: 2
  validate:
    kind: generate
    set: {checkpoint: "${jobs.finetune.run_dir}", task: e2e, input: small.csv, greedy: true, max-new-tokens: 8}
  score:
    kind: evaluate
    set: {task: e2e, hypotheses: "${jobs.validate.hypotheses}", references: ["${jobs.validate.references}"]}
  select: {kind: select, needs: [score], set: {metric: bleu}}
  generate.set: {checkpoint: "${jobs.select.finetune.run_dir}", input: small.csv, greedy: true, max-new-tokens: 8}
  evaluate.set.slots-of: small.csv
"""


def trainer(*words: str, cwd: Path) -> None:
    """Run `spdf WORDS` without Slurm."""
    done = subprocess.run(
        [sys.executable, "-m", "spdf_dist", *words],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small packed text."""
    folder = tmp_path_factory.mktemp("packed")
    trainer("data", "python-text", "--out", "text.jsonl", "--max-mb", "0.5", cwd=folder)
    trainer(
        "data", "tokenizer", "train", "--input", "text.jsonl", "--vocab-size", "512", "--out", "t.model", cwd=folder
    )
    words = ("--input", "text.jsonl", "--tokenizer", "t.model", "--seq-len", "32", "--out", "packed", "--workers", "1")
    trainer("data", "pack", *words, cwd=folder)
    return folder / "packed"


def losses(path: Path) -> list[tuple[int, float]]:
    """Steps and losses of a metrics file, in the order of the file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.fixture(scope="session")
def undisturbed(packed: Path) -> list[tuple[int, float]]:
    """The losses of an uninterrupted run, started without a launcher."""
    model = [f"model.{key}={value}" for key, value in MODEL.items()]
    (packed.parent / "empty.yaml").write_text("device: cpu\n")
    more = [
        f"training.train_tokens={STEPS * 4 * 32}",
        "training.global_batch_size=4",
        "training.micro_batch_size=2",
        "training.lr=1e-3",
    ]
    sparse = ["sparsity.level=0.75", "sparsity.execution=compressed"]
    parallel = ["parallel.data=2", *sparse, f"data.train={packed}", "run_dir=undisturbed"]
    trainer("pretrain", "empty.yaml", *model, *more, *parallel, cwd=packed.parent)
    return losses(packed.parent / "undisturbed/metrics.jsonl")


@pytest.fixture
def running(real, packed: Path):  # type: ignore[no-untyped-def]
    """A run on two nodes that has done a quarter of its steps."""
    real.file = real.write(PRETRAIN.format(model=json.dumps(MODEL), tokens=STEPS * 4 * 32, packed=packed))
    real.run()
    wait_for(lambda: len(real.metrics("pretrain")) >= STEPS // 4, 180, "a quarter of the steps")
    return real


def check(bench, undisturbed: list[tuple[int, float]], seconds: float = 240) -> None:  # type: ignore[no-untyped-def]
    """The run completes with the same losses as the uninterrupted one, bit for bit, and each step once."""
    states = bench.wait_end(seconds)
    assert states["pretrain"]["state"] == "done", bench.tail()
    assert states["pretrain"]["restarts"] >= 1
    assert losses(bench.dir / "jobs/pretrain/run/metrics.jsonl") == undisturbed


def test_signal_before_the_limit(running, undisturbed) -> None:  # type: ignore[no-untyped-def]
    running.cluster.command("scancel", "--batch", "--signal=USR1", running.states()["pretrain"]["slurm_id"])
    check(running, undisturbed)
    attempts = (running.dir / "jobs/pretrain/attempts.jsonl").read_text()
    assert '"outcome": "stopped"' in attempts and '"outcome": "failed"' not in attempts


def test_one_rank_killed(running, undisturbed) -> None:  # type: ignore[no-untyped-def]
    ranks = subprocess.run(
        ["pgrep", "-f", f"spdf_launcher.rank pretrain {running.dir}"], capture_output=True, text=True
    ).stdout.split()
    pids = [pid for pid in ranks if b"SLURM_PROCID=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(int(pids[0]), 9)

    def ended() -> bool:
        return '"outcome": "failed"' in (running.dir / "jobs/pretrain/attempts.jsonl").read_text()

    wait_for(ended, 60, "the other rank to end")
    check(running, undisturbed)


def test_node_crash(running, undisturbed) -> None:  # type: ignore[no-untyped-def]
    cluster = running.cluster
    slurm_id = running.states()["pretrain"]["slurm_id"]
    nodes = cluster.command("scontrol", "show", "hostnames", cluster.job(slurm_id)["NodeList"]).split()
    cluster.crash_node(nodes[-1])
    cluster.command("scontrol", "update", f"nodename={nodes[-1]}", "state=down", "reason=crashed")
    check(running, undisturbed)
    assert nodes[-1] not in cluster.command("scontrol", "show", "hostnames", running.manifest("pretrain")["nodes"][0])


@pytest.mark.timeout(1000)
def test_demo_over_two_nodes(real) -> None:  # type: ignore[no-untyped-def]
    trainer("data", "synthetic-e2e", "--out", "e2e", "--seed", "1", cwd=real.path)
    rows = (real.path / "e2e/devset.csv").read_text().splitlines()
    (real.path / "small.csv").write_text("\n".join(rows[:40]) + "\n")
    real.write(DEMO)
    real.run()
    states = real.wait_end(850)
    assert {job["state"] for job in states.values()} == {"done"}, states
    for name in ("pretrain.s75", "densified.s75", "finetune.s75", "score.s75", "select.s75", "report"):
        assert set(real.slurm_states(name)) == {"COMPLETED"}, name
    assert (real.dir / "jobs/report/out/index.html").stat().st_size > 10_000
    tree = (real.dir / "jobs/pretrain/s75/run/config.yaml").read_text()
    assert "tensor: 2" in tree and "data: 2" in tree


def test_production_scripts_are_accepted_unchanged(cluster) -> None:  # type: ignore[no-untyped-def]
    for name in ("pretrain_xl.sh", "finetune_xl.sh"):
        cluster.command("sbatch", "--test-only", str(ROOT / "slurm" / name))


@pytest.mark.timeout(1500)
def test_production_scripts_run_to_the_end(real, packed: Path) -> None:  # type: ignore[no-untyped-def]
    """All 4 x 8 ranks of pre-training, then one cell of the fine-tuning array. Both scripts are submitted unchanged."""
    rows = ["mr,ref"] + [f'"name[{n}]","It is {n}."' for n in range(16)]
    (real.path / "e2e.csv").write_text("\n".join(rows) + "\n")

    def submit(script: str, log: Path, *overrides: str, options: tuple[str, ...] = (), **environment: str) -> None:
        done = subprocess.run(
            ["sbatch", "--wait", *options, "--output", str(real.path / "%x-%j.out")]
            + [str(ROOT / "slurm" / script), *overrides, "device=cpu"],
            env=real.cluster.env | environment | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
            cwd=real.path,
            capture_output=True,
            text=True,
            timeout=900,
        )
        logs = "\n".join(path.read_text() for path in log.glob("logs/slurm-*.log"))
        assert done.returncode == 0, done.stderr + logs[-3000:]

    pretrained = real.path / "xl"
    tiny = [f"model.{key}={value}" for key, value in MODEL.items()]
    tiny += [f"training.train_tokens={3 * 32 * 32}", "training.warmup_tokens=0"]
    tiny += ["training.global_batch_size=32", "training.micro_batch_size=1"]
    submit("pretrain_xl.sh", pretrained, *tiny, RUN_DIR=str(pretrained), DATA=str(packed))
    assert [step for step, _ in losses(pretrained / "metrics.jsonl")] == [1, 2, 3]
    assert (pretrained / "checkpoints/step_3/manifest.json").exists()
    assert "data: 32" in (pretrained / "config.yaml").read_text()

    cell = real.path / "cells/batch=8,lr=1e-4"
    task = ["finetune.train=e2e.csv", "finetune.validation=e2e.csv", "finetune.max_steps=2", "finetune.warmup_steps=0"]
    places = {"PRETRAINED": str(pretrained), "RUNS": str(cell.parent)}
    submit("finetune_xl.sh", cell, *task, options=("--array=0",), **places)
    assert json.loads((cell / "finetune.json").read_text())["steps"] == 2
