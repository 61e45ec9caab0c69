"""Converts the token budget of a pre-training config to optimizer steps, for the training loop and all tables."""

from __future__ import annotations

from spdf_dist.config.schema import PretrainConfig


def tokens_per_step(config: PretrainConfig) -> int:
    """Target tokens of one optimizer step, over all ranks."""
    return config.training.global_batch_size * config.model.seq_length


def to_steps(config: PretrainConfig, tokens: int) -> int:
    """The number of whole steps nearest to ``tokens``; halves are rounded up."""
    per_step = tokens_per_step(config)
    return (2 * tokens + per_step) // (2 * per_step)


def total_steps(config: PretrainConfig) -> int:
    """Optimizer steps of the run: the number nearest to the token budget, and at least 1 unless the budget is 0."""
    if config.training.train_tokens == 0:
        return 0
    return max(1, to_steps(config, config.training.train_tokens))


def warmup_steps(config: PretrainConfig) -> int:
    """Optimizer steps of the warm-up, for display only: the schedule itself counts tokens."""
    return to_steps(config, config.training.warmup_tokens)
