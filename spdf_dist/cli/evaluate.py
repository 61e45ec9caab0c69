"""Score generated texts with the metrics of a task, equal to its official script.

E2E: --references is one file, the references of an input on consecutive lines and a blank line between inputs, or the
official CSV (mr,ref). WebNLG and DART: one file a reference, one line an input in each.
A metric that could not be computed is null, named on stderr, and the exit code is 1."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HELP = "score generated texts with a task's official metrics"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", required=True, metavar="TASK", help="e2e, webnlg or dart")
    parser.add_argument("--hypotheses", required=True, type=Path, metavar="FILE", help="generated texts, one a line")
    parser.add_argument("--references", required=True, type=Path, nargs="+", metavar="FILE", help="see above")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from spdf_dist.evaluation.scores import METRICS, read_outputs, score

    outputs = read_outputs(args.task, args.hypotheses, args.references)
    scores, failures = score(args.task, outputs, lambda name: print(f"{name} ...", file=sys.stderr))
    for name, reason in failures.items():
        print(f"spdf evaluate: {name} could not be computed: {reason}", file=sys.stderr)
    if args.json:
        print(json.dumps({"schema_version": 1, "task": args.task, "inputs": len(outputs.hypotheses), **scores}))
    else:
        print(f"{args.task}, {len(outputs.hypotheses)} inputs")
        for name, value in scores.items():
            shown = "-" if value is None else f"{value:.{METRICS[args.task][name].digits}f}"
            print(f"  {name:<8} {shown}")
    return 1 if failures else 0
