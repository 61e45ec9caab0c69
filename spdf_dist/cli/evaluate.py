"""Score generated texts with the metrics of a task. The scores equal those of its official script.

E2E: --references is one file with the references of an input on consecutive lines and a blank line between inputs, or
the official CSV (mr,ref). WebNLG and DART: one file per reference, with one line per input.
A metric that cannot be computed is null and named on stderr, and the exit code is 1. --json also prints the record of
`spdf generate` about the origin of the texts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spdf_dist.extensions import task_names

HELP = "score generated texts with a task's official metrics"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", required=True, metavar="TASK", help=", ".join(task_names()))
    parser.add_argument("--hypotheses", required=True, type=Path, metavar="FILE", help="generated texts, one per line")
    parser.add_argument("--references", required=True, type=Path, nargs="+", metavar="FILE", help="see above")
    parser.add_argument(
        "--slots-of",
        type=Path,
        metavar="FILE",
        help="the synthetic E2E CSV of the inputs: adds slot_accuracy, the share of its slots that the texts mention",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from spdf_dist.config.errors import UserError
    from spdf_dist.data.tasks import find_task
    from spdf_dist.evaluation.provenance import read_side_file
    from spdf_dist.scoring.metrics import Outputs, score
    from spdf_dist.scoring.texts import read_outputs

    task = find_task(args.task)
    if not task.metrics:
        raise UserError(f"the task {task.name} has no metrics of texts; measure it with `spdf perplexity --task`")
    outputs = Outputs(*read_outputs(args.hypotheses, args.references, task.reference_files))
    provenance = read_side_file(args.hypotheses)
    if provenance is not None and provenance.get("task") != task.name:
        raise UserError(f"{args.hypotheses} answers the task {provenance.get('task')}, not {task.name}")
    slots = {} if args.slots_of is None else {"slot_accuracy": slot_accuracy(args, outputs.hypotheses)}
    scores, failures = score(task.metrics, outputs, lambda name: print(f"{name} ...", file=sys.stderr))
    scores |= slots
    for name, reason in failures.items():
        print(f"spdf evaluate: {name} could not be computed: {reason}", file=sys.stderr)
    if args.json:
        told: dict[str, Any] = {"schema_version": 1, "task": task.name, "inputs": len(outputs.hypotheses), **scores}
        if provenance is not None:
            told |= {"split": provenance.get("split"), "provenance": provenance}
        print(json.dumps(told))
    else:
        print(f"{task.name}, {len(outputs.hypotheses)} inputs")
        for name, value in scores.items():
            metric = task.metric(name)
            digits = metric.digits if metric else 4
            print(f"  {name:<8} {'-' if value is None else f'{value:.{digits}f}'}")
    return 1 if failures else 0


def slot_accuracy(args: argparse.Namespace, hypotheses: Sequence[str]) -> float:
    """Share of the slots of a synthetic CSV that the texts say."""
    from spdf_dist.config.errors import UserError
    from spdf_dist.evaluation.slots import share_said

    if args.task != "e2e":
        raise UserError(f"--slots-of goes with --task e2e, not {args.task}")
    return share_said(args.slots_of, hypotheses)
