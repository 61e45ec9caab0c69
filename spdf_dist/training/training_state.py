"""The training state that a checkpoint stores beside weights and moments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainingState:
    """The progress of a run. Everything else follows from the config and the step."""

    step: int = 0
    """Optimizer steps done."""
    total_flops: int = 0
    """Model FLOPs of all steps done, over all ranks."""
    skipped_iterations: int = 0
    """Steps whose update was skipped."""
    recent_losses: list[float] = field(default_factory=list)
    """The newest losses, at most ``divergence.WINDOW``, for the spike limit."""
    best_val_loss: float | None = None
    """The lowest validation loss, in nats per token; None before the first validation."""
    best_step: int = 0
    """The step of ``best_val_loss``; 0 before the first validation."""
    validations_without_gain: int = 0
    """Validations since ``best_step``."""
    validation_due: bool = False
    """Whether the run was stopped before or within the validation of ``step``. It then continues with it."""
    mask_updates: int = 0
    """How many times a dynamic method has changed the masks."""
    data_offset: int = 0
    """Global index of the first sample of step 1. It is not 0 after ``init_from``, a rewind or a new batch size."""
    token_offset: int = 0
    """Consumed tokens before step 1. It is not 0 after a new batch size."""
    recent_grad_norms: list[float] = field(default_factory=list)
    """The newest gradient norms, at most ``divergence.WINDOW``, for the spike limit."""
    skipped_in_a_row: int = 0
    """Consecutive skipped updates, up to ``step``."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """``state_dict`` of each callback that has one, by name."""
