"""Stop a workflow, or some of its jobs and the jobs that need them. Training saves first; `spdf run` continues it.

JOB is the name of a job (finetune), with its variant (finetune/s75), or in full (finetune/s75/lr=0.0001)."""

from __future__ import annotations

import argparse
from pathlib import Path

from spdf_launcher.cancel import cancel
from spdf_launcher.choose import matching
from spdf_launcher.executors import find_executor
from spdf_launcher.status import read_plan, runs_on

HELP = "stop a workflow or some of its jobs"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="the workflow's folder")
    parser.add_argument("job", nargs="?", metavar="JOB", help="a job, or the first parts of its name")


def run(args: argparse.Namespace) -> int:
    root = args.dir.expanduser().absolute()
    jobs = read_plan(root)
    for line in cancel(root, jobs, matching(jobs, args.job), find_executor(runs_on(root))()):
        print(line)
    return 0
