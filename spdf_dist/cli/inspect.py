"""Show what a checkpoint holds: counts, sparsity and mask digest of each weight, and pruned entries that are not zero.

CHECKPOINT is a step_N folder, a run folder (its newest whole checkpoint is taken) or its checkpoints
folder. Every file is read and checked against its digest. Where the weights are sparse, it also tells the model state
that they take in training, against dense."""

from __future__ import annotations

import argparse
import json

HELP = "what a checkpoint holds: counts, sparsity, mask digests"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a step_N folder, a run folder or its checkpoints")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    from spdf_dist.checkpoint.inspection import inspect, table
    from spdf_dist.checkpoint.model_state import add_model_state, state_table
    from spdf_dist.checkpoint.read import Checkpoint

    summary = inspect(args.checkpoint)
    add_model_state(summary, Checkpoint(summary["path"]))
    if args.json:
        print(json.dumps({"schema_version": 1, **summary}))
    else:
        print(f"{table(summary)}\n\n{state_table(summary)}".rstrip())
    return 0
