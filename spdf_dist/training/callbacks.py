"""What hangs on the training loop: metrics file, TensorBoard, progress line. Rank 0 alone has them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from spdf_dist.training.run_folder import RunFolder


@dataclass(frozen=True)
class StepMetrics:
    """One line of metrics.jsonl."""

    step: int
    """From 1."""
    total_steps: int
    """Of the whole run; fine-tuning may stop earlier."""
    consumed_tokens: int
    loss: float
    """Mean over the global batch's target tokens."""
    lr: float
    grad_norm: float | None
    """Before clipping; null when the update was skipped."""
    tokens_per_s: float
    step_ms: float
    model_flops: int
    """Of this step, all ranks: the sparse model's forward and backward, without recomputation."""
    total_flops: int
    """Of all steps so far."""
    mfu: float | None
    """Share of the dense peak, null where the peak is not known."""
    skipped_iterations: int
    mask: dict[str, Any] | None = None
    """What an update of the masks did after this step; the key is absent in other steps."""


class Callback:
    """Hooks of the loop; each does nothing unless overridden."""

    def on_step(self, metrics: StepMetrics) -> None:
        """After every optimizer step."""

    def on_validation(self, step: int, loss: float) -> None:
        """After a validation."""

    def on_note(self, text: str) -> None:
        """Something a person should know."""

    def on_end(self) -> None:
        """The loop is left, however that happens."""


class MetricsFile(Callback):
    """metrics.jsonl."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_step(self, metrics: StepMetrics) -> None:
        record = asdict(metrics)
        if metrics.mask is None:
            del record["mask"]
        self.folder.append_metrics(record)

    def on_validation(self, step: int, loss: float) -> None:
        self.folder.append_metrics({"step": step, "val_loss": loss})


class TensorBoard(Callback):
    """The same numbers as scalars, with memory and HFU, and the sparsity of each layer group once.

    A disk that does not take its files is a warning, and the end of them: metrics.jsonl has the numbers.
    """

    def __init__(
        self, folder: RunFolder, start_step: int, sparsity_by_group: dict[str, float], executed_ratio: float = 1.0
    ) -> None:
        """``executed_ratio``: FLOPs that a step executes over its model FLOPs."""
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder.tensorboard
        self.executed_ratio = executed_ratio
        self.writer: Any = None
        purge_step = start_step + 1 if start_step else None
        self.attempt(lambda: setattr(self, "writer", SummaryWriter(str(self.path), purge_step=purge_step)))
        self.add({f"sparsity/{group}": sparsity for group, sparsity in sparsity_by_group.items()}, start_step)

    def attempt(self, action: Callable[[], Any]) -> None:
        """Do something with the files, and give them up when it fails."""
        try:
            action()
        except OSError as error:
            self.writer = None
            print(f"WARNING: {self.path} is not written any more: {error.strerror or error}", file=sys.stderr)

    def add(self, scalars: Mapping[str, float | None], step: int) -> None:
        """The scalars that are not None."""
        for name, value in scalars.items():
            if value is not None and self.writer is not None:
                self.attempt(partial(self.writer.add_scalar, name, value, step))

    def on_step(self, metrics: StepMetrics) -> None:
        scalars = {
            "train/loss": metrics.loss,
            "train/lr": metrics.lr,
            "train/grad_norm": metrics.grad_norm,
            "speed/tokens_per_s": metrics.tokens_per_s,
            "speed/step_ms": metrics.step_ms,
            "speed/mfu": metrics.mfu,
            "speed/hfu": None if metrics.mfu is None else metrics.mfu * self.executed_ratio,
            "flops/step": metrics.model_flops,
            "flops/total": metrics.total_flops,
            "memory/bytes": used_memory(),
        }
        scalars |= {f"mask/{name}": value for name, value in (metrics.mask or {}).items()}
        self.add(scalars, metrics.step)

    def on_validation(self, step: int, loss: float) -> None:
        self.add({"validation/loss": loss}, step)
        if self.writer is not None:
            self.attempt(self.writer.flush)

    def on_end(self) -> None:
        if self.writer is not None:
            self.attempt(self.writer.close)


def used_memory() -> int:
    """Bytes in use: the most so far on a GPU, the resident set of this process on a CPU."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096


class Progress(Callback):
    """A progress line with loss, speed and ETA on stderr; a plain line now and then where that is no terminal."""

    SECONDS_BETWEEN_LINES = 15.0

    def __init__(self, name: str, start_step: int, total_steps: int) -> None:
        from tqdm import tqdm

        self.total = total_steps
        self.name = name
        self.terminal = sys.stderr.isatty()
        self.bar: Any = tqdm(
            total=total_steps, initial=start_step, desc=name, unit="step", dynamic_ncols=True, disable=not self.terminal
        )
        self.validation = ""
        self.begin = (time.monotonic(), start_step)
        self.last_line = 0.0

    def on_step(self, metrics: StepMetrics) -> None:
        text = f"loss {metrics.loss:.3f}{self.validation}  lr {metrics.lr:.2e}  {metrics.tokens_per_s:,.0f} tokens/s"
        if self.terminal:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(1)
            return
        now = time.monotonic()
        if now - self.last_line > self.SECONDS_BETWEEN_LINES or metrics.step == self.total:
            self.last_line = now
            done = metrics.step - self.begin[1]
            eta = (now - self.begin[0]) / max(1, done) * (self.total - metrics.step)
            print(f"{self.name}: step {metrics.step}/{self.total}  {text}  ETA {clock(eta)}", file=sys.stderr)

    def on_validation(self, step: int, loss: float) -> None:
        self.validation = f"  val {loss:.3f}"
        if not self.terminal:
            print(f"{self.name}: step {step}/{self.total}  validation loss {loss:.4f}", file=sys.stderr)

    def on_note(self, text: str) -> None:
        if self.terminal:
            self.bar.write(f"{self.name}: {text}", file=sys.stderr)
        else:
            print(f"{self.name}: {text}", file=sys.stderr)

    def on_end(self) -> None:
        self.bar.close()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
