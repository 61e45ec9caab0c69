"""Print what the jobs of a workflow wrote: all of them, one, or all cells and variants of one.

JOB is a job's name (finetune), with its variant (finetune/s75), or in full (finetune/s75/lr=0.0001)."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from spdf_launcher.choose import matching
from spdf_launcher.folder import CANCELLED, DONE, FAILED, in_one_line, is_locked, job_folder
from spdf_launcher.journal import FILE
from spdf_launcher.plan import Job
from spdf_launcher.slurm.state import LOST
from spdf_launcher.status import QUEUED, RUNNING, WAITING, gather, read_plan

HELP = "print the output of a workflow's jobs"
FOLLOW_SECONDS = 0.5
STATE_SECONDS = 2.0
"""Between two looks at the states, for which Slurm is asked."""
TAIL_BYTES = 4096


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="the workflow's folder")
    parser.add_argument("job", nargs="?", metavar="JOB", help="a job, or the first parts of its name")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on as the jobs write, until none runs or waits its turn"
    )


def run(args: argparse.Namespace) -> int:
    root = args.dir.expanduser().absolute()
    with in_one_line(str(root)):
        return logs_in(root, args)


def logs_in(root: Path, args: argparse.Namespace) -> int:
    """The command, in one folder."""
    jobs = matching(read_plan(root), args.job)
    several = len(jobs) > 1
    at: dict[str, int] = {}
    speaker = None
    looked, ended = float("-inf"), False
    while True:
        if args.follow and time.monotonic() - looked >= STATE_SECONDS:
            looked, ended = time.monotonic(), not is_more_to_come(root, jobs)
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


def is_more_to_come(root: Path, jobs: list[Job]) -> bool:
    """Whether one of ``jobs`` runs or may yet run without anyone doing anything about it."""
    states = {state.job: state for state in gather(root)}
    live: set[str] = set()
    for job in read_plan(root):  # each after what it needs
        state = states[job.id]
        waits = state.state == WAITING and (state.slurm_id is not None or not live.isdisjoint(job.needs))
        if state.state in (RUNNING, QUEUED) or waits:
            live.add(job.id)
    open_jobs = [job for job in jobs if states[job.id].state not in (DONE, FAILED, CANCELLED, LOST)]
    # A launcher at work here starts one job after the other.
    return any(job.id in live for job in open_jobs) or (bool(open_jobs) and is_locked(root / FILE))
