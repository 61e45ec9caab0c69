"""Runs one job of a workflow: locally, under deepspeed or inside a Slurm allocation.

    python -m spdf_launcher.job DIR JOB

It checks the jobs that this job needs, runs the command, keeps its output in the job's folder, and writes the manifest.
Exit codes: 0 done, now or earlier; 2 and 3 from the trainer, never retried; 75 stopped by a signal, can be started
again; 1 failed, not retried.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from spdf_dist.base.atomic_files import open_new, remove
from spdf_dist.base.file_locks import birth, is_locked, try_lock, unlock
from spdf_dist.base.provenance import made_with
from spdf_dist.base.signals import ReceivedSignals
from spdf_dist.config.errors import EXIT_BAD_INPUT, EXIT_NON_FINITE, EXIT_STOPPED
from spdf_dist.workflow_folder import CANCELLED, DONE, FAILED, job_folder, read_json
from spdf_launcher.attempts import COMMAND, END, START, history, newest_checkpoint, record
from spdf_launcher.executors import find_executor
from spdf_launcher.folder import digest, now, read_lines, tail, write_json, write_text
from spdf_launcher.kinds import KINDS
from spdf_launcher.moved import follow
from spdf_launcher.plan import Job, job_from_json, outputs
from spdf_launcher.process import outcome_of, reported_exit_code, run_command
from spdf_launcher.rank import EXIT_FILE
from spdf_launcher.references import substitute
from spdf_launcher.requeue import slurm_job

RUN_LOCK = ".lock"
"""Lock file in a run folder; the trainer holds it while it runs."""
LEFT_OVER_SECONDS = 60.0
"""Longest wait for ranks of an earlier attempt to end, because the trainer refuses a run folder that is in use."""


class Runner:
    """Runs one job in this process."""

    def __init__(self, root: Path, job_id: str) -> None:
        self.root = root
        self.folder = job_folder(root, job_id)
        spec = read_json(self.folder.spec)
        if spec is None:
            raise SystemExit(f"spdf job: {self.folder.spec} is missing or incomplete: run `spdf run` again")
        self.spec = spec
        self.job: Job = job_from_json(spec)
        self.kind = KINDS[self.job.kind]
        self.executor = find_executor(spec["on"])()
        self.queued = self.executor.holds_job()
        self.remark: str | None = None
        self.out_of_time = False
        self.signals = ReceivedSignals()
        self.started = now()
        self.lock: int | None = None

    def run(self) -> int:
        """Run the job to its end and return the exit code. Retries here unless a batch system requeues the job."""
        self.lock = try_lock(self.folder.lock, patience=2.0)
        if self.lock is None and self.is_requeued():
            self.lock = self.lock_after_earlier_attempt()
            if self.lock is None:
                return self.stopped()
        if self.lock is None:
            print(f"{self.job.id}: runs already", file=sys.stderr)
            return 1
        try:
            if self.folder.is_done(self.job.key):
                print(f"{self.job.id}: done already", file=sys.stderr)
                return 0
            missing = self.unmet()
            if missing is not None:
                print(f"{self.job.id}: not started: {missing}", file=sys.stderr)
                self.finish(CANCELLED, missing, EXIT_BAD_INPUT, [])
                return EXIT_BAD_INPUT
            if self.queued:  # a user may submit the script of a failed job again
                self.folder.manifest.unlink(missing_ok=True)
            with self.signals:
                return self.attempts()
        finally:
            unlock(self.lock)

    def is_requeued(self) -> bool:
        """Whether the last attempt was the same job of the batch system."""
        last = history(self.folder).last_start
        return self.queued and last is not None and last.get("slurm_job_id") == slurm_job()

    def lock_after_earlier_attempt(self) -> int | None:
        """Wait until the earlier attempt of a requeued job has ended, and return the lock; None after a signal.

        The earlier attempt can still run on a node that Slurm has lost, until the node hears of the requeue.
        """
        start = history(self.folder).last_start or {}
        print(f"{self.job.id}: waits for the end of its earlier attempt on {start.get('host')}", file=sys.stderr)
        lock = None
        with self.signals:
            while lock is None and not self.signals.got:
                lock = try_lock(self.folder.lock, patience=1.0)
        return lock

    def stopped(self) -> int:
        """Requeue a stopped job if it must continue; return the exit code."""
        if self.queued and self.executor.goes_on(self.signals) and self.folder.status() != CANCELLED:
            self.executor.requeue()
        return EXIT_STOPPED

    def unmet(self) -> str | None:
        """Why the job cannot start: a needed job is not done with the expected inputs. None: it can start."""
        states = self.executor.states(self.root) if self.queued and self.job.fan_in else {}
        for need, key in self.spec["parents"].items():
            manifest = read_json(job_folder(self.root, need).manifest)
            if self.job.fan_in:
                # A job that Slurm cancels (its parent failed) or ends at its time limit has no manifest.
                if manifest is None and (need not in states or states[need].is_live):
                    return f"{need} has not ended"
            elif manifest is None or manifest.get("status") != DONE:
                how = "is not done" if manifest is None else f"{manifest.get('status')}: {manifest.get('reason')}"
                return f"{need} {how}"
            elif manifest.get("key") != key:
                return f"{need} was made from other inputs"
        return None

    def attempts(self) -> int:
        """Run attempts until the job is done, stopped, or failed without a retry left; return the exit code."""
        while True:
            code, command = self.attempt()
            outcome = self.outcome(code)
            reason = self.reason(code, outcome)
            record(self.folder, END, exit_code=code, outcome=outcome, checkpoint=self.checkpoint(), reason=reason)
            if outcome == "done":
                self.finish(DONE, self.remark, 0, command)
                return 0
            if outcome == "stopped":
                return self.stopped()
            failures = history(self.folder).failures
            if code in (EXIT_BAD_INPUT, EXIT_NON_FINITE):
                self.finish(FAILED, reason, code, command)
                return code
            if failures >= self.job.resources.max_failures:
                times = f" ({failures} times with no new checkpoint)" if failures > 1 else ""
                self.finish(FAILED, f"{reason}{times}", code, command)
                return 1
            print(
                f"{self.job.id}: {reason}; trying again ({failures} of {self.job.resources.max_failures})",
                file=sys.stderr,
            )
            if self.queued:
                self.executor.requeue()
            self.signals.pause(min(2.0**failures, 30.0) / 2)
            if self.signals.got:
                return EXIT_STOPPED

    def checkpoint(self) -> int:
        """The newest checkpoint of a training job; -1 if there is none."""
        return newest_checkpoint(self.folder.run_dir) if self.kind.continues else -1

    def outcome(self, code: int) -> str:
        """`done`, `stopped` or `failed`."""
        found = outcome_of(code, self.signals)
        if not self.queued or code in (0, EXIT_BAD_INPUT, EXIT_NON_FINITE) or self.folder.status() == CANCELLED:
            return found
        # Preemption is not a failure, although commands without checkpoints die of its signal.
        if self.executor.is_preempted():
            return "stopped"
        # A job that starts from the beginning would reach its time limit every time.
        self.out_of_time = not self.kind.continues and signal.SIGUSR1 in self.signals.got
        return "failed" if self.out_of_time else found

    def attempt(self) -> tuple[int, list[str]]:
        """Run the command once; return its exit code and the command."""
        self.wait_for_left_over()
        command = self.command()
        exit_file = self.folder.exit_code
        exit_file.unlink(missing_ok=True)
        if self.kind.continues:
            follow(self.folder.run_dir, self.job.id)
        else:
            remove(self.folder.out)
        (self.folder.run_dir if self.kind.continues else self.folder.out).mkdir(parents=True, exist_ok=True)
        number = history(self.folder).count + 1
        record(
            self.folder,
            START,
            attempt=number,
            host=socket.gethostname(),
            pid=os.getpid(),
            birth=birth(os.getpid()),
            slurm_job_id=slurm_job(),
            checkpoint=self.checkpoint(),
        )
        # `spdf cancel` writes the manifest first and then reads the START line. Either it sees this attempt, or this
        # attempt sees the manifest.
        if self.folder.status() == CANCELLED:
            return EXIT_STOPPED, command
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "10", EXIT_FILE: str(exit_file)}
        environment["PYTHONSAFEPATH"] = "1"  # a file in the current folder must not shadow a module
        captured = Path(self.folder.path / self.kind.captured) if self.kind.captured else None
        aside = captured.with_name(f"{captured.name}.tmp") if captured is not None else None
        if aside is not None:
            aside.unlink(missing_ok=True)  # of an earlier attempt; a link is not followed
        with self.folder.log.open("ab") as log:
            log.write(f"== {now()} {socket.gethostname()} attempt {number}: {json.dumps(command)}\n".encode())
            log.flush()
            with nullcontext(log) if aside is None else open_new(aside, "wb") as output:
                code = self.wait(command, environment, output.fileno(), log.fileno())
        code = reported_exit_code(code, exit_file) if self.spec["ranks_tell"] else code
        if captured is not None and aside is not None and (code == 0 or (code == 1 and read_json(aside) is not None)):
            aside.replace(captured)
        if code == 1 and self.kind.success_file is not None and (self.folder.path / self.kind.success_file).exists():
            self.remark, code = last_words(self.folder.log), 0
        if code == 0:
            code = self.check_outputs()
        return code, command

    def wait(self, command: list[str], environment: dict[str, str], output: int, errors: int) -> int:
        """Run a command to its end; return its exit code."""
        # The command inherits the lock, so the job counts as running if this process is killed.
        assert self.lock is not None
        return run_command(
            command,
            self.signals,
            cwd=self.spec["cwd"],
            environment=environment,
            output=output,
            errors=errors,
            forward=self.executor.forward,
            keep_open=(self.lock,),
            started=lambda pid: record(self.folder, COMMAND, pid=pid, birth=birth(pid)),
        )

    def wait_for_left_over(self) -> None:
        """Wait, at most LEFT_OVER_SECONDS, until no rank of an earlier attempt runs in the run folder."""
        lock, end = self.folder.run_dir / RUN_LOCK, time.monotonic() + LEFT_OVER_SECONDS
        if not is_locked(lock):
            return
        self.log(
            f"an earlier attempt still runs in {lock.parent}: waiting for its end, {LEFT_OVER_SECONDS:g} s at most"
        )
        while is_locked(lock) and time.monotonic() < end and not self.signals.got:
            self.signals.pause(0.5)

    def check_outputs(self) -> int:
        """0 if all outputs of the job exist and training reached its last step; else 1, with a line in the log."""
        missing = next((path for path in self.job.outputs.values() if not Path(path).exists()), None)
        if missing is not None:
            self.log(f"the command succeeded but did not write {missing}")
            return 1
        reached = newest_checkpoint(self.folder.run_dir)
        if self.job.steps is not None and reached < self.job.steps:
            self.log(
                f"the command succeeded, but its checkpoints reach only step {max(reached, 0)} of {self.job.steps}"
            )
            return 1
        return 0

    def log(self, text: str) -> None:
        """Write a line to the job's log."""
        with self.folder.log.open("a", encoding="utf-8") as log:
            log.write(f"spdf job: {text}\n")

    def command(self) -> list[str]:
        """The arguments of the command. Also writes the job's config."""
        chosen = self.choices()

        def look_up(parts: tuple[str, ...]) -> str:
            choice = chosen[parts[1]]
            wanted = ".".join(parts[3:])
            if parts[2] == "grid":
                return str(choice["grid"][wanted])
            return str(self.root / choice["outputs"][parts[2]][wanted])

        if self.job.kind == "select":
            return [sys.executable, "-P", "-m", "spdf_launcher.select", str(self.root), self.job.id]
        if self.job.config is not None:
            tree = substitute(self.job.config, look_up, final=True)
            write_text(self.folder.path / "config.yaml", yaml.safe_dump(tree, sort_keys=False, width=120))
        return [*self.spec["program"], *substitute(self.job.arguments, look_up, final=True)]

    def choices(self) -> dict[str, dict[str, Any]]:
        """The choices of the `select` jobs that this job needs, by name."""
        found = {}
        for need in self.job.needs:
            spec = read_json(job_folder(self.root, need).spec) or {}
            if spec.get("kind") == "select":
                choice = read_json(Path(outputs(self.root, need, "select")["choice"])) or {}
                # Older versions wrote absolute paths, below the location of the folder at that time.
                before = str(spec["outputs"]["choice"]).removesuffix(f"jobs/{need}/out/choice.json")
                found[str(spec["name"])] = choice | {"outputs": inside(choice.get("outputs", {}), before)}
        return found

    def reason(self, code: int, outcome: str) -> str | None:
        """One line about the end of an attempt; None if it is done."""
        if outcome == "done":
            return None
        if outcome == "stopped":
            return "stopped by a signal"
        if self.out_of_time:
            key = f"jobs.{self.job.name}.resources.time"
            return f"reached its time limit, and starts from the beginning each time: raise {key}"
        line = last_words(self.folder.log)
        if code > 128 and code - 128 in set(signal.Signals):
            return f"ended by {signal.Signals(code - 128).name}" + (f"; last line: {line}" if line else "")
        return line if line is not None else f"exit code {code}"

    def finish(self, status: str, reason: str | None, code: int, command: list[str]) -> None:
        """Write the manifest."""
        past = history(self.folder)
        write_json(
            self.folder.manifest,
            {
                "schema_version": 1,
                "job": self.job.id,
                "kind": self.job.kind,
                "status": status,
                "reason": reason,
                "exit_code": code,
                "key": self.job.key,
                "inputs": {
                    "command_sha256": digest(self.job.arguments),
                    "config_sha256": None if self.job.config is None else digest(self.job.config),
                    "parents": self.spec["parents"],
                    "files": self.job.files,
                },
                "argv": command,
                "started": past.last_start["time"] if past.last_start else self.started,
                "ended": now(),
                "attempts": past.count,
                "nodes": [os.environ.get("SLURM_JOB_NODELIST", socket.gethostname())],
                "slurm_job_id": slurm_job(),
                **made_with(),
                "outputs": self.job.outputs if status == DONE else {},
                "metrics": self.metrics() if status == DONE else {},
            },
        )

    def metrics(self) -> dict[str, float]:
        """Numbers that `select` can use: those that the command printed, or the last and best losses of the run."""
        if self.kind.captured:
            told = read_json(self.folder.path / self.kind.captured) or {}
            return numbers({key: value for key, value in told.items() if key != "provenance"})
        if not self.kind.continues:
            return {}
        lines = read_lines(self.folder.run_dir / "metrics.jsonl")
        found: dict[str, float] = {}
        for line in lines:
            found |= {key: line[key] for key in ("step", "consumed_tokens", "loss", "total_flops") if key in line}
        validation = [line["val_loss"] for line in lines if isinstance(line.get("val_loss"), int | float)]
        return found | ({"val_loss": min(validation)} if validation else {})


def inside(outputs: dict[str, dict[str, str]], root: str) -> dict[str, dict[str, str]]:
    """The outputs of chosen jobs with paths relative to ``root``."""
    return {job: {name: path.removeprefix(root) for name, path in made.items()} for job, made in outputs.items()}


def numbers(tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a JSON object, by dotted names."""
    found: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "schema_version":
            found[f"{prefix}{key}"] = value
    return found


def last_words(log: Path, reach: int = 16384) -> str | None:
    """The line of a log that explains a failure best: the trainer's message, else the last line."""
    text = tail(log, reach)
    lines = [line.strip() for line in text.rpartition("\n== ")[2].replace("\r", "\n").splitlines()[1:] if line.strip()]
    spoken = [line for line in lines if line.startswith("spdf ")]
    said = (spoken or lines)[-1:]
    return said[0][:300] if said else None


def main(arguments: list[str]) -> int:
    """Run the job that the arguments name."""
    if len(arguments) != 2:
        print("usage: python -m spdf_launcher.job DIR JOB", file=sys.stderr)
        return EXIT_BAD_INPUT
    return Runner(Path(arguments[0]).absolute(), arguments[1]).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
