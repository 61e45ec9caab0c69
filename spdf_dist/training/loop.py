"""The training loop: steps, validation, checkpoints, stopping. Pre-training and fine-tuning both run through it."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from spdf_dist.base.signals import StopRequest
from spdf_dist.config.errors import NonFiniteError, SpdfError, Stopped, UserError
from spdf_dist.training.batches import Source
from spdf_dist.training.callbacks import Callback, StepMetrics
from spdf_dist.training.engine import Engine, StepResult

SPIKE_WINDOW = 64
"""Recent losses whose median a spike is measured against."""


@dataclass
class TrainingState:
    """What a checkpoint keeps beside weights and moments; everything else follows from the config and the step."""

    step: int = 0
    total_flops: int = 0
    skipped_iterations: int = 0
    recent_losses: list[float] = field(default_factory=list)
    best_val_loss: float | None = None
    best_step: int = 0
    validations_without_gain: int = 0
    validation_due: bool = False
    """A stop came before or within the validation of ``step``: the run goes on with it."""
    mask_updates: int = 0
    """How many times a dynamic method has changed the masks."""
    data_offset: int = 0
    """The global sample index that step 1 reads first; not 0 in a run that started from another checkpoint."""


class DynamicSparsity(Protocol):
    """A method that changes the masks while a model trains."""

    def before_step(self, step: int) -> None:
        """Called on every rank before the step's forward pass."""

    def after_step(self, step: int, result: StepResult) -> dict[str, Any] | None:
        """Called on every rank after the optimizer's step; returns what changed, for the metrics."""


@dataclass
class Loop:
    """One run of training, from ``state.step`` to the source's last step.

    ``save(state)`` writes a checkpoint, collectively. ``patience`` ends the run after so many validations without a
    better loss (0: never); ``keep_best`` also saves whenever the validation loss is the
    best so far, and then ``best_step`` is always one that was saved. ``peak_flops`` is the dense peak of all ranks'
    devices, None where it is not known.
    """

    engine: Engine
    source: Source
    state: TrainingState
    callbacks: Sequence[Callback]
    save: Callable[[TrainingState], Any]
    checkpoint_interval: int
    stop: StopRequest
    patience: int = 0
    keep_best: bool = False
    skip_loss_spike: float = 0.0
    peak_flops: float | None = None
    until: int | None = None
    """A step before the last at which ``run`` returns after saving; None: only the last."""
    method: DynamicSparsity | None = None
    """Changes the masks after a step."""
    saved_best: tuple[float | None, int] = field(init=False, default=(None, 0))
    """``best_val_loss`` and ``best_step`` of the newest checkpoint."""

    def run(self) -> None:
        """Train to the end. Raises Stopped after saving when a signal came, NonFiniteError, SpdfError."""
        state = self.state
        recent = deque(state.recent_losses, maxlen=SPIKE_WINDOW)
        self.saved_best = (state.best_val_loss, state.best_step)
        try:
            while not self.is_over():
                stop = False
                if not state.validation_due:
                    stop = self.train_step(recent)
                    state.validation_due = self.source.validates_after(state.step)
                if state.validation_due and not stop:
                    stop = self.validate()
                state.recent_losses = list(recent)
                over = self.is_over()
                best = self.keep_best and state.best_step == state.step
                if stop or over or best or state.step % self.checkpoint_interval == 0:
                    self.checkpoint(final=stop or over)
                if stop and not over:
                    where = f"at step {state.step} of {self.source.total_steps}"
                    before = ", before its validation," if state.validation_due else ""
                    raise Stopped(f"stopped {where}{before} after saving; run it again to go on")
        finally:
            for callback in self.callbacks:
                callback.on_end()

    def is_over(self) -> bool:
        """Whether the last step is done and validated, or validation has not got better for long enough."""
        state = self.state
        impatient = self.patience > 0 and state.validations_without_gain >= self.patience
        return not state.validation_due and (state.step in (self.source.total_steps, self.until) or impatient)

    def train_step(self, recent: deque[float]) -> bool:
        """One optimizer step; returns whether the ranks agreed to stop."""
        begin = time.perf_counter()
        step = self.state.step + 1
        batch = self.source.batch(step)
        lr = self.source.lr(step)
        threshold = float("inf")
        if self.skip_loss_spike and len(recent) == SPIKE_WINDOW:
            threshold = self.skip_loss_spike * statistics.median(recent)
        if self.method is not None:
            self.method.before_step(step)
        result = self.engine.step(
            batch.micro_batches,
            batch.target_tokens,
            lr,
            stop_requested=self.stop.requested,
            spike_threshold=threshold,
        )
        changed = None if self.method is None else self.method.after_step(step, result)
        seconds = time.perf_counter() - begin
        if not result.skipped:
            recent.append(result.loss)
        self.state.step = step
        self.state.total_flops += batch.model_flops
        self.state.skipped_iterations += result.skipped
        metrics = StepMetrics(
            step=step,
            total_steps=self.source.total_steps,
            consumed_tokens=self.source.consumed_tokens(step),
            loss=result.loss,
            lr=lr,
            grad_norm=None if result.skipped else result.grad_norm,
            tokens_per_s=batch.target_tokens / seconds,
            step_ms=1000 * seconds,
            model_flops=batch.model_flops,
            total_flops=self.state.total_flops,
            mfu=None if self.peak_flops is None else batch.model_flops / seconds / self.peak_flops,
            skipped_iterations=self.state.skipped_iterations,
            mask=changed,
        )
        for callback in self.callbacks:
            callback.on_step(metrics)
        return result.stop

    def validate(self) -> bool:
        """The validation loss; returns whether a stop came in the middle: then nothing is recorded and it stays due."""
        result = self.engine.evaluate(self.source.validation(), lambda: self.stop.requested)
        if result is None:
            return True
        loss, _tokens = result
        state = self.state
        if not math.isfinite(loss):
            raise NonFiniteError(f"the validation loss of step {state.step} is {loss}")
        if state.best_val_loss is None or loss < state.best_val_loss:
            state.best_val_loss, state.best_step, state.validations_without_gain = loss, state.step, 0
        else:
            state.validations_without_gain += 1
        state.validation_due = False
        for callback in self.callbacks:
            callback.on_validation(state.step, loss)
        return False

    def checkpoint(self, *, final: bool) -> None:
        """Save the current step. A failure in mid-run is survived, and the best that is on the disk stays the best."""
        state = self.state
        try:
            self.save(state)
        except SpdfError as error:
            # A mistake will be there at the next interval too; the rank that knows of it tells the others.
            mistake = self.engine.groups.largest(float(isinstance(error, UserError)))
            if final or mistake:
                raise
            # Training goes on: the last good checkpoint stays, and the disk may have room at the next interval.
            notes = [f"WARNING: {error}"]
            if self.keep_best and state.best_step == state.step:
                lost, (state.best_val_loss, state.best_step) = state.best_val_loss, self.saved_best
                kept = f"step {state.best_step}'s ({state.best_val_loss:.4f})" if state.best_step else "none so far"
                notes.append(
                    f"WARNING: step {state.step} had the best validation loss ({lost:.4f}) and is lost; "
                    f"the best that is kept is {kept}"
                )
            for callback in self.callbacks:
                for note in notes:
                    callback.on_note(note)
        else:
            self.saved_best = (state.best_val_loss, state.best_step)
