"""Training callbacks: their interface, those of every run (metrics file, TensorBoard, progress) and how others load."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spdf_dist.base.numbers import clock, counted, duration
from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.config.schema import AnyConfig
from spdf_dist.config.suggest import nearest
from spdf_dist.extensions import extensions
from spdf_dist.training.event_file import EventFile
from spdf_dist.training.run_folder import RunFolder

if TYPE_CHECKING:
    from spdf_dist.parallel.groups import Groups
    from spdf_dist.training.engine import Engine

GROUP = "spdf.callbacks"
OWN = {
    "wandb": "spdf_dist.training.experiment_trackers:Wandb",
    "mlflow": "spdf_dist.training.experiment_trackers:Mlflow",
    "profiler": "spdf_dist.training.profile_window:Profiler",
    "eval": "spdf_dist.training.task_scores:TaskScores",
    "norms": "spdf_dist.training.norms:Norms",
    "ranks": "spdf_dist.training.rank_times:RankTimes",
}
"""Callbacks of this package, by name. Other packages add theirs through the entry point group."""


@dataclass(frozen=True)
class StepMetrics:
    """The metrics of one step: a line of metrics.jsonl."""

    step: int
    """Number of the step, from 1."""
    total_steps: int
    """Steps of the whole run; fine-tuning may stop earlier."""
    consumed_tokens: int
    """Target tokens up to and including this step."""
    loss: float
    """Mean over the global batch's target tokens, in nats per token."""
    lr: float
    grad_norm: float | None
    """L2 norm before clipping; null if the update was skipped for its loss, before the norm was computed."""
    tokens_per_s: float
    """Target tokens per second, over all ranks."""
    step_ms: float
    model_flops: int
    """FLOPs of this step on all ranks: the sparse model's forward and backward pass, without recomputation."""
    total_flops: int
    """Model FLOPs of all steps so far."""
    mfu: float | None
    """Model FLOP/s as a fraction of the dense peak; null if the peak is not known."""
    skipped_iterations: int
    """Skipped updates so far."""
    mask: dict[str, Any] | None = None
    """Facts about an update of the masks after this step; the key is absent in other steps."""


