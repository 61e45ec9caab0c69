"""Results as JSON lines, written and printed at once, and the remaining time of the part that runs."""

from __future__ import annotations

import json
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Record:
    """The results file of one run; a stop at any time loses no written result."""

    path: Path
    seconds: float
    """Time limit of all parts together."""
    began: float = field(default_factory=time.monotonic)
    lines: list[dict[str, Any]] = field(default_factory=list)
    part_ends: float = float("inf")
    """When the current part should end, on the clock of ``time.monotonic``."""

    def say(self, part: str, **fields: Any) -> None:
        """Write and print one result."""
        line = {"part": part, **fields}
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = (
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in fields.items()
        )
        print(f"{part}: {' '.join(shown)}", flush=True)

    def left(self) -> float:
        """Seconds until the run should end."""
        return self.seconds - (time.monotonic() - self.began)

    def part_left(self) -> float:
        """Seconds until the current part should end."""
        return min(self.part_ends - time.monotonic(), self.left())

    def is_over(self, what: str) -> bool:
        """Whether the part's time is over; if so, a line says that ``what`` is skipped."""
        over = self.part_left() <= 0
        if over:
            self.say("clock", skipped=what, left=self.left())
        return over

    def dense_ms(self, model: str) -> dict[tuple[str, str], float]:
        """Milliseconds of the dense products of a model by (linear, product), from the lines so far."""
        found = [line for line in self.lines if line["part"] == "dense" and line.get("model") == model and "ms" in line]
        return {(line["linear"], line["product"]): line["ms"] for line in found}

    def dense_step_ms(self, model: str, label: str) -> float | None:
        """Milliseconds of the dense step of a model, from the lines so far; None if it was not measured."""
        found = (line["ms"] for line in self.lines if (line.get("model"), line.get("execution")) == (model, label))
        return next(found, None)

    def attempt(self, part: str, action: Callable[[], Any], **fields: Any) -> Any:
        """The result of `action`; if it fails, the error is recorded and the result is None."""
        try:
            return action()
        except Exception as error:
            traceback.print_exc()
            self.say(part, **fields, error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return None


def machine_info() -> dict[str, Any]:
    """GPU, driver and versions."""
    fields: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    try:
        import triton

        fields["triton"] = triton.__version__
    except ImportError:
        fields["triton"] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        fields |= {
            "gpu": properties.name,
            "processors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
        }
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,power.limit", "--format=csv,noheader"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
            fields["driver, SM clock, power limit"] = answer.strip()
        except (OSError, subprocess.SubprocessError) as error:
            fields["driver"] = f"unknown: {error}"
    return fields
