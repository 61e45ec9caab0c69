"""Print a table of a workflow's jobs: state, Slurm id, restarts, progress, and why a job waits or failed.

Exit codes: 0; 1 if a job failed finally or was lost and the workflow needs it; 2 if DIR holds no workflow."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from spdf_launcher.journal import is_held
from spdf_launcher.status import ENDED, exit_code, gather, is_more_to_come, read_plan, table

HELP = "show the jobs of a workflow"
WATCH_SECONDS = 2.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="the workflow's folder")
    parser.add_argument("--watch", action="store_true", help="print the table again until no job runs or waits")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    root = args.dir.expanduser().absolute()
    shown = ""
    while True:
        launcher, states, plan = is_held(root), gather(root), read_plan(root)
        code = exit_code(states, plan)
        ends = not args.watch or not is_more_to_come([job.id for job in plan], states, plan, launcher)
        if args.json and ends:
            print(json.dumps({"schema_version": 1, "dir": str(root), "jobs": [asdict(state) for state in states]}))
        elif not args.json:
            text = table(states)
            if sys.stdout.isatty() and args.watch:
                print("\x1b[H\x1b[2J" + text, flush=True)
            elif text != shown:
                print(text, flush=True)
            shown = text
        if ends:
            if args.watch and any(state.state not in ENDED for state in states):
                print("no job is running; run the same command again to continue", file=sys.stderr)
            return code
        try:
            time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            return code
