"""The format of a workflow's folder: its files and its records. No other module knows the format.

The launcher writes the records and the report reads them.

    workflow.yaml  plan.json    the workflow as it was read, and its jobs
    journal.jsonl               actions of the launchers
    jobs/NAME[/VARIANT][/CELL]/
        job.json                the command of the job
        attempts.jsonl          one line when an attempt starts and one when it ends
        manifest.json           status and results of the job
        job.log                 output of all attempts
        lock                    locked while the job runs
        run/ or out/            files that the job writes
    slurm/                      batch scripts and their logs
    .replaced/N/                results whose inputs have changed
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spdf_dist.config.errors import UserError

JOBS = "jobs"
RUN, OUT = "run", "out"
"""Sub-folders of a job's folder: the run of a training job, and the output of any other job."""
PLAN = "plan.json"
SPEC = "job.json"
CHOICE = f"{OUT}/choice.json"
"""File with the choice of a `select` job."""
DONE, FAILED, CANCELLED = "done", "failed", "cancelled"
"""Values of ``status`` in a job's manifest."""
PRETRAIN, FINETUNE, EVALUATE, SELECT, REPORT = "pretrain", "finetune", "evaluate", "select", "report"
"""Kinds of jobs that this module treats specially."""


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if the file is missing, incomplete or holds something else.

    Raises PermissionError for a file that may not be read: its job would be taken for one that has not run.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class JobFolder:
    """The files of one job."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / SPEC

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "job.log"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def exit_code(self) -> Path:
        """File to which rank 0 writes the trainer's exit code."""
        return self.path / "exit_code"

    @property
    def run_dir(self) -> Path:
        """The run folder of a training job."""
        return self.path / RUN

    @property
    def out(self) -> Path:
        """The output folder of any other job."""
        return self.path / OUT

    def status(self) -> str | None:
        """How the job ended: done, failed or cancelled; None if it has not ended."""
        manifest = read_json(self.manifest)
        return None if manifest is None else str(manifest.get("status"))

    def is_done(self, key: str) -> bool:
        """Whether the job is done with exactly the inputs that ``key`` identifies."""
        manifest = read_json(self.manifest) or {}
        return manifest.get("status") == DONE and manifest.get("key") == key


def job_folder(root: Path, job_id: str) -> JobFolder:
    """The folder of job ``job_id`` in the workflow's folder ``root``. Raises UserError if it would lie outside."""
    if not job_id or Path(job_id).is_absolute() or ".." in Path(job_id).parts:
        raise UserError(f"'{job_id}' is not the name of a job: its folder would lie outside {root / JOBS}")
    return JobFolder(root / JOBS / job_id)


@dataclass(frozen=True)
class JobRecord:
    """A job, as described by its job.json."""

    root: Path
    """The workflow's folder."""
    id: str
    name: str
    kind: str
    variant: str
    """Empty if one job serves all variants."""
    cell: dict[str, str]
    needs: tuple[str, ...]
    spec: dict[str, Any]
    """The content of job.json."""

    @property
    def folder(self) -> JobFolder:
        return JobFolder(self.root / JOBS / self.id)

    @property
    def trains(self) -> bool:
        """Whether the job trains and so has a run folder."""
        return self.kind in (PRETRAIN, FINETUNE)

    def manifest(self) -> dict[str, Any]:
        """The job's manifest; empty if it has not ended."""
        return read_json(self.folder.manifest) or {}

    def parents(self) -> list[JobRecord]:
        """The jobs that it needs directly and that the launcher has written."""
        return [job for job_id in self.needs if (job := read_job(self.root, job_id)) is not None]


def read_job(root: Path, job_id: str) -> JobRecord | None:
    """A job by its id; None if the launcher has not written it."""
    spec = read_json(root / JOBS / job_id / SPEC)
    if spec is None or "kind" not in spec:
        return None
    return JobRecord(
        root=root,
        id=job_id,
        name=str(spec.get("name") or job_id.partition("/")[0]),
        kind=str(spec["kind"]),
        variant=str(spec.get("variant") or ""),
        cell=dict(spec.get("cell") or {}),
        needs=tuple(spec.get("needs") or ()),
        spec=spec,
    )


def job_of(path: Path) -> JobRecord | None:
    """The job whose folder is or contains ``path``; None if there is none."""
    place = path.resolve()
    for folder in (place, *place.parents):
        if (folder / SPEC).is_file():
            for root in folder.parents:
                if folder.is_relative_to(root / JOBS):
                    return read_job(root, str(folder.relative_to(root / JOBS)))
    return None


