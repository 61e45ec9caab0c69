"""A callback that scores checkpoints with lm-evaluation-harness while the run trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from spdf_dist.base.extras import require_extra
from spdf_dist.base.rank_variables import without_ranks
from spdf_dist.config.errors import UserError
from spdf_dist.parallel.ranks import PARENT
from spdf_dist.training.callbacks import Callback, RunInfo

POLL_SECONDS = 0.2
PREFIX = "eval/"
"""Prefix of the metrics' names."""


class TaskScores(Callback):
    """Scores the checkpoints of every ``every`` steps, and that of the last step, with ``spdf eval``.

    ``every`` is a multiple of ``checkpoint.interval``, which is its default. The other options are those of ``spdf
    eval``. Rank 0 starts the command as a process of its own, so that it changes nothing in the training process. All
    ranks wait for it without a time limit. A stop request ends it; the run then scores the checkpoint when it
    continues. A command that fails is a warning.
    """

    every_rank = True

    def __init__(
        self,
        run: RunInfo,
        tasks: str | Sequence[str] = (),
        every: int | None = None,
        include_path: str | None = None,
        num_fewshot: int | None = None,
        limit: int | None = None,
        batch_size: int = 8,
        device: str = "auto",
    ) -> None:
        require_extra("eval", "callbacks.eval")
        interval = run.config.checkpoint.interval
        self.run = run
        self.every = interval if every is None else every
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        if not names:
            raise UserError("callbacks.eval.tasks: name one or more tasks of lm-evaluation-harness")
        if not isinstance(self.every, int) or self.every < 1 or self.every % interval:
            raise UserError(
                f"callbacks.eval.every: {every} is not a multiple of checkpoint.interval {interval}: "
                "the scores are those of checkpoints"
            )
        options = {
            "--include-path": include_path,
            "--num-fewshot": num_fewshot,
            "--limit": limit,
            "--batch-size": batch_size,
            "--device": device if run.config.device == "auto" else run.config.device,
        }
        self.options = ["--tasks", *map(str, names)]
        for option, value in options.items():
            self.options += [] if value is None else [option, str(value)]
        run.groups.on_rank_zero(self.check)

    def check(self) -> None:
        """Raise UserError if the options of the command or the names of the tasks are wrong."""
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            if self.start(Path("none"), output, errors, "--check").wait() != 0:
                raise UserError(f"callbacks.eval: {reason(errors)}")

    def start(self, checkpoint: Path, output: IO[str], errors: IO[str], *more: str) -> subprocess.Popen[bytes]:
        """Start the command. It ends with this process and does not take part in the run's process group."""
        command = [sys.executable, "-P", "-m", "spdf_dist", "eval", str(checkpoint), *self.options, "--json", *more]
        environment = {**without_ranks(os.environ), PARENT: str(os.getpid())}
        return subprocess.Popen(command, env=environment, stdout=output, stderr=errors, start_new_session=True)

    def on_start(self) -> None:
        step = self.run.start_step
        if step and self.is_due(step) and not self.run.groups.on_rank_zero(lambda: self.is_scored(step)):
            self.score(step, self.run.folder.checkpoints / f"step_{step}")

    def after_checkpoint(self, step: int, path: Path, stalled: float) -> None:
        if self.is_due(step):
            self.score(step, path)

    def is_due(self, step: int) -> bool:
        """Whether the checkpoint of this step is scored."""
        return step % self.every == 0 or step == self.run.total_steps

    def is_scored(self, step: int) -> bool:
        """Whether the metrics hold scores of this step, from before the run continued."""
        if not self.run.folder.metrics.exists():
            return False
        lines = self.run.folder.metrics.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines if f'"{PREFIX}' in line]
        return any(line["step"] == step for line in found)

    def score(self, step: int, checkpoint: Path) -> None:
        """Score a checkpoint; collective."""
        groups = self.run.groups
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = self.start(checkpoint, output, errors) if groups.rank == 0 else None
            stopped = False
            # The ranks agree again and again, so that no collective of the next step times out.
            while process_runs := groups.all_reduce_max(float(process is not None and process.poll() is None)):
                stopped = groups.all_reduce_max(float(self.run.stop_requested())) > 0
                if stopped and process is not None:
                    process.kill()
                    process.wait()
                time.sleep(POLL_SECONDS * process_runs)
            if process is None or stopped:
                return
            if process.returncode != 0:
                self.run.say(f"WARNING: the tasks of step {step} were not scored: {reason(errors)}")
                return
            output.seek(0)
            scores = json.loads(output.read().splitlines()[-1])["tasks"]
        values = {f"{PREFIX}{task}/{name}": value for task, row in scores.items() for name, value in row.items()}
        self.run.log(step, values)
        self.run.say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))


def reason(errors: IO[str]) -> str:
    """The command's own error in its output, or the last line, without the name of the command."""
    errors.seek(0)
    lines = errors.read().strip().splitlines() or ["no output"]
    own = [line for line in lines if line.startswith("spdf eval: ")]
    return (own or lines)[-1].removeprefix("spdf eval: ")
