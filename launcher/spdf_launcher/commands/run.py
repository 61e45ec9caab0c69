"""Carry a workflow through: pre-train, densify, fine-tune a grid, evaluate, select, report.

WORKFLOW is a YAML file or the name of a shipped one (demo, demo_real, ...). Jobs that are done and
whose inputs have not changed are skipped; after anything at all, the same command goes on.

  --on local      here, one job after the other; Ctrl-C saves and stops, running again goes on
  --on deepspeed  training through the deepspeed launcher, on one node or on those of --hostfile
  --on slurm      writes batch scripts into DIR/slurm, submits the whole chain and returns

Exit codes: 0 done (slurm: submitted); 1 a job is not done; 2 bad input, nothing was started; 75 stopped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_dist.workflow_folder import DONE, job_folder
from spdf_launcher.display import Display
from spdf_launcher.folder import in_one_line
from spdf_launcher.hostfile import check_room, read_hostfile
from spdf_launcher.journal import Journal
from spdf_launcher.kinds import KINDS
from spdf_launcher.local import LocalRun
from spdf_launcher.plan import Job, plan
from spdf_launcher.prepare import is_changed, prepare, require_folder, wanted_jobs
from spdf_launcher.programs import deepspeed_program, local_program
from spdf_launcher.slurm.submit import run_on_slurm
from spdf_launcher.workflow import Workflow, load_workflow

HELP = "carry a workflow of jobs through, here, under deepspeed or on Slurm"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workflow", help="a workflow YAML, or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="values to put on top of the workflow")
    parser.add_argument("--dir", required=True, type=Path, help="the workflow's folder; starting again continues it")
    parser.add_argument("--on", required=True, choices=("local", "deepspeed", "slurm"), help="where the jobs run")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would run, start nothing")
    parser.add_argument("--hostfile", type=Path, help="deepspeed: a file of `HOST slots=N` lines")
    parser.add_argument(
        "--launcher-flag",
        action="append",
        default=[],
        metavar="FLAG",
        help="deepspeed: a flag for its launcher, as --launcher-flag=--master_port=29501; may be repeated",
    )
    parser.add_argument("--wait", action="store_true", help="slurm: stay until every job has ended")


def run(args: argparse.Namespace) -> int:
    if args.on != "deepspeed" and (args.hostfile or args.launcher_flag):
        raise UserError("--hostfile and --launcher-flag go with --on deepspeed")
    if args.wait and args.on != "slurm":
        raise UserError("--wait goes with --on slurm; the others always stay")
    if args.hostfile is not None and not args.hostfile.is_file():
        raise UserError(f"--hostfile {args.hostfile}: no such file")
    root = args.dir.expanduser().absolute()
    workflow = load_workflow(args.workflow, args.overrides)
    jobs = plan(workflow, root, ranks_from_launcher=args.on != "local")
    with in_one_line(f"--dir {root}"):
        root.exists()  # a name that the file system refuses
    if args.on == "slurm":
        return run_on_slurm(workflow, jobs, root, dry_run=args.dry_run, wait=args.wait)
    return run_here(args, workflow, jobs, root)


def run_here(args: argparse.Namespace, workflow: Workflow, jobs: list[Job], root: Path) -> int:
    """Run on this machine, or from it through deepspeed."""
    hostfile = args.hostfile.absolute() if args.hostfile else None
    if hostfile is not None:
        hosts = read_hostfile(hostfile)
        for job in jobs:
            if KINDS[job.kind].config is not None:
                check_room(hostfile, hosts, job)

    def program(job: Job) -> list[str]:
        if args.on == "deepspeed":
            return deepspeed_program(job, root, hostfile, args.launcher_flag)
        return local_program(job)

    def ranks_tell(job: Job) -> bool:
        return args.on == "deepspeed" and KINDS[job.kind].config is not None

    programs = {job.id: program(job) for job in jobs}
    if args.dry_run:
        print_plan(jobs, root, programs)
        return 0
    require_folder(root)
    with Journal(root) as journal:
        wanted = wanted_jobs(jobs, root)
        prepare(workflow, jobs, root, args.on, program, ranks_tell, {}, journal, wanted)
        display = Display(sys.stdout, max(len(job.id) for job in jobs))
        code = LocalRun(root, jobs, wanted, journal, display).run()
    states = [job_folder(root, job.id).status() for job in jobs]
    done = states.count(DONE)
    print(f"{done} of {len(jobs)} jobs done, {len(jobs) - len(wanted)} of them before; folder {root}")
    return code


def print_plan(jobs: list[Job], root: Path, programs: dict[str, list[str]]) -> None:
    """What would run, and what would be skipped."""
    wanted = wanted_jobs(jobs, root)
    for job in jobs:
        if job.id not in wanted:
            print(f"skip  {job.id}  (unchanged)")
        else:
            again = "  (its inputs have changed)" if is_changed(job, root) else ""
            words = [*programs[job.id], *job.arguments] if job.kind != "select" else ["choose by", str(job.select)]
            print(f"run   {job.id}{again}\n        {' '.join(words)}")
    print(f"{len(wanted)} of {len(jobs)} jobs to run; dry run, nothing was started")
