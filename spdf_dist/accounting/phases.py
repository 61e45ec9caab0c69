"""FLOPs of a whole pre-training run, in which the sparsity level or the masks may change."""

from __future__ import annotations

from collections.abc import Iterator

from spdf_dist.accounting.flops import forward_flops, training_flops
from spdf_dist.config.budget import total_steps
from spdf_dist.config.schema import PretrainConfig, SparsityConfig
from spdf_dist.sparsity.levels import at_step, change_steps
from spdf_dist.sparsity.update import update_steps


def phases(config: PretrainConfig) -> Iterator[tuple[int, SparsityConfig]]:
    """Number of steps and sparsity of each phase of a run. A phase trains at one level."""
    total = total_steps(config)
    ends = [*change_steps(config.sparsity, total), total]
    for begin, end in zip([0, *ends], ends, strict=False):
        if end > begin:
            yield end - begin, at_step(config.sparsity, begin + 1, total)


def update_flops(config: PretrainConfig, sparsity: SparsityConfig) -> int:
    """Additional FLOPs per sequence of a step with a RigL update, which needs the gradient of pruned entries too."""
    if sparsity.algorithm != "rigl":
        return 0
    dense, sparse = forward_flops(config.model), forward_flops(config.model, sparsity)
    return sum(dense.values()) - sum(sparse.values())


def run_flops(config: PretrainConfig) -> int:
    """Model FLOPs of all steps of a run, including updates of the masks."""
    batch = config.training.global_batch_size
    total = sum(steps * batch * training_flops(config.model, sparsity) for steps, sparsity in phases(config))
    updates = len(update_steps(config.sparsity, total_steps(config)))
    return total + updates * batch * update_flops(config, config.sparsity)