def all_jobs(root: Path) -> list[JobRecord]:
    """All jobs in a workflow's folder: those of the plan in its order, then those of earlier plans."""
    plan = read_json(root / PLAN) or {}
    listed = [entry["id"] for entry in plan.get("jobs") or [] if isinstance(entry, dict) and "id" in entry]
    found = [str(path.parent.relative_to(root / JOBS)) for path in sorted((root / JOBS).rglob(SPEC))]
    jobs = [read_job(root, job_id) for job_id in dict.fromkeys([*listed, *found])]
    return [job for job in jobs if job is not None]


def chosen_by(select: JobRecord) -> str | None:
    """The id of the job that a `select` job chose; None if it has not chosen."""
    choice = (read_json(select.folder.path / CHOICE) or {}).get("job")
    return None if choice is None else str(choice)


def ancestors(job: JobRecord) -> Iterator[JobRecord]:
    """The jobs that ``job`` depends on, nearest first. Behind a `select` job only the chosen job counts."""
    seen = {job.id}
    queue = list(job.needs)
    while queue:
        job_id = queue.pop(0)
        if job_id in seen:
            continue
        seen.add(job_id)
        parent = read_job(job.root, job_id)
        if parent is None:
            continue
        yield parent
        choice = chosen_by(parent) if parent.kind == SELECT else None
        queue += parent.needs if choice is None else [choice]


def training_behind(job: JobRecord) -> JobRecord | None:
    """The job itself if it trains, otherwise the nearest training job that it depends on, or None."""
    return next((below for below in (job, *ancestors(job)) if below.trains), None)


def failure(job: JobRecord, above: tuple[str, ...] = ()) -> str | None:
    """The reason why a job cannot be done: that of the first failed job it depends on, or its own.

    None if no failure prevents it. A `select` job fails only if all of its candidates fail. ``above`` holds the ids of
    the jobs that led here.
    """
    manifest = job.manifest()
    if manifest.get("status") == DONE or job.id in above:
        return None
    failed = manifest.get("status") == FAILED
    below = [failure(need, (*above, job.id)) for need in job.parents()]
    if job.kind == SELECT and not failed and None in below:
        return None
    return next((reason for reason in below if reason is not None), str(manifest.get("reason")) if failed else None)


@dataclass
class Selection:
    """Facts about a training run from `select` jobs."""

    rejected: bool = False
    """Whether the run is only a candidate and not a result."""
    keys: set[str] = field(default_factory=set)
    """The grid keys over which the `select` jobs chose."""


def selections(root: Path) -> dict[Path, Selection]:
    """The training runs that finished `select` jobs compared, and those with the chosen settings, by run folder.

    The chosen candidate is a result, unless all jobs after the choice are new training runs: then these are.
    """
    jobs = all_jobs(root)
    found: dict[Path, Selection] = {}

    def of(job: JobRecord) -> Selection:
        return found.setdefault(job.folder.run_dir.resolve(), Selection())

    for select in (job for job in jobs if job.kind == SELECT):
        chosen = chosen_by(select)
        if chosen is None:
            continue
        after = [job for job in jobs if select.id in job.needs]
        renewed = all(job.trains for job in after) and any(job.folder.run_dir.is_dir() for job in after)
        for candidate in select.parents():
            run = training_behind(candidate)
            if run is None:
                continue
            keys = (candidate.cell | run.cell).keys() - select.cell.keys()
            of(run).rejected |= renewed or candidate.id != chosen
            for job in (run, *(job for job in after if job.kind == run.kind)):
                of(job).keys |= keys
    return found


def candidates(root: Path) -> set[str]:
    """Ids of the jobs whose scores a `select` job compares. These scores are on validation data and are not results."""
    return {need for job in all_jobs(root) if job.kind == SELECT for need in job.needs}


def outdated(root: Path) -> dict[str, str]:
    """Jobs whose inputs have changed, each with the id of the job that was run or prepared again.

    A manifest records the key of each job that it depends on. A job that is prepared or done again with other inputs
    has another key. Jobs outside the current plan count too, because a study may be run one part at a time.
    """
    jobs = {job.id: job for job in all_jobs(root)}
    keys: dict[str, object] = {}
    recorded: dict[str, dict[str, object]] = {}
    for job in jobs.values():
        manifest = job.manifest()
        keys[job.id] = manifest.get("key") or job.spec.get("key")
        inputs = manifest.get("inputs")
        found = inputs.get("parents") if isinstance(inputs, dict) else job.spec.get("parents")
        recorded[job.id] = found if isinstance(found, dict) else {}
    causes: dict[str, str] = {}  # "" stands for unchanged inputs

    def cause(job_id: str) -> str:
        if job_id not in causes:
            causes[job_id] = ""  # ends the recursion if jobs need each other in a circle
            changed = (need for need, key in recorded[job_id].items() if keys.get(need) not in (None, key))
            below = (cause(need) for need in jobs[job_id].needs if need in jobs)
            causes[job_id] = next(changed, "") or next((text for text in below if text), "")
        return causes[job_id]

    return {job_id: cause(job_id) for job_id in jobs if cause(job_id)}
