"""The training loop: steps, validation, checkpoints, stopping. Pre-training and fine-tuning both use it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from spdf_dist.base.numbers import counted
from spdf_dist.base.signals import StopRequest
from spdf_dist.config.errors import DivergedError, NonFiniteError, SpdfError, Stopped, UserError
from spdf_dist.training.batches import Data, MicroBatch
from spdf_dist.training.callbacks import Callbacks, StepMetrics
from spdf_dist.training.divergence import SpikeLimit
from spdf_dist.training.engine import Engine, StepResult
from spdf_dist.training.prefetch import Prefetch
from spdf_dist.training.saving import Saver
from spdf_dist.training.training_state import TrainingState


@dataclass(frozen=True)
class Spikes:
    """When updates are skipped; see the keys of the same names in ``TrainingConfig``."""

    skip_loss_spike: float = 0.0
    skip_grad_norm_spike: float = 0.0
    max_skipped_in_a_row: int = 0


class DynamicSparsity(Protocol):
    """A method that changes the masks during training."""

    def before_step(self, step: int) -> None:
        """Called on every rank before the forward pass of ``step``."""

    def after_step(self, step: int, result: StepResult) -> dict[str, Any] | None:
        """Called on every rank after the optimizer's step; returns metrics of an update of the masks, or None."""


