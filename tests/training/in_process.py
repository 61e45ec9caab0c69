"""Trains tiny runs in this process, which saves the start of another process."""

from __future__ import annotations

from pathlib import Path

import torch
from spdf_command import read_metrics

from spdf_dist.base.rank_variables import SINGLE_PROCESS
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import FinetuneConfig, PretrainConfig

ONE_RANK = ("parallel.data=1", "model.dropout=0", "training.schedule=constant")
STEP = 16 * 32
"""Tokens per step of the tiny config."""


def train(config: Path, run: Path, *overrides: str, change: bool = False, rewind: int | None = None) -> None:
    """Start or continue ``run``, for at most 12 steps."""
    from spdf_dist.training.pretrain import pretrain
    from spdf_dist.training.run import AllowedChanges

    loaded = load_config(PretrainConfig, str(config), [*ONE_RANK, *overrides, f"run_dir={run}"])
    pretrain(loaded, SINGLE_PROCESS, AllowedChanges(change, rewind))


def finetuning_config(run: Path, origin: Path, task_files: tuple[Path, Path]) -> Path:
    """A config that fine-tunes the checkpoint ``origin`` for seconds: two epochs of three steps."""
    config = run.parent / f"{run.name}.yaml"
    config.write_text(
        f"""
device: cpu
finetune: {{checkpoint: {origin}, train: {task_files[0]}, validation: {task_files[1]}, epochs: 2, warmup_steps: 2,
            dropout: 0}}
training: {{global_batch_size: 8, micro_batch_size: 2, lr: 3e-3}}
"""
    )
    return config


def finetune_here(run: Path, origin: Path, task_files: tuple[Path, Path], *overrides: str) -> None:
    """Start or continue the fine-tuning ``run`` of ``finetuning_config``."""
    from spdf_dist.training.finetune import finetune

    config = finetuning_config(run, origin, task_files)
    loaded = load_config(FinetuneConfig, str(config), ["parallel.data=1", *overrides, f"run_dir={run}"])
    finetune(loaded, SINGLE_PROCESS)


def losses(run: Path) -> dict[int, tuple[float, float, float]]:
    """Loss, gradient norm and learning rate of each step."""
    return {line["step"]: (line["loss"], line["grad_norm"], line["lr"]) for line in read_metrics(run) if "loss" in line}


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """The weights and optimizer state of the newest checkpoint."""
    checkpoint = Checkpoint(run)
    return {
        f"{kind}/{name}": checkpoint.read(name, kind)
        for name, tensor in checkpoint.manifest.tensors.items()
        for kind in tensor.slices
    }
