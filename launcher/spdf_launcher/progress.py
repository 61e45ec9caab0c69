"""The progress of a training job, read from the last lines of its run's metrics.jsonl."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from spdf_dist.base.numbers import clock, short_count
from spdf_launcher.folder import objects, tail

TAIL_BYTES = 65536


@dataclass(frozen=True)
class Progress:
    """The newest step of a run."""

    step: int
    steps: int | None
    tokens: int | None
    loss: float | None
    eta_seconds: float | None

    def text(self) -> str:
        """The progress in one short line."""
        parts = [f"step {self.step}" + (f"/{self.steps}" if self.steps else "")]
        if self.tokens is not None:
            parts.append(f"{short_count(self.tokens)} tokens")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.eta_seconds is not None:
            parts.append(f"ETA {clock(self.eta_seconds)}")
        return "  ".join(parts)


def read_progress(run_dir: Path, steps: int | None) -> Progress | None:
    """The progress of a run of ``steps`` steps (None: unknown); None before its first step."""
    newest = objects(tail(run_dir / "metrics.jsonl", TAIL_BYTES))  # the first line is cut, and therefore no object
    lines = [line for line in newest if isinstance(line.get("step"), int)]
    if not lines:
        return None
    steps_done = [line for line in lines if isinstance(line.get("step_ms"), int | float)]
    line = steps_done[-1] if steps_done else lines[-1]
    total = line.get("total_steps", steps)
    eta = None
    if isinstance(total, int) and steps_done:
        # A single step is not representative: steps differ in length, and the machine may have other load.
        eta = max(0, total - line["step"]) * statistics.median(step["step_ms"] for step in steps_done) / 1000
    return Progress(line["step"], total, line.get("consumed_tokens"), line.get("loss"), eta)