@dataclass
class Loop:
    """Training from ``state.step`` to the last step of ``data``."""

    engine: Engine
    data: Data
    lr: Callable[[int], float]
    """Learning rate of a step, counted from 1."""
    state: TrainingState
    callbacks: Callbacks
    saver: Saver
    stop: StopRequest
    checkpoint_interval: int
    """Steps between two checkpoints; the last step is always saved."""
    validation_interval: int
    """Steps between two validations; the last step is always validated."""
    patience: int = 0
    """The run ends after this many validations without a better loss; 0: never."""
    keep_best: bool = False
    """Save whenever the validation loss is the best so far, so that ``best_step`` is always a saved step."""
    spikes: Spikes = Spikes()
    peak_flops: float | None = None
    """Dense peak FLOP/s of all ranks' devices together; None if it is not known."""
    until: int | None = None
    """A step before the last at which ``run`` saves and returns; None: it returns at the last step only."""
    method: DynamicSparsity | None = None
    """The method that changes the masks; None: the masks are constant."""
    saved_best: tuple[float | None, int] = field(init=False, default=(None, 0))
    """``best_val_loss`` and ``best_step`` of the newest checkpoint."""

    def run(self) -> None:
        """Train to the end.

        Raises:
            Stopped: a signal requested a stop, and the state is saved.
            NonFiniteError: a loss or gradient is not finite.
            DivergedError: too many consecutive updates were skipped.
            SpdfError: the last checkpoint cannot be saved.
        """
        state = self.state
        self.losses = SpikeLimit.of(self.spikes.skip_loss_spike, state.recent_losses)
        self.norms = SpikeLimit.of(self.spikes.skip_grad_norm_spike, state.recent_grad_norms)
        self.saved_best = (state.best_val_loss, state.best_step)
        self.prefetch = Prefetch(self.data)
        try:
            while not self.is_over():
                stop = False
                if not state.validation_due:
                    stop = self.train_step()
                    state.validation_due = self.validates_after(state.step)
                if state.validation_due and not stop:
                    stop = self.validate()
                over = self.is_over()
                best = self.keep_best and state.best_step == state.step
                if stop or over or best or state.step % self.checkpoint_interval == 0:
                    self.checkpoint(final=stop or over, wait=stop or over or best)
                if stop and not over:
                    where = f"at step {state.step} of {self.data.total_steps}"
                    before = ", before its validation," if state.validation_due else ""
                    raise Stopped(f"stopped {where}{before} after saving; run the same command again to continue")
        except (NonFiniteError, DivergedError):
            self.complete_save()  # every rank raises these errors, and the state in flight is older and valid
            raise
        finally:
            with ExitStack() as ends:  # an error of one does not keep the others from being closed
                ends.callback(self.callbacks.on_end)
                ends.callback(self.saver.close)
                ends.callback(self.prefetch.close)

    def is_over(self) -> bool:
        """Whether the last step is done and validated, or the validation loss has not improved for ``patience``."""
        state = self.state
        impatient = self.patience > 0 and state.validations_without_gain >= self.patience
        ends = state.step >= self.data.total_steps or state.step == self.until
        return not state.validation_due and (ends or impatient)

    def validates_after(self, step: int) -> bool:
        """Whether a validation is due after ``step``."""
        due = step % self.validation_interval == 0 or step == self.data.total_steps
        return due and self.data.validation_passes > 0

    def train_step(self) -> bool:
        """Run one optimizer step; returns whether the ranks agreed to stop.

        Raises NonFiniteError and DivergedError.
        """
        begin = time.perf_counter()
        state, step = self.state, self.state.step + 1
        self.callbacks.before_step(step)
        batch = self.prefetch.batch(step)
        waited = time.perf_counter() - begin
        lr = self.lr(step)
        if self.method is not None:
            self.method.before_step(step)
        result = self.engine.step(
            batch.micro_batches,
            batch.target_tokens,
            lr,
            stop_requested=self.stop.requested,
            still_saving=self.saver.in_flight and not self.saver.is_done,
            loss_limit=self.losses.limit(),
            norm_limit=self.norms.limit(),
            after_pass=lambda done: self.callbacks.on_step_progress(step, done, len(batch.micro_batches)),
        )
        changed = None if self.method is None else self.method.after_step(step, result)
        seconds = time.perf_counter() - begin
        self.losses.add(result.loss)
        self.norms.add(result.grad_norm)
        state.recent_losses, state.recent_grad_norms = list(self.losses.values), list(self.norms.values)
        state.step = step
        state.total_flops += batch.model_flops
        state.skipped_iterations += result.skipped
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if result.skipped else 0
        self.callbacks.after_step(
            StepMetrics(
                step=step,
                total_steps=self.data.total_steps,
                consumed_tokens=self.data.consumed_tokens(step),
                loss=result.loss,
                lr=lr,
                grad_norm=None if math.isnan(result.grad_norm) else result.grad_norm,
                tokens_per_s=batch.target_tokens / seconds,
                step_ms=1000 * seconds,
                model_flops=batch.model_flops,
                total_flops=state.total_flops,
                mfu=None if self.peak_flops is None else batch.model_flops / seconds / self.peak_flops,
                skipped_iterations=state.skipped_iterations,
                mask=changed,
            ),
            {"data": 1000 * waited, **self.engine.phases.ms()},
        )
        if self.saver.in_flight and not result.still_saving:
            self.complete_save()
        most = self.spikes.max_skipped_in_a_row
        if most and state.skipped_in_a_row >= most:
            raise DivergedError(
                f"the run has diverged: it skipped {counted(most, 'update')} in a row as spikes, up to step {step}; "
                f"the last good checkpoint is {self.saver.newest()}; start again with --rewind to return to it and "
                f"skip the batches since, or with --change and a lower training.lr"
            )
        return result.stop

    def validate(self) -> bool:
        """Compute and record the validation loss; returns whether a stop interrupted it.

        An interrupted validation records nothing and stays due. Raises NonFiniteError.
        """
        state = self.state
        self.callbacks.before_validation(state.step)
        loss = self.engine.evaluate(self.counted(self.data.validation()), lambda: self.stop.requested)
        if loss is None:
            return True
        if not math.isfinite(loss):
            raise NonFiniteError(f"the validation loss of step {state.step} is {loss}")
        if state.best_val_loss is None or loss < state.best_val_loss:
            state.best_val_loss, state.best_step, state.validations_without_gain = loss, state.step, 0
        else:
            state.validations_without_gain += 1
        state.validation_due = False
        self.callbacks.after_validation(state.step, loss)
        return False

    def counted(self, batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        """The same micro-batches; reports the progress to the callbacks."""
        for number, batch in enumerate(batches, 1):
            yield batch
            self.callbacks.on_validation_progress(self.state.step, number, self.data.validation_passes)

    def checkpoint(self, *, final: bool, wait: bool) -> None:
        """Save the current step. With ``wait``, the checkpoint is complete on return.

        A failure of a save that is not ``final`` is reported and survived. If that save had the best step, the best
        step that is on the disk becomes the best again.
        """
        self.complete_save()  # its failure does not keep this step from being saved
        state = self.state
        self.callbacks.before_checkpoint(state.step)
        state.callbacks = self.callbacks.state_dict()
        try:
            self.saver.save(state, wait=wait)
        except SpdfError as error:
            self.survive(error, final=final)
            if self.keep_best and state.best_step == state.step:
                lost, (state.best_val_loss, state.best_step) = state.best_val_loss, self.saved_best
                best = f"step {state.best_step}'s ({state.best_val_loss:.4f})" if state.best_step else "none yet"
                self.callbacks.on_note(
                    f"WARNING: step {state.step} had the best validation loss ({lost:.4f}) and was not saved; "
                    f"the best saved one is {best}"
                )
        else:
            self.saved_best = (state.best_val_loss, state.best_step)

    def complete_save(self) -> None:
        """Complete the save in flight; a failure is reported and survived."""
        try:
            self.saver.complete()
        except SpdfError as error:
            self.survive(error, final=False)

    def survive(self, error: SpdfError, *, final: bool) -> None:
        """Continue after a failed save, unless it was the last one or a UserError, which the next save would repeat."""
        # A UserError on one rank counts on all ranks.
        mistake = self.engine.groups.all_reduce_max(float(isinstance(error, UserError)))
        if final or mistake:
            raise error
        # The last good checkpoint is kept, and a full disk may have space at the next interval.
        self.callbacks.on_note(f"WARNING: {error}")
