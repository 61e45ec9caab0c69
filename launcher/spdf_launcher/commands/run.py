"""Run the jobs of a workflow: pre-train, densify, fine-tune a grid, evaluate, select, report.

WORKFLOW is a YAML file or the name of a shipped workflow (demo, demo_real, ...; `spdf config` lists them). A job that
is done and whose inputs have not changed is skipped. After any interruption, the same command continues.
--dry-run prints the jobs and their cost; with --verbose also each command or batch script.

Exit codes: 0 done (slurm: submitted); 1 a job is not done; 2 bad input, nothing was started; 75 stopped."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_launcher.executors import Executor, executor_names, find_executor
from spdf_launcher.plan import Job, plan
from spdf_launcher.prepare import is_changed, wanted_jobs
from spdf_launcher.summary import summary
from spdf_launcher.workflow import Workflow, load_workflow

HELP = "run a workflow of jobs on this machine, under deepspeed or on Slurm"


def executors() -> Iterator[type[Executor]]:
    """The executors that can be imported; a broken one is an error only for those who name it."""
    for name in executor_names():
        try:
            yield find_executor(name)
        except UserError:
            continue


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workflow", help="a YAML file or the name of a shipped workflow")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="sets a key of the workflow; may be repeated"
    )
    parser.add_argument("--dir", required=True, type=Path, help="the workflow's folder; the same command continues it")
    parser.add_argument("--on", required=True, choices=executor_names(), help="where the jobs run (see below)")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the jobs and their cost, and stop"
    )
    parser.add_argument("--verbose", action="store_true", help="with --dry-run: print each command or batch script")
    for executor in executors():
        executor.add_options(parser.add_argument_group(f"--on {executor.name}", executor.help))


def run(args: argparse.Namespace) -> int:
    kind = find_executor(args.on)
    for other in executors():
        if other is not kind and any(is_given(args, option) for option in other.options):
            verb = "go" if len(other.options) > 1 else "goes"
            raise UserError(f"{' and '.join(other.options)} {verb} with --on {other.name}")
    executor = kind(args)
    root = args.dir.expanduser().absolute()
    workflow = load_workflow(args.workflow, args.overrides)
    jobs = plan(workflow, root, ranks_from_launcher=executor.starts_ranks)
    root.exists()  # raises OSError for a name that the file system refuses
    executor.check(jobs, root)
    if args.dry_run:
        print_plan(executor, workflow, jobs, root, args.verbose)
        return 0
    return executor.run(workflow, jobs, root)


def is_given(args: argparse.Namespace, option: str) -> bool:
    """Whether an option is given. No option of an executor has a true default."""
    return bool(getattr(args, option.lstrip("-").replace("-", "_")))


def print_plan(executor: Executor, workflow: Workflow, jobs: list[Job], root: Path, verbose: bool) -> None:
    """Print the jobs that would run, and their cost."""
    wanted = wanted_jobs(jobs, root)
    for job in jobs:
        executor.program(job, workflow, root)
    print("\n".join(summary(jobs, wanted)))
    changed = Counter(job.name for job in jobs if job.id in wanted and is_changed(job, root))
    if changed:
        names = ", ".join(f"{name} ({count})" for name, count in changed.items())
        print(f"to be run again, because their inputs have changed: {names}")
    if verbose:
        executor.describe(workflow, jobs, wanted, root)
    checked = executor.dry_check(workflow, jobs, root)
    told = [f"{len(wanted)} of {len(jobs)} jobs to run", checked, "dry run, nothing was started"]
    print("; ".join(part for part in told if part))
    if not verbose:
        print("--verbose shows each command or batch script")
