"""Drop the masks of a checkpoint. The result has dense weights only, at step 0, for dense fine-tuning.

CHECKPOINT is a step_N folder, a run folder (its newest complete checkpoint is taken) or its checkpoints folder. OUT
becomes a checkpoint folder. Pruned weights start at zero. `spdf finetune` densifies a sparse checkpoint when it loads
it; use this command if you want to keep or export the dense checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "drop the masks: the dense weights of a sparse checkpoint"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a step_N folder, a run folder or its checkpoints")
    parser.add_argument("out", metavar="OUT", type=Path, help="the checkpoint folder to write")


def run(args: argparse.Namespace) -> int:
    from spdf_dist.checkpoint.densify import densify

    done = densify(args.checkpoint, args.out)
    if done.already_done:
        print(f"{done.path}: already done")
    else:
        print(f"{done.path}: {done.reactivated:,} of {done.weights:,} weights reactivated, starting at zero")
    return 0
