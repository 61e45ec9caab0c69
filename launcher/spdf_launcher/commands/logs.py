"""Print the output of a workflow's jobs: of all jobs, of one, or of all cells and variants of one.

JOB is the name of a job (finetune), with its variant (finetune/s75), or in full (finetune/s75/lr=0.0001)."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from spdf_dist.workflow_folder import job_folder
from spdf_launcher.choose import matching
from spdf_launcher.journal import is_held
from spdf_launcher.status import gather, is_more_to_come, read_plan

HELP = "print the output of a workflow's jobs"
FOLLOW_SECONDS = 0.5
STATE_SECONDS = 2.0
"""Seconds between two reads of the states, which query Slurm."""
TAIL_BYTES = 4096


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="the workflow's folder")
    parser.add_argument("job", nargs="?", metavar="JOB", help="a job, or the first parts of its name")
    parser.add_argument("-f", "--follow", action="store_true", help="print new output until no job runs or waits")


def run(args: argparse.Namespace) -> int:
    root = args.dir.expanduser().absolute()
    jobs = matching(read_plan(root), args.job)
    several = len(jobs) > 1
    at: dict[str, int] = {}
    speaker = None
    looked, ended = float("-inf"), False
    while True:
        if args.follow and time.monotonic() - looked >= STATE_SECONDS:
            looked, launcher = time.monotonic(), is_held(root)
            ended = not is_more_to_come([job.id for job in jobs], gather(root), read_plan(root), launcher)
        for job in jobs:
            log = job_folder(root, job.id).log
            if not log.exists():
                continue
            with log.open("rb") as file:
                if job.id not in at and several and args.follow:
                    file.seek(0, 2)
                    at[job.id] = max(0, file.tell() - TAIL_BYTES)
                file.seek(at.get(job.id, 0))
                text = file.read()
                at[job.id] = file.tell()
            if text:
                if several and speaker != job.id:
                    sys.stdout.write(f"==> {job.id} <==\n")
                    speaker = job.id
                sys.stdout.write(text.decode(errors="replace"))
                sys.stdout.flush()
        if ended or not args.follow:
            break
        try:
            time.sleep(FOLLOW_SECONDS)
        except KeyboardInterrupt:
            return 0
    if not at:
        print("nothing written yet", file=sys.stderr)
    return 0
