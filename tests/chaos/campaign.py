"""Kills, signals, races, full disks and few open files against real commands (docs/reliability.md)."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from chaos.forks import Ended, few_files, kill_at, run, small_files, start, wait

TINY = """
device: cpu
model: {num_layers: 1, hidden_size: 16, num_attention_heads: 2, seq_length: 16, vocab_size: 320, dropout: 0.1}
sparsity: {level: 0.5, execution: masked}
parallel: {tensor: 1, data: 1}
training: {train_tokens: 1536, global_batch_size: 8, micro_batch_size: 4, lr: 1.0e-3, warmup_tokens: 128}
data: {train: [packed], validation: [packed]}
checkpoint: {interval: 3, keep: 2}
validation: {interval: 5, batches: 1}
"""
COUNTED = ("loss", "grad_norm", "val_loss", "lr", "consumed_tokens", "total_flops")


@dataclass
class Tally:
    """Counts of one part of the campaign."""

    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            self.failures.append(what if len(what) < 900 else f"{what[:300]} ... {what[-500:]}")


class Campaign:
    """Random faults from one seed, in one folder."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.seed = work, seed
        os.chdir(work)
        texts = [f"document {n} tells of the number {n * n} and of {n % 7} other things" for n in range(400)]
        Path("text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        Path("tiny.yaml").write_text(TINY)
        self.must("data", "tokenizer", "train", "--input", "text.jsonl", "--vocab-size", 320, "--out", "tok.model")
        self.must(*self.pack("packed"))
        self.reference = self.finished("reference")

    def must(self, *words: object) -> Ended:
        """Run a command that must succeed."""
        ended = run(words)
        assert ended.code == 0, (words, ended)
        return ended

    def pack(self, out: str) -> tuple[object, ...]:
        words = ("data", "pack", "--input", "text.jsonl", "--tokenizer", "tok.model", "--out", out)
        return (*words, "--seq-len", 16, "--workers", 1)

    def pretrain(self, out: str) -> tuple[str, ...]:
        return ("pretrain", "tiny.yaml", f"run_dir={out}")

    def finished(self, out: str) -> tuple[list[tuple[object, ...]], dict[str, str]]:
        """Run to the end. Returns the metrics, and the digests of the files of the last checkpoint."""
        self.must(*self.pretrain(out))
        return result_of(Path(out))

    # ---- kills and signals ------------------------------------------------------------------------------------------

    def kills(self, deadline: float, most: int) -> Tally:
        """SIGKILL at random moments and at each file-system call, repeated until a run is finished.

        The run must end with the losses and the bytes of the uninterrupted one.
        """
        rng, tally, place = random.Random(f"{self.seed} kills"), Tally(), 0
        while time.monotonic() < deadline and tally.counts.get("kills", 0) < most:
            out = Path("killed")
            for _ in range(rng.randrange(1, 6)):
                if rng.random() < 0.5:
                    place += 1
                    ended = run(self.pretrain(str(out)), prepare=kill_at(place))
                    place = 0 if ended.code == 0 else place
                    tally.add("kills at a disk call", ended.code == -signal.SIGKILL)
                else:
                    ended = run(self.pretrain(str(out)), send=signal.SIGKILL, after=rng.uniform(0, 2.0))
                    tally.add("kills at a random moment", ended.code == -signal.SIGKILL)
                tally.add("kills", ended.code == -signal.SIGKILL)
                tally.require(ended.code in (0, -signal.SIGKILL), f"killed run: {ended}")
            self.compare(tally, out)
            tally.add("runs")
            shutil.rmtree(out, ignore_errors=True)
        return tally

    def compare(self, tally: Tally, out: Path) -> None:
        """Finish a run and compare it with the uninterrupted one."""
        ended = run(self.pretrain(str(out)))
        tally.require(ended.code == 0, f"{out} does not go on: {ended}")
        if ended.code == 0:
            found = result_of(out)
            tally.require(
                found == self.reference, f"{out} ended with other numbers: {differences(found, self.reference)}"
            )
            left = [path.name for path in (out / "checkpoints").iterdir() if not path.name.startswith("step_")]
            left += [path.name for path in (out / "checkpoints").iterdir() if path.name.endswith(".tmp")]
            tally.require(not left, f"{out} has leftovers: {left}")

    def signals(self, deadline: float, most: int) -> Tally:
        """SIGTERM, SIGUSR1 and SIGINT at random moments: exit code 75, one line, and the same final result."""
        rng, tally = random.Random(f"{self.seed} signals"), Tally()
        while time.monotonic() < deadline and tally.counts.get("signals", 0) < most:
            out = Path("stopped")
            for _ in range(3):
                number = rng.choice((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))
                ended = run(self.pretrain(str(out)), send=number, after=rng.uniform(0.05, 2.0))
                tally.add("signals")
                ok = ended.code in (0, 75) or ended.code == -number  # before the command handles signals
                tally.require(ok and "Traceback" not in ended.said, f"{signal.Signals(number).name}: {ended}")
            self.compare(tally, out)
            shutil.rmtree(out, ignore_errors=True)
        return tally

    # ---- two at once ------------------------------------------------------------------------------------------------

    def makers(self) -> dict[str, tuple[object, ...]]:
        """Commands that write an output, without its path, which is the last argument."""
        text = ("--input", "text.jsonl")
        return {
            "tokenizer": ("data", "tokenizer", "train", *text, "--vocab-size", 320, "--out"),
            "pack": ("data", "pack", *text, "--tokenizer", "tok.model", "--seq-len", 16, "--workers", 1, "--out"),
            "synthetic": ("data", "synthetic-e2e", "--seed", 1, "--out"),
            "densify": ("densify", "reference"),
            "export-hf": ("export-hf", "reference"),
            "report": ("report", "reference", "--out"),
        }

    def races(self, deadline: float, most: int) -> Tally:
        """Three processes write one output: at least one succeeds, the output is complete, the others say why."""
        tally = Tally()
        expected: dict[str, dict[str, str]] = {}
        for name, words in self.makers().items():
            out = place_of(name, "expected")
            self.must(*words, out)
            expected[name] = digests(out)
        for number in range(max(1, most // 6)):
            for name, words in self.makers().items():
                if time.monotonic() > deadline:
                    return tally
                out = place_of(name, f"race{number}")
                ends = [wait(racer) for racer in [start([*words, out]) for _ in range(3)]]
                tally.add(f"races of {name}")
                tally.require(any(end.code == 0 for end in ends), f"{name}: none won: {ends}")
                for end in ends:
                    lost = end.code == 2 and ("another process" in end.said or "exists" in end.said)
                    tally.require(end.code == 0 or lost, f"{name}: {end}")
                tally.require(name == "report" or digests(out) == expected[name], f"{name}: the result is not whole")
                hidden = [path.name for path in Path().iterdir() if path.name.startswith(".")]
                tally.require(not hidden, f"{name}: leftovers {hidden}")
                if out.is_dir():
                    shutil.rmtree(out, ignore_errors=True)
                else:
                    out.unlink()
        return tally

    # ---- limits -----------------------------------------------------------------------------------------------------

    def limits(self, deadline: float, most: int) -> Tally:
        """Full disks and few open files: one line, no traceback, no leftovers. A run can continue afterwards."""
        rng, tally = random.Random(f"{self.seed} limits"), Tally()
        for number in range(max(1, most // 6)):
            for name, words in (*self.makers().items(), ("pretrain", ("pretrain", "tiny.yaml"))):
                if time.monotonic() > deadline:
                    return tally
                out = place_of(name, f"limit{number}")
                full = rng.random() < 0.7
                prepare = small_files(int(2 ** rng.uniform(4, 17))) if full else few_files(rng.randrange(8, 40))
                target = f"run_dir={out}" if name == "pretrain" else out
                ended = run([*words, target], prepare=prepare)
                tally.add("full disks" if full else "few open files")
                if ended.code != 0:
                    tally.require("Traceback" not in ended.said, f"{name}: {ended}")
                    tally.require(ended.code in (1, 2), f"{name}: {ended}")
                    lines = [line for line in ended.said.replace("\r", "\n").splitlines() if line.startswith("spdf ")]
                    tally.require(len(lines) == 1, f"{name}: {len(lines)} lines: {ended}")
                hidden = [path.name for path in Path().iterdir() if path.name.startswith(".")]
                tally.require(not hidden, f"{name}: leftovers {hidden}")
                if name == "pretrain":
                    self.compare(tally, out)
                elif ended.code != 0:
                    several = name in ("report", "synthetic")  # several files, each complete or missing
                    tally.require(not out.exists() or several, f"{name}: half of {out} is there: {ended}")
                    tally.require(run([*words, out]).code == 0, f"{name}: {out} cannot be made afterwards")
                if out.is_dir():
                    shutil.rmtree(out, ignore_errors=True)
                else:
                    out.unlink(missing_ok=True)
        return tally


def place_of(name: str, stem: str) -> Path:
    """The path of a command's output."""
    return Path(f"{stem}.model" if name == "tokenizer" else f"{stem}-{name}")


def result_of(run_dir: Path) -> tuple[list[tuple[object, ...]], dict[str, str]]:
    """The results of a run: a tuple per metrics line, and the digests of the tensors of the last checkpoint."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    numbers = [(line["step"], *(line.get(key) for key in COUNTED)) for line in lines]
    last = max((run_dir / "checkpoints").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    files = json.loads((last / "manifest.json").read_text())["files"]
    return numbers, {name: file["sha256"] for name, file in files.items() if name.endswith(".safetensors")}


def differences(found: tuple[list, dict], expected: tuple[list, dict]) -> str:
    """A short text about the differences."""
    lines = [f"{a} for {b}" for a, b in zip(found[0], expected[0], strict=False) if a != b]
    files = [name for name in expected[1] if found[1].get(name) != expected[1][name]]
    return f"{len(found[0])} lines for {len(expected[0])}; {lines[:2]}; {files}"


def digests(path: Path) -> dict[str, str]:
    """The sha256 of each file below ``path``. Of a checkpoint, without the records of time and machine."""
    import hashlib

    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file() and file.name != "manifest.json"
    }


def as_json(tallies: dict[str, Tally]) -> dict[str, object]:
    """The counts of all parts."""
    return {name: asdict(tally) for name, tally in tallies.items()}