def scalars(metrics: StepMetrics, phases_ms: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics of a step, under the names that TensorBoard and the experiment trackers use."""
    return {
        "train/loss": metrics.loss,
        "train/lr": metrics.lr,
        "train/grad_norm": metrics.grad_norm,
        "speed/tokens_per_s": metrics.tokens_per_s,
        "speed/step_ms": metrics.step_ms,
        "speed/mfu": metrics.mfu,
        "flops/total": metrics.total_flops,
        **{f"time/{phase}_ms": value for phase, value in phases_ms.items()},
    }


@dataclass(frozen=True)
class RunInfo:
    """Facts about the run, for its callbacks."""

    kind: str
    """`pretrain` or `finetune`."""
    config: AnyConfig
    folder: RunFolder
    start_step: int
    """Steps done before this process started; 0 in a new run."""
    total_steps: int
    groups: Groups
    engine: Engine
    log: Callable[[int, Mapping[str, float]], None]
    """Log further metrics of a step, by name; called on rank 0. They reach ``on_metrics`` of every callback."""
    say: Callable[[str], None]
    """Send a message to the user; called on rank 0. It reaches ``on_note`` of every callback."""
    stop_requested: Callable[[], bool]
    """Whether this rank has received a signal to stop."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the model: the sparsity and the execution of its linears."""

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self.groups.rank


class Callback:
    """Observes a run. Each hook does nothing unless a subclass overrides it. A hook must not change the run.

    An instance is created by ``factory(run: RunInfo, **options)``. ``factory`` is the entry point of that name in the
    group ``spdf.callbacks`` (or in ``OWN``). ``options`` are the keys below ``callbacks.NAME`` in the config.
    """

    every_rank = False
    """Whether every rank has an instance; otherwise only rank 0 has one."""

    def on_start(self) -> None:
        """Before the first step, after ``load_state_dict``."""

    def before_step(self, step: int) -> None:
        """Before an optimizer step."""

    def on_step_progress(self, step: int, done: int, total: int) -> None:
        """After ``done`` of the ``total`` micro-batches of a step on this rank. A GPU may still work on them."""

    def after_step(self, metrics: StepMetrics, phases_ms: Mapping[str, float]) -> None:
        """After an optimizer step. ``phases_ms`` holds the milliseconds of the phases that were measured."""

    def before_validation(self, step: int) -> None:
        """Before a validation."""

    def on_validation_progress(self, step: int, done: int, total: int) -> None:
        """After ``done`` forward passes of a validation on this rank. ``total``: of the rank that has the most."""

    def after_validation(self, step: int, loss: float) -> None:
        """After a validation."""

    def before_checkpoint(self, step: int) -> None:
        """Before a checkpoint is saved or, with asynchronous saves, begun."""

    def after_checkpoint(self, step: int, path: Path, stalled: float) -> None:
        """After a checkpoint is complete. ``stalled``: seconds that training has waited for all saves so far."""

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Further metrics of a step, from a callback. The step may be before the newest one."""

    def on_note(self, text: str) -> None:
        """A message for the user."""

    def on_end(self) -> None:
        """After the loop, also after an exception."""

    def state_dict(self) -> dict[str, Any]:
        """A JSON object that the checkpoint stores for ``load_state_dict``."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict`` from the checkpoint. Not called in a new run."""


class Callbacks:
    """All callbacks of a run, by name. A call of a hook calls it on each of them, in order."""

    def __init__(self, named: Mapping[str, Callback]) -> None:
        self.named = dict(named)

    def __getattr__(self, hook: str) -> Callable[..., None]:
        if not hasattr(Callback, hook):
            raise AttributeError(hook)

        def call(*arguments: Any) -> None:
            for callback in self.named.values():
                getattr(callback, hook)(*arguments)

        return call

    def on_end(self) -> None:
        """Call ``on_end`` of each callback, also after one of them has failed; then raise the first error."""
        errors: list[Exception] = []
        for callback in self.named.values():
            try:
                callback.on_end()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def state_dict(self) -> dict[str, Any]:
        """The state of each callback that has one, by name."""
        return {name: state for name, callback in self.named.items() if (state := callback.state_dict())}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Restore the state of each callback. States of callbacks that are not loaded are ignored."""
        for name, state in states.items():
            if name in self.named:
                self.named[name].load_state_dict(state)


def load_callbacks(run: RunInfo) -> dict[str, Callback]:
    """The callbacks in the config's ``callbacks``, created from their entry points, and ``ranks`` for several ranks.

    Raises UserError for an unknown name, a missing package or options that a callback does not accept.
    """
    points = extensions(GROUP, OWN)
    found: dict[str, Callback] = {}
    wanted = ({"ranks": None} if run.groups.world_size > 1 else {}) | run.config.callbacks
    for name, options in wanted.items():
        if name not in points:
            known = ", ".join(sorted(points)) or "none"
            raise UserError(f"callbacks.{name}: no such callback{nearest(name, points)} (installed: {known})")
        if not isinstance(options, dict | None):
            raise UserError(f"callbacks.{name}: expected its options as keys and values, got {options!r}")
        try:
            factory = points[name].load()
            if run.rank == 0 or factory.every_rank:
                found[name] = factory(run, **(options or {}))
        except (ImportError, TypeError) as error:
            raise UserError(f"callbacks.{name}: {error}") from None
    return found


class MetricsFile(Callback):
    """Writes metrics.jsonl. Lines that cannot be written are kept and written with later ones."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.waiting: list[str] = []

    def after_step(self, metrics: StepMetrics, phases_ms: Mapping[str, float]) -> None:
        record = asdict(metrics)
        if metrics.mask is None:
            del record["mask"]
        self.write(record)

    def after_validation(self, step: int, loss: float) -> None:
        self.write({"step": step, "val_loss": loss})

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.write({"step": step, "metrics": dict(values)})

    def write(self, record: dict[str, Any]) -> None:
        """Add a line after those that are waiting, and try to write all of them."""
        self.waiting.append(json.dumps(record) + "\n")
        self.try_to_write("; training continues, and the lines are kept and written later")

    def try_to_write(self, otherwise: str) -> None:
        """Write the waiting lines. On failure, print a warning that ends with ``otherwise``.

        While lines are waiting, the warning is not repeated before the end of the run.
        """
        try:
            self.folder.append_metrics(self.waiting)
        except SpdfError as error:
            if len(self.waiting) == 1 or otherwise.startswith(": "):
                print(f"WARNING: {error}{otherwise}", file=sys.stderr)
        else:
            self.waiting = []

    def on_end(self) -> None:
        if self.waiting:
            self.try_to_write(f": {counted(len(self.waiting), 'line')} at its end are lost")


class TensorBoard(Callback):
    """Writes the metrics as TensorBoard scalars, with memory and HFU, and once the sparsity of each kind of linear.

    If the files cannot be written, it warns and stops writing, because metrics.jsonl holds the numbers too.
    """

    def __init__(
        self,
        folder: RunFolder,
        start_step: int,
        sparsity_by_group: Mapping[str, float],
        executed_ratio: float = 1.0,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """``executed_ratio`` is executed FLOPs over model FLOPs; ``texts`` are shown under their names."""
        self.path = folder.tensorboard
        self.executed_ratio = executed_ratio
        self.writer: EventFile | None = None
        purge_step = start_step + 1 if start_step else None
        self.attempt(lambda: setattr(self, "writer", EventFile(self.path, purge_step)))
        self.add({f"sparsity/{group}": sparsity for group, sparsity in sparsity_by_group.items()}, start_step)
        for name, text in (texts or {}).items():
            if self.writer is not None:
                self.attempt(partial(self.writer.add_text, name, text, start_step))

    def attempt(self, action: Callable[[], Any]) -> None:
        """Call ``action``. If it cannot write, warn and stop writing. TensorBoard takes only paths that are UTF-8."""
        try:
            action()
        except (OSError, UnicodeError) as error:
            if self.writer is not None:
                with contextlib.suppress(OSError):
                    self.writer.close()
            self.writer = None
            reason = getattr(error, "strerror", None) or error
            print(f"WARNING: {self.path} is no longer written: {reason}", file=sys.stderr)

    def add(self, scalars: Mapping[str, float | None], step: int) -> None:
        """Write the scalars that are not None."""
        if self.writer is not None:
            numbers = {name: value for name, value in scalars.items() if value is not None}
            self.attempt(partial(self.writer.add_scalars, numbers, step))

    def after_step(self, metrics: StepMetrics, phases_ms: Mapping[str, float]) -> None:
        further = {
            "speed/hfu": None if metrics.mfu is None else metrics.mfu * self.executed_ratio,
            "flops/step": metrics.model_flops,
            "memory/bytes": used_memory(),
            **{f"mask/{name}": value for name, value in (metrics.mask or {}).items()},
        }
        self.add(scalars(metrics, phases_ms) | further, metrics.step)

    def after_checkpoint(self, step: int, path: Path, stalled: float) -> None:
        self.add({"time/checkpoint_stall_s": stalled}, step)

    def after_validation(self, step: int, loss: float) -> None:
        self.add({"validation/loss": loss}, step)

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.add(values, step)

    def on_end(self) -> None:
        if self.writer is not None:
            self.attempt(self.writer.close)


def used_memory() -> int | None:
    """Bytes in use: on a GPU the maximum so far, on a CPU the resident set of this process; None without /proc."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * resource.getpagesize()


def finish_device_work() -> None:
    """Wait until the GPU of this process, if it has one, has finished: kernels run after the call that starts them."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Progress(Callback):
    """Shows loss, speed and ETA on stderr: a progress bar on a terminal, otherwise plain lines at intervals."""

    SECONDS_BETWEEN_LINES = 15.0

    def __init__(self, name: str, start_step: int, total_steps: int) -> None:
        from spdf_dist.base.progress_bar import ProgressBar

        self.total = total_steps
        self.name = name
        self.terminal = sys.stderr.isatty()
        self.bar: Any = ProgressBar(
            total=total_steps, initial=start_step, desc=name, unit="step", dynamic_ncols=True, disable=not self.terminal
        )
        self.validation = ""
        self.begin = (time.monotonic(), start_step)
        self.last_line = self.last_line_in_step = self.pass_begin = self.step_begin = 0.0

    def before_step(self, step: int) -> None:
        self.step_begin = self.pass_begin = self.last_line_in_step = time.monotonic()

    def on_step_progress(self, step: int, done: int, total: int) -> None:
        if step == self.begin[1] + 1 and done <= 2:
            finish_device_work()
        now = time.monotonic()
        seconds, self.pass_begin = now - self.pass_begin, now
        if step == self.begin[1] + 1 and done == min(2, total):  # the first micro-batch includes the warm-up
            rest = seconds * total * (self.total - step + 1)
            text = f"a micro-batch took {duration(seconds)}: about {duration(seconds * total)} per step"
            self.on_note(f"{text}, {duration(rest)} in all")
        elif now - self.last_line_in_step > self.SECONDS_BETWEEN_LINES and done < total:
            self.last_line_in_step = now
            left = (now - self.step_begin) / done * (total - done)
            self.on_note(f"step {step}: micro-batch {done} of {total}, {duration(left)} left in this step")

    def after_step(self, metrics: StepMetrics, phases_ms: Mapping[str, float]) -> None:
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

    def on_validation_progress(self, step: int, done: int, total: int) -> None:
        if self.terminal:
            self.bar.set_postfix_str(f"validation {done}/{total}", refresh=True)
            return
        now = time.monotonic()
        if now - self.last_line > self.SECONDS_BETWEEN_LINES and done < total:
            self.last_line = now
            print(f"{self.name}: step {step}/{self.total}  validation {done}/{total}", file=sys.stderr)

    def after_validation(self, step: int, loss: float) -> None:
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
