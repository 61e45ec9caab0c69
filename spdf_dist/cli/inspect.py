"""Show what a checkpoint holds: counts, sparsity and mask digest of each weight, and pruned entries that are not zero.

CHECKPOINT is a step_N folder, a run folder (its newest whole checkpoint is taken) or its checkpoints
folder. Every file is read and checked against its digest."""

from __future__ import annotations

import argparse
import json

HELP = "what a checkpoint holds: counts, sparsity, mask digests"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a step_N folder, a run folder or its checkpoints")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    from spdf_dist.checkpoint.inspection import inspect, table

    facts = inspect(args.checkpoint)
    print(json.dumps({"schema_version": 1, **facts}) if args.json else table(facts))
    return 0
