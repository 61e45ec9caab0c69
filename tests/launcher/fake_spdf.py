"""Replaces the `spdf` command, and writes the same files as the real one within milliseconds.

The environment variable FAKE_FAULTS makes jobs fail. It is a JSON object from a part of the job's folder to a list of
faults, one per attempt: an exit code, "kill" (SIGKILL), "half" (exit 1 after half of the steps), "slow" (0.2 s per
step), "steady" (1.5 s per step), "crawl" (5 s per step), "huge" (a loss of 9), "remarks" (exit 1 after writing
everything), "hang" (wait for a signal and die of it), "" (nothing).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from spdf_dist.config.load import run_differences

STOP: list[int] = []


def fault_of(folder: Path) -> Any:
    """The fault of this attempt of the job in ``folder``."""
    for part, faults in json.loads(os.environ.get("FAKE_FAULTS", "{}")).items():
        if part in str(folder):
            counter = folder / "fake_attempts"
            number = len(counter.read_text()) if counter.exists() else 0
            counter.write_text("x" * (number + 1))
            return faults[number] if number < len(faults) else ""
    return ""


def apply_fault(fault: Any) -> None:
    """Execute the fault."""
    if isinstance(fault, int):
        print(f"spdf fake: told to end with {fault}", file=sys.stderr)
        sys.exit(fault)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signal.pause()


def option(words: list[str], name: str) -> str:
    """The value of an option."""
    return words[words.index(f"--{name}") + 1]


def train(config: dict[str, Any], steps: int) -> int:
    """Pretend to train, starting from the last checkpoint."""
    run = Path(config["run_dir"])
    fault = fault_of(run.parent)
    apply_fault(fault)
    run.mkdir(parents=True, exist_ok=True)
    before = yaml.safe_load((run / "config.yaml").read_text()) if (run / "config.yaml").exists() else config
    if differences := run_differences(before, config):
        print(f"spdf fake: error: {run} holds another run ({'; '.join(differences)})", file=sys.stderr)
        return 2
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    done = [int(path.name.split("_")[1]) for path in run.glob("checkpoints/step_*")]
    first = max(done, default=0)
    save(run, first)
    for step in range(first + 1, steps + 1):
        loss = 9.0 if fault == "huge" else 5.0 / step + 100 * float(config["training"]["lr"])
        line = {"step": step, "loss": loss, "consumed_tokens": step * 8, "step_ms": 10.0}
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if fault == "half" and step == steps // 2:
            save(run, step)
            return 1
        if STOP:
            save(run, step)
            return 75
        time.sleep({"slow": 0.2, "steady": 1.5, "crawl": 5.0}.get(str(fault), 0.0))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": steps, "val_loss": 100 * float(config["training"]["lr"])}) + "\n")
    save(run, steps)
    return 0


def save(run: Path, step: int) -> None:
    """Write a checkpoint that has only a manifest."""
    folder = run / "checkpoints" / f"step_{step}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"step": step}))


def main(words: list[str]) -> int:
    """One command."""
    signal.signal(signal.SIGTERM, lambda number, frame: STOP.append(number))
    signal.signal(signal.SIGUSR1, lambda number, frame: STOP.append(number))
    print("fake spdf", *words, file=sys.stderr)
    if words[0] in ("pretrain", "finetune"):
        config = yaml.safe_load(Path(words[1]).read_text())
        training = config["training"]
        if words[0] == "finetune":
            assert Path(config["finetune"]["checkpoint"]).exists()
            return train(config, 4)
        return train(
            config, training["train_tokens"] // (training["global_batch_size"] * config["model"]["seq_length"])
        )
    if words[0] == "densify":
        fault = fault_of(Path(words[2]).parent.parent)
        apply_fault(fault)
        Path(words[2]).mkdir(parents=True)
        (Path(words[2]) / "manifest.json").write_text("{}")
        return 0
    if words[0] == "evaluate":
        apply_fault(fault_of(Path(option(words, "hypotheses")).parent.parent.parent))
        lr = float(Path(option(words, "hypotheses")).read_text())
        print(json.dumps({"schema_version": 1, "task": "e2e", "scores": {"bleu": 1 - lr}}))
        return 0
    if words[0] == "perplexity":
        fault = fault_of(Path(words[1]))
        apply_fault(fault)
        print(json.dumps({"schema_version": 1, "perplexity": 7.5, "unusable_lines": int(fault == "remarks")}))
        print("spdf perplexity: train.csv:1: no text", file=sys.stderr)
        return int(fault == "remarks")
    if words[0] == "generate":
        out = Path(option(words, "out"))
        apply_fault(fault_of(out.parent.parent))
        config = yaml.safe_load((Path(words[1]) / "config.yaml").read_text())
        out.write_text(str(config["training"]["lr"]))
        Path(option(words, "references-out")).write_text("reference\n")
        return 0
    if words[0] == "report":
        out = Path(option(words, "out"))
        out.mkdir(parents=True, exist_ok=True)
        (out / "index.html").write_text(" ".join(words[1:]))
        return 0
    print(f"spdf: error: fake knows no {words[0]}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
