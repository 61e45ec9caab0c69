"""Trains tiny runs in this process, which saves the start of another process."""

from __future__ import annotations

from pathlib import Path

from spdf_command import read_metrics

from spdf_dist.base.rank_variables import ALONE
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig

ONE_RANK = ("parallel.data=1", "model.dropout=0", "training.schedule=constant")
STEP = 16 * 32
"""Tokens per step of the tiny config."""


def train(config: Path, run: Path, *overrides: str, change: bool = False, rewind: int | None = None) -> None:
    """Start or continue ``run``, for at most 12 steps."""
    from spdf_dist.training.pretrain import pretrain
    from spdf_dist.training.run import AllowedChanges

    loaded = load_config(PretrainConfig, str(config), [*ONE_RANK, *overrides, f"run_dir={run}"])
    pretrain(loaded, ALONE, AllowedChanges(change, rewind))


def losses(run: Path) -> dict[int, tuple[float, float, float]]:
    """Loss, gradient norm and learning rate of each step."""
    return {line["step"]: (line["loss"], line["grad_norm"], line["lr"]) for line in read_metrics(run) if "loss" in line}
