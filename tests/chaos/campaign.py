"""Kills, signals, races, full disks, few open files and little memory against real commands (docs/reliability.md)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from chaos.forks import (
    Child,
    Ended,
    count_calls,
    few_files,
    kill_at,
    little_memory,
    refuse,
    run,
    small_files,
    start,
    start_process,
    start_ranks,
    start_together,
    wait,
    wait_process,
)
from spdf_dist.base.signals import STOP_SIGNALS
from spdf_dist.checkpoint.find import latest

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
STEPS = 12
FORMS = (
    *(*("forked",) * 3, "forked ranks", *("forked",) * 5, "command"),
    *(*("forked",) * 3, "forked ranks", *("forked",) * 5, "command with ranks"),
)
"""How the runs of a campaign are started, in turn."""
PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
INPUTS = ("text.jsonl", "tok.model", "e2e.csv", "tiny.yaml")
REFUSALS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("rename", "link", "mkdir", "create"), (*PERMISSION, *MACHINE)),
    "open to read": (errno.EACCES, errno.EIO, errno.ESTALE),
    **dict.fromkeys(("write", "fsync of a file", "truncate"), MACHINE),
    "read": (errno.EIO, errno.ESTALE),
    "fsync of a folder": (*MACHINE, errno.EINVAL, errno.EOPNOTSUPP),
    "unlink": (errno.EACCES, errno.EROFS, errno.EBUSY, errno.EIO),
    "flock": (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO),
    "mmap": (errno.ENODEV, errno.ENOMEM),
    "short write": (0,),
}
"""Errors of each kind of call."""
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
            print(f"  broken: {self.failures[-1]}", flush=True)


class Campaign:
    """Random faults from one seed, in one folder."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.seed = work, seed
        self.asynchronous = False
        """Whether runs save in a thread."""
        os.chdir(work)
        texts = [f"document {n} tells of the number {n * n} and of {n % 7} other things" for n in range(400)]
        Path("text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        Path("tiny.yaml").write_text(TINY)
        Path("e2e.csv").write_text("mr,ref\n" + "".join(f'"name[{n}]","It is {n}."\n' for n in range(4)))
        self.must("data", "tokenizer", "train", "--input", "text.jsonl", "--vocab-size", 320, "--out", "tok.model")
        self.must(*self.pack("packed"))
        self.jobs = {"alone": Job(self, "alone", 1), "ranks": Job(self, "ranks", 2)}
        self.reference = self.jobs["alone"].expected

    def must(self, *words: object) -> Ended:
        """Run a command that must succeed."""
        ended = run(words)
        assert ended.code == 0, (words, ended)
        return ended

    def pack(self, out: str) -> tuple[object, ...]:
        words = ("data", "pack", "--input", "text.jsonl", "--tokenizer", "tok.model", "--out", out)
        return (*words, "--seq-len", 16, "--workers", 1)

    def pretrain(self, out: str, ranks: int = 1) -> tuple[str, ...]:
        saves = f"checkpoint.asynchronous={str(self.asynchronous).lower()}"
        return ("pretrain", "tiny.yaml", f"run_dir={out}", f"parallel.data={ranks}", saves)

    # ---- kills and signals ------------------------------------------------------------------------------------------

    def kills(self, deadline: float, most: int) -> Tally:
        """SIGKILL at random moments and before each file-system call, repeated until a run is finished.

        Of twenty runs, sixteen are forked processes and two are jobs of two forked ranks, one of which is killed. Two
        are real processes of the command line, with one rank or with two that it spawns. Half of the runs save
        asynchronously. Each run must end with the losses and the bytes of the uninterrupted one.
        """
        rng, tally, place = random.Random(f"{self.seed} kills"), Tally(), 0
        out = Path("killed")
        while time.monotonic() < deadline and tally.counts.get("kills", 0) < most:
            form = FORMS[tally.counts.get("runs", 0) % len(FORMS)]
            job = self.jobs["ranks" if "ranks" in form else "alone"]
            tally.add("runs")
            self.asynchronous = rng.random() < 0.5
            tally.add("runs with asynchronous saves", self.asynchronous)
            for _ in range(rng.randrange(2, 9)):
                if form == "forked" and rng.random() < 0.6:
                    place += 1
                    ended = run(self.pretrain(str(out)), prepare=kill_at(place))
                    place = 0 if ended.code == 0 else place
                    killed, how = ended.code == -signal.SIGKILL, "forked, at a disk call"
                elif form == "forked":
                    moment = rng.uniform(0, 1.1 * job.seconds)
                    ended = run(self.pretrain(str(out)), send=signal.SIGKILL, after=moment)
                    killed, how = ended.code == -signal.SIGKILL, "forked, at a random moment"
                elif form == "forked ranks":
                    killed, ended = job.kill_forked_rank(out, rng)
                    how = "one of two forked ranks"
                else:
                    killed, ended, how = job.kill_command(out, rng)
                tally.add(f"kills: {how}", killed)
                tally.add("kills", killed)
                tally.require(killed or ended.code == 0, f"killed run, {how}: {ended}")
                tally.require("Traceback" not in ended.said, f"killed run, {how}: {ended}")
                if not killed:
                    break
            self.compare(tally, out, job)
            shutil.rmtree(out, ignore_errors=True)
        self.asynchronous = False
        return tally

    def compare(self, tally: Tally, out: Path, job: Job | None = None) -> None:
        """Finish a run and compare it with the uninterrupted one."""
        job = job or self.jobs["alone"]
        before = newest_step(out)
        ended = job.finish(out)
        tally.require(ended.code == 0, f"{out} does not go on: {ended}")
        if ended.code == 0:
            found = result_of(out)
            tally.require(found == job.expected, f"{out} ended with other numbers: {differences(found, job.expected)}")
            started = [line for line in ended.said.splitlines() if "continues from" in line]
            lost = before > 0 and not any(f"step {before} of" in line for line in started)
            tally.require(not lost or before == STEPS, f"{out} did not continue from step {before}: {started}")
            names = [path.name for path in (out / "checkpoints").iterdir()]
            left = [name for name in names if not name.startswith("step_") or name.endswith(".tmp")]
            tally.require(not left, f"{out} has leftovers: {left}")

    def signals(self, deadline: float, most: int) -> Tally:
        """SIGTERM, SIGUSR1, SIGINT and SIGHUP at random moments: exit code 75, one line, and the same final result."""
        rng, tally = random.Random(f"{self.seed} signals"), Tally()
        while time.monotonic() < deadline and tally.counts.get("signals", 0) < most:
            out = Path("stopped")
            for _ in range(3):
                number = rng.choice(STOP_SIGNALS)
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
        task = ("--task", "e2e", "--input", "e2e.csv", "--greedy", "--max-new-tokens", 4)
        if not Path("exported").exists():
            self.must("export-hf", "alone", "exported")
        return {
            "tokenizer": ("data", "tokenizer", "train", *text, "--vocab-size", 320, "--out"),
            "pack": ("data", "pack", *text, "--tokenizer", "tok.model", "--seq-len", 16, "--workers", 1, "--out"),
            "synthetic": ("data", "synthetic-e2e", "--seed", 1, "--out"),
            "densify": ("densify", "alone"),
            "export-hf": ("export-hf", "alone"),
            "import-hf": ("import-hf", "exported"),
            "generate": ("generate", "alone", *task, "--out"),
            "report": ("report", "alone", "--out"),
            "pretrain": ("pretrain", "tiny.yaml"),
        }

    def races(self, deadline: float, most: int) -> Tally:
        """Two or three processes write one output at once: one makes it, the output is complete, the others say why."""
        rng, tally = random.Random(f"{self.seed} races"), Tally()
        expected: dict[str, object] = {}
        for name, words in self.makers().items():
            out = place_of(name, "expected")
            self.must(*target_of(name, words, out))
            expected[name] = outcome_of(name, out)
        for number in range(max(1, most // len(expected))):
            for name, words in self.makers().items():
                if time.monotonic() > deadline:
                    return tally
                out = place_of(name, f"race{number}")
                ends = [wait(racer) for racer in start_together([target_of(name, words, out)] * rng.choice((2, 3)))]
                tally.add(f"races of {name}")
                tally.require(any(end.code == 0 for end in ends), f"{name}: none won: {ends}")
                for end in ends:
                    reason = end.said.strip().splitlines()[-1:] or [""]
                    lost = end.code == 2 and ("another process" in reason[0] or "exists" in reason[0])
                    tally.require(end.code == 0 or lost, f"{name}: {end}")
                    tally.require("Traceback" not in end.said, f"{name}: {end}")
                tally.require(outcome_of(name, out) == expected[name], f"{name}: the result is not whole")
                hidden = [path.name for path in Path().iterdir() if path.name.startswith(".")]
                tally.require(not hidden, f"{name}: leftovers {hidden}")
                delete(out)
        return tally

    # ---- limits -----------------------------------------------------------------------------------------------------

    def limits(self, deadline: float, most: int) -> Tally:
        """Full disks, few open files, little memory: one line, no leftovers. A run can continue afterwards."""
        rng, tally = random.Random(f"{self.seed} limits"), Tally()
        makers = self.makers()
        for number in range(max(1, most // len(makers))):
            for name, words in makers.items():
                if time.monotonic() > deadline:
                    return tally
                out = place_of(name, f"limit{number}")
                kind = rng.choice(("full disks", "full disks", "few open files", "little memory", "little memory"))
                prepare = {
                    "full disks": small_files(int(2 ** rng.uniform(4, 17))),
                    "few open files": few_files(rng.randrange(8, 40)),
                    "little memory": little_memory(int(2 ** rng.uniform(14, 28))),
                }[kind]
                ended = run(target_of(name, words, out), prepare=prepare)
                tally.add(kind)
                aborted = kind == "little memory" and ended.code in (-signal.SIGABRT, -signal.SIGSEGV)
                if aborted:  # a library cannot report that memory is missing; this counts as a kill
                    tally.add(f"{kind}: ended by a library")
                elif ended.code != 0:
                    tally.add(f"{kind}: refused")
                    tally.require("Traceback" not in ended.said, f"{name}, {kind}: {ended}")
                    tally.require(ended.code in (1, 2), f"{name}, {kind}: {ended}")
                    lines = [line for line in ended.said.replace("\r", "\n").splitlines() if line.startswith("spdf ")]
                    tally.require(len(lines) == 1, f"{name}, {kind}: {len(lines)} lines: {ended}")
                if not aborted:
                    hidden = [path.name for path in Path().iterdir() if path.name.startswith(".")]
                    tally.require(not hidden, f"{name}, {kind}: leftovers {hidden}")
                if name == "pretrain":
                    self.compare(tally, out)
                elif ended.code != 0:
                    several = name in ("report", "synthetic", "generate")  # several files, each complete or missing
                    tally.require(not out.exists() or several, f"{name}, {kind}: half of {out} is there: {ended}")
                    again = run([*words, out])
                    tally.require(again.code == 0, f"{name}, {kind}: {out} cannot be made afterwards: {again}")
                delete(out)
        return tally

    # ---- refused calls ----------------------------------------------------------------------------------------------

    def refusals(self, deadline: float, most: int) -> Tally:
        """One call of the file system is refused, or all from it on: a whole result, or one line and no leftovers."""
        rng, tally = random.Random(f"{self.seed} refusals"), Tally()
        expected: dict[str, object] = {}
        calls: dict[tuple[str, str], int] = {}
        makers = self.makers()
        while time.monotonic() < deadline and tally.counts.get("refusals", 0) < most:
            name, kind = rng.choice(list(makers)), rng.choice(list(REFUSALS))
            words, out = makers[name], place_of(name, "refused")
            if name not in expected:
                self.must(*target_of(name, words, out))
                expected[name] = outcome_of(name, out)
                delete(out)
            if (name, kind) not in calls:
                calls[name, kind] = count_calls(target_of(name, words, out), self.work, kind)
                delete(out)
            if calls[name, kind] == 0:
                continue
            number, once = rng.choice(REFUSALS[kind]), rng.random() < 0.5
            first = rng.randrange(1, calls[name, kind] + 1)
            what = f"{name}: {kind} {first} of {calls[name, kind]}{'' if once else ' and later'}: {os.strerror(number)}"
            prepare = refuse(self.work, kind, first, 1 if once else 10**6, number)
            ended = run(target_of(name, words, out), prepare=prepare)
            tally.add("refusals")
            tally.add(f"{kind}: {'survived' if ended.code == 0 else 'told'}")
            tally.require("Traceback" not in ended.said, f"{what}: {ended}")
            if ended.code == 0:
                same = name in expected and outcome_of(name, out) == expected[name]
                lost = name == "pretrain" and "WARNING: " in ended.said  # of metrics or checkpoints, told
                tally.require(same or lost, f"{what}: another result: {ended}")
            else:
                lines = [line for line in ended.said.replace("\r", "\n").splitlines() if line.startswith("spdf ")]
                named = number == errno.ENOMEM or any(name in "".join(lines) for name in ("/", *INPUTS, str(out)))
                tally.require(len(lines) == 1 and named, f"{what}: {ended}")
                # A report lists what it leaves out, and safetensors says of every file that it cannot open that it is
                # missing: their exit code is 2.
                quoted = "left out" in ended.said or (kind == "open to read" and "safetensors" in ended.said)
                right = 2 if number in PERMISSION else 1
                tally.require(quoted or ended.code == right, f"{what}: exit code {ended.code}: {ended}")
            if kind != "unlink" and (once or kind != "open to read"):  # else nothing can be deleted
                hidden = [str(path) for path in Path().rglob(".*") if path.name != ".lock"]
                tally.require(not hidden, f"{what}: leftovers {hidden}: {ended}")
            for left in [path for path in Path().rglob(".*") if path.name != ".lock"]:
                delete(left)
            if ended.code != 0:
                several = name in ("report", "synthetic", "generate", "pretrain")
                tally.require(not out.exists() or several or outcome_of(name, out) == expected[name], f"{what}: half")
                again = run(target_of(name, words, out))
                tally.require(again.code == 0, f"{what}: {out} cannot be made afterwards: {again}")
                tally.require(outcome_of(name, out) == expected[name], f"{what}: afterwards, another result")
            delete(out)
        return tally


class Job:
    """A training job with one or two ranks, and its result when nothing disturbs it."""

    def __init__(self, campaign: Campaign, out: str, ranks: int) -> None:
        self.campaign, self.ranks = campaign, ranks
        ended = self.finish(Path(out))
        assert ended.code == 0, ended
        self.seconds = ended.seconds
        """Duration of the undisturbed job in forked processes."""
        self.command_seconds = 0.0
        """The same for the command line, measured at the first use."""
        self.expected = result_of(Path(out))

    def words(self, out: Path) -> tuple[str, ...]:
        """The command."""
        return self.campaign.pretrain(str(out), self.ranks)

    def fork(self, out: Path) -> list[Child]:
        """Start the ranks as forked processes."""
        if self.ranks == 1:
            return [start(self.words(out))]
        meeting = self.campaign.work / f"meeting-{time.monotonic_ns()}"
        return start_ranks(self.words(out), self.ranks, str(meeting))

    def finish(self, out: Path) -> Ended:
        """Run the job to its end in forked processes. Returns the end of rank 0."""
        ends = [wait(rank) for rank in self.fork(out)]
        return ends[0]

    def kill_forked_rank(self, out: Path, rng: random.Random) -> tuple[bool, Ended]:
        """Kill one of the ranks at a random moment. Returns whether it was alive, and the end of another rank.

        The other ranks must end by themselves within seconds, unless they had not yet met the killed rank. Then they
        are killed too, as the process that spawns ranks does.
        """
        ranks = self.fork(out)
        time.sleep(rng.uniform(0, 1.1 * self.seconds))
        victim = ranks.pop(rng.randrange(len(ranks)))
        os.kill(victim.pid, signal.SIGKILL)
        killed = wait(victim)
        others = [wait(rank, 5.0) for rank in ranks]
        if killed.code == 0:
            return False, others[0]
        return killed.code == -signal.SIGKILL, others[0]

    def kill_command(self, out: Path, rng: random.Random) -> tuple[bool, Ended, str]:
        """Kill a real process of the command line, or one of the ranks that it spawned.

        Returns whether something was killed, the end of the command, and what was killed.
        """
        if self.command_seconds == 0:
            trial = Path(f"command-{self.ranks}")
            ended = wait_process(start_process(self.words(trial)), limit=1800.0)
            assert ended.code == 0 and result_of(trial) == self.expected, ended
            self.command_seconds = ended.seconds
        process = start_process(self.words(out))
        time.sleep(rng.uniform(0, 1.05 * self.command_seconds))
        ranks = children_of(process.pid)
        chosen = rng.choice(("rank", "command", "all"))
        if process.poll() is not None:
            return False, wait_process(process), "a command"
        if self.ranks == 1 or not ranks:
            os.killpg(process.pid, signal.SIGKILL)
            ended = wait_process(process)
            return ended.code == -signal.SIGKILL, ended, "a command"
        victims = {"rank": [rng.choice(ranks)], "command": [process.pid], "all": [process.pid, *ranks]}[chosen]
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        ended = wait_process(process)
        end = time.monotonic() + 120
        while any(Path(f"/proc/{rank}").exists() for rank in ranks) and time.monotonic() < end:
            time.sleep(0.05)  # ranks without their parent save and end
        how = {"rank": "one of a command's two ranks", "command": "a command, not its ranks", "all": "all processes"}
        return ended.code not in (0, -signal.SIGALRM), ended, how[chosen]


def children_of(pid: int) -> list[int]:
    """The child processes of a process."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def target_of(name: str, words: Sequence[object], out: Path) -> list[object]:
    """A command with the path of its output."""
    return [*words, f"run_dir={out}" if name == "pretrain" else out]


def outcome_of(name: str, out: Path) -> object:
    """What must be equal after every completion of a command."""
    if name == "pretrain":
        return result_of(out)
    if name == "report":  # figures and pages contain times
        return {
            str(path.relative_to(out)): path.stat().st_size > 0 for path in sorted(out.rglob("*")) if path.is_file()
        }
    return digests(out)


def delete(out: Path) -> None:
    """Delete an output, with the record beside a file."""
    if out.is_dir():
        shutil.rmtree(out, ignore_errors=True)
    else:
        out.unlink(missing_ok=True)
    out.with_name(f"{out.name}.provenance.json").unlink(missing_ok=True)


def newest_step(run_dir: Path) -> int:
    """The step of the newest complete checkpoint of a run; 0 if there is none."""
    found = latest(run_dir / "checkpoints")
    return int(found.name.removeprefix("step_")) if found else 0


def place_of(name: str, stem: str) -> Path:
    """The path of a command's output."""
    return Path(f"{stem}.model" if name == "tokenizer" else f"{stem}-{name}")


def result_of(run_dir: Path) -> tuple[list[tuple[object, ...]], dict[str, str]]:
    """The results of a run: a tuple per metrics line, and the digests of the tensors of the last checkpoint."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    counted = [line for line in lines if "loss" in line or "val_loss" in line]
    numbers = [(line["step"], *(line.get(key) for key in COUNTED)) for line in counted]
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
