"""Print the content of a checkpoint.

For each weight: count, sparsity, digest of its mask, and the number of pruned entries that are not zero. CHECKPOINT is
a step_N folder, a run folder (its newest complete checkpoint is taken) or its checkpoints folder. Every file is checked
against its digest. For sparse weights, the command also prints their model state in training relative to dense."""

from __future__ import annotations

import argparse
import json

HELP = "print the content of a checkpoint: counts, sparsity, mask digests"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a step_N folder, a run folder or its checkpoints")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


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
