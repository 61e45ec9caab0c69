"""What a checkpoint keeps beside weights and moments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainingState:
    """Where a run is; everything else follows from the config and the step."""

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
    """Global sample index that step 1 reads first; not 0 in a run that started elsewhere or changed its batches."""
    token_offset: int = 0
    """Consumed tokens before step 1, likewise."""
    recent_grad_norms: list[float] = field(default_factory=list)
    skipped_in_a_row: int = 0
    callbacks: dict[str, Any] = field(default_factory=dict)
    """``state_dict`` of each callback that has one, by name."""
