"""Starts a training command as this process, as one of a launcher's ranks, or as ranks of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from spdf_dist.base.cpu import cores
from spdf_dist.base.file_locks import PROC
from spdf_dist.base.rank_variables import SINGLE_PROCESS, Ranks, discover
from spdf_dist.cli.scarcity import require_addresses
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import AnyConfig
from spdf_dist.config.validate import validate_batch
from spdf_dist.parallel.loopback import check_loopback
from spdf_dist.parallel.ranks import spawn
from spdf_dist.training.inputs import compare_with_disk
from spdf_dist.training.run_folder import RunFolder


def gpus_of_node() -> int:
    """GPUs that torch sees; torch is imported only where an NVIDIA driver is present."""
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidiactl").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def world_size(config: AnyConfig) -> int:
    """Ranks to spawn when no launcher did: tensor x data."""
    tensor, data = config.parallel.tensor, config.parallel.data
    if data is None:
        gpus = 0 if config.device == "cpu" else gpus_of_node()
        data = max(1, gpus // tensor)
    return tensor * data


def check_proc() -> None:
    """Raise UserError unless /proc describes this process, which DeepSpeed reads while it is imported."""
    if not (PROC / "self/stat").exists():
        raise UserError(
            f"{PROC} does not describe this process, and training needs it: mount it (mount -t proc proc /proc)"
        )


def start(
    command: str,
    arguments: list[str],
    config: AnyConfig,
    work: Callable[[Ranks], None],
    *,
    change: bool = False,
    goes_back: bool = False,
) -> int:
    """Run ``work(ranks)`` here when this process is a rank, or alone; else spawn ranks that run the command again.

    What needs neither torch nor ranks is checked first: another run in the folder (unless ``change`` allows it) is an
    error, and a run that is complete is done at once, unless it goes back to an earlier checkpoint. If the inputs of a
    complete run have changed since, that is an error too.
    """
    ranks = discover()
    folder = RunFolder(config.run_dir)
    if (ranks or SINGLE_PROCESS).rank == 0:
        folder.check(config, change=change)
    if ranks is None:
        if not goes_back and folder.is_complete(config):
            changed = compare_with_disk(folder, config, change=change)
            note = f", and has no steps left; since then {' and '.join(changed)} have changed" if changed else ""
            print(f"{command}: {folder.path} is complete already{note}")
            return 0
        count = world_size(config)
        if count > 1:
            validate_batch(config, count // config.parallel.tensor)
            require_addresses()
            check_proc()
            check_loopback()
            return spawn([command, *arguments], count, folder.logs)
        ranks = SINGLE_PROCESS
        check_proc()
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    if sys.stderr.isatty():
        print(f"{command}: rank {ranks.rank} of {ranks.world_size}", end="\r", file=sys.stderr)
    require_addresses()
    work(ranks)
    return 0
