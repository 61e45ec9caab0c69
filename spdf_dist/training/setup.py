"""Set-up that pre-training and fine-tuning share, before the first step."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from spdf_kernels import set_code_budget_mb

from spdf_dist.accounting.hardware import recognise_gpu
from spdf_dist.accounting.layout import layout_for
from spdf_dist.accounting.plan import executed_ratio
from spdf_dist.base.rank_variables import Ranks
from spdf_dist.checkpoint.find import damaged, latest
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import AnyConfig, ModelConfig, PretrainConfig, SparsityConfig
from spdf_dist.config.validate import validate_batch
from spdf_dist.data.tokenizer import Tokenizer
from spdf_dist.model.gpt import GPT, Execution, build_gpt, sparse_linears
from spdf_dist.model.parameterization import STANDARD, Parameterization, of_training
from spdf_dist.parallel.groups import Groups, initialize
from spdf_dist.parallel.layout import shards_of
from spdf_dist.sparsity.masks import BoolArray
from spdf_dist.training.engine import Engine, dtype_of
from spdf_dist.training.fully_sharded import FullyShardedEngine
from spdf_dist.training.run_folder import RunFolder
from spdf_dist.training.zero import ZeroEngine, deepspeed_settings


def start(config: AnyConfig, ranks: Ranks) -> Groups:
    """Set determinism, start the process groups and make the checks that need the world size. Raises UserError."""
    deterministic = config.training.deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("NCCL_ALGO", "Ring")
        torch.use_deterministic_algorithms(True)
    set_code_budget_mb(config.kernels.code_budget_mb)
    groups = initialize(
        ranks, config.parallel.tensor, config.parallel.data, config.device, config.parallel.timeout_minutes
    )
    validate_batch(config, groups.data_size)
    deepspeed_settings(config, groups.data_size)  # reports conflicts before anything is written
    return groups


def newest_checkpoint(folder: RunFolder, groups: Groups) -> Checkpoint | None:
    """The run's newest complete checkpoint, the same on every rank; None for a run that has saved none.

    Damaged checkpoints are reported and skipped. Raises UserError if all are damaged, because a restart from nothing
    would lose the run; the user must decide.
    """

    def find() -> Path | None:
        newest, broken = latest(folder.checkpoints), damaged(folder.checkpoints)
        if broken and newest is None:
            raise UserError(f"{broken[-1]}; there is no other checkpoint: restore it, or delete it to start over")
        if broken:
            print("\n".join(broken) + f"\nthe run continues from {newest}", file=sys.stderr)
        return newest

    found = groups.on_rank_zero(find)
    return None if found is None else Checkpoint(found)


def check_tokenizer(tokenizer: Tokenizer, model: ModelConfig, where: str) -> None:
    """Raise UserError if a tokenizer has more ids than the model's vocabulary."""
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(f"{where} has {tokenizer.vocab_size} ids, more than the model's vocab_size {model.vocab_size}")


def build_model(
    config: AnyConfig,
    model: ModelConfig,
    groups: Groups,
    masks: Mapping[str, BoolArray],
    execution: Execution,
    label_smoothing: float = 0.0,
    parameterization: Parameterization | None = None,
) -> GPT:
    """The model to train, with uninitialised weights.

    ``parameterization`` defaults to that of a pre-training config, and to the standard one in fine-tuning.
    """
    if parameterization is None:
        parameterization = of_training(config.training) if isinstance(config, PretrainConfig) else STANDARD
    return build_gpt(
        model,
        groups,
        masks=masks,
        execution=execution,
        dtype=torch.float32 if config.parallel.zero_stage == 3 else dtype_of(config.training.precision),
        activation_checkpointing=config.training.activation_checkpointing,
        label_smoothing=label_smoothing,
        sequence=config.parallel.sequence,
        parameterization=parameterization,
    )


def make_engine(model: GPT, config: AnyConfig, groups: Groups) -> Engine:
    """The engine of ``parallel.zero_stage`` for a model on the CPU, which is moved to the device. Raises UserError."""
    if config.parallel.zero_stage == 3:
        return FullyShardedEngine(model, config, groups)
    return ZeroEngine(model.to(groups.device), config, groups)


def hfu_over_mfu(
    config: AnyConfig, model: ModelConfig, sparsity: SparsityConfig | None, execution: Mapping[str, str]
) -> float:
    """The FLOPs that a step executes on GPUs, divided by its model FLOPs. Mixed executions count as masked.

    A CPU has no known peak, so it has neither HFU nor MFU.
    """
    how = "compressed" if set(execution.values()) == {"compressed"} else "masked"
    layout = layout_for(config, model, sparsity, config.parallel.tensor, "cuda")
    return executed_ratio(model, sparsity, replace(layout, execution=how), "cuda")


def sparsity_by_group(model: GPT) -> dict[str, float]:
    """The sparsity of each kind of linear, over this rank's slices of all layers."""
    kept: dict[str, list[int]] = {}
    for name, linear in sparse_linears(model):
        count = kept.setdefault(name.rsplit(".", 1)[1], [0, 0])
        for shard in shards_of(linear.weight):
            rows, columns = shard.local_shape
            count[0] += rows * columns if shard.mask is None else int(shard.mask.sum())
            count[1] += rows * columns
    return {group: 1 - nonzero / total for group, (nonzero, total) in kept.items()}


def peak_flops(config: AnyConfig, groups: Groups) -> float | None:
    """Dense peak FLOP/s of all ranks' GPUs together; None for a device that is not in the table."""
    if groups.device.type != "cuda":
        return None
    gpu = recognise_gpu(torch.cuda.get_device_name(groups.device))
    return None if gpu is None else gpu.peak(config.training.precision) * groups.world_size
