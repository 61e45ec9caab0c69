"""The training loop: steps, validation, checkpoints, stopping. Pre-training and fine-tuning both run through it."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from spdf_dist.config.errors import SpdfError, Stopped
from spdf_dist.training.batches import Source
from spdf_dist.training.callbacks import Callback, StepMetrics
from spdf_dist.training.engine import Engine
from spdf_dist.training.stop import StopRequest

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


@dataclass
class Loop:
    """One run of training, from ``state.step`` to the source's last step.

    ``save(state)`` writes a checkpoint, collectively. ``patience`` ends the run after so many validations without a
    better loss (0: never); ``keep_best`` also saves whenever the validation loss is the
    best so far. ``peak_flops`` is the dense peak of all ranks' devices, None where it is not known.
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

    def run(self) -> None:
        """Train to the end. Raises Stopped after saving when a signal came, NonFiniteError, SpdfError."""
        saved = self.state.step
        recent = deque(self.state.recent_losses, maxlen=SPIKE_WINDOW)
        try:
            while self.state.step < self.source.total_steps and not self.out_of_patience():
                stop = self.train_step(recent)
                step = self.state.step
                if not stop and self.source.validates_after(step):
                    stop = self.validate()
                last = step == self.source.total_steps or self.out_of_patience()
                best = self.keep_best and self.state.best_step == step
                if stop or last or best or step % self.checkpoint_interval == 0:
                    self.state.recent_losses = list(recent)
                    saved = self.checkpoint(saved, final=stop or last)
                if stop and not last:
                    raise Stopped(
                        f"stopped at step {step} of {self.source.total_steps} after saving; run it again to go on"
                    )
        finally:
            for callback in self.callbacks:
                callback.on_end()

    def train_step(self, recent: deque[float]) -> bool:
        """One optimizer step; returns whether the ranks agreed to stop."""
        begin = time.perf_counter()
        step = self.state.step + 1
        batch = self.source.batch(step)
        lr = self.source.lr(step)
        threshold = float("inf")
        if self.skip_loss_spike and len(recent) == SPIKE_WINDOW:
            threshold = self.skip_loss_spike * statistics.median(recent)
        result = self.engine.step(
            batch.micro_batches,
            batch.target_tokens,
            lr,
            stop_requested=self.stop.requested,
            spike_threshold=threshold,
        )
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
        )
        for callback in self.callbacks:
            callback.on_step(metrics)
        return result.stop

    def validate(self) -> bool:
        """The validation loss; returns whether a stop came in the middle, and then records nothing."""
        result = self.engine.evaluate(self.source.validation(), lambda: self.stop.requested)
        if result is None:
            return True
        loss, _tokens = result
        state = self.state
        if state.best_val_loss is None or loss < state.best_val_loss:
            state.best_val_loss, state.best_step, state.validations_without_gain = loss, state.step, 0
        else:
            state.validations_without_gain += 1
        for callback in self.callbacks:
            callback.on_validation(state.step, loss)
        return False

    def out_of_patience(self) -> bool:
        """Whether validation has stopped getting better for long enough."""
        return self.patience > 0 and self.state.validations_without_gain >= self.patience

    def checkpoint(self, saved: int, *, final: bool) -> int:
        """Save the current step and return it; on failure in mid-run say so and return the last saved step."""
        try:
            self.save(self.state)
        except SpdfError as error:
            if final:
                raise
            # Training goes on: the last good checkpoint stays, and the disk may have room at the next interval.
            for callback in self.callbacks:
                callback.on_note(f"WARNING: {error}")
            return saved
        return self.state.step
