"""The format of a workflow's folder: where things lie, and what its records say. This is the only module that knows it.

The launcher writes the records and the report reads them.

    workflow.yaml  plan.json    the workflow as it was read, and its jobs
    journal.jsonl               what the launchers did
    jobs/NAME[/VARIANT][/CELL]/
        job.json                what the job runs
        attempts.jsonl          a line when an attempt starts and one when it ends
        manifest.json           how the job ended and what it made
        job.log                 output of all attempts
        lock                    held while the job runs
        run/ or out/            what it makes
    slurm/                      batch scripts and their logs
    .replaced/N/                results whose inputs have changed since
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
"""In a job's folder: where training keeps its run, and where any other job writes."""
PLAN = "plan.json"
SPEC = "job.json"
CHOICE = f"{OUT}/choice.json"
"""What a `select` job chose."""
DONE, FAILED, CANCELLED = "done", "failed", "cancelled"
"""How a manifest says that a job ended."""
PRETRAIN, FINETUNE, EVALUATE, SELECT, REPORT = "pretrain", "finetune", "evaluate", "select", "report"
"""Kinds of jobs with a meaning beyond their own folder."""


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is none or it is not whole."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
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
        """Where rank 0 writes the trainer's exit code."""
        return self.path / "exit_code"

    @property
    def run_dir(self) -> Path:
        """Where a training job keeps its run."""
        return self.path / RUN

    @property
    def out(self) -> Path:
        """Where any other job writes."""
        return self.path / OUT

    def status(self) -> str | None:
        """How the job ended: done, failed, cancelled; None while it has not."""
        manifest = read_json(self.manifest)
        return None if manifest is None else str(manifest.get("status"))

    def is_done(self, key: str) -> bool:
        """Whether the job is done with exactly the inputs that ``key`` stands for."""
        manifest = read_json(self.manifest) or {}
        return manifest.get("status") == DONE and manifest.get("key") == key


def job_folder(root: Path, job_id: str) -> JobFolder:
    """The folder of job ``job_id`` in the workflow's folder ``root``; UserError when it would lie outside of that."""
    if not job_id or Path(job_id).is_absolute() or ".." in Path(job_id).parts:
        raise UserError(f"'{job_id}' is not a job's name: its folder would lie outside of {root / JOBS}")
    return JobFolder(root / JOBS / job_id)


@dataclass(frozen=True)
class JobRecord:
    """A job as its job.json describes it."""

    root: Path
    """The workflow's folder."""
    id: str
    name: str
    kind: str
    variant: str
    """Empty when the job exists once for all variants."""
    cell: dict[str, str]
    needs: tuple[str, ...]
    spec: dict[str, Any]
    """The whole job.json."""

    @property
    def folder(self) -> JobFolder:
        return JobFolder(self.root / JOBS / self.id)

    @property
    def trains(self) -> bool:
        """Whether it makes a run."""
        return self.kind in (PRETRAIN, FINETUNE)

    def manifest(self) -> dict[str, Any]:
        """How it ended; empty while it has not."""
        return read_json(self.folder.manifest) or {}

    def parents(self) -> list[JobRecord]:
        """The jobs that it needs itself, as far as the launcher has written them."""
        return [job for job_id in self.needs if (job := read_job(self.root, job_id)) is not None]


def read_job(root: Path, job_id: str) -> JobRecord | None:
    """A job by its id; None when the launcher has not written it."""
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
    """The job whose folder holds ``path`` or is it; None outside of a workflow's folder."""
    place = path.resolve()
    for folder in (place, *place.parents):
        if (folder / SPEC).is_file():
            for root in folder.parents:
                if folder.is_relative_to(root / JOBS):
                    return read_job(root, str(folder.relative_to(root / JOBS)))
    return None


def all_jobs(root: Path) -> list[JobRecord]:
    """Every job of a workflow's folder, in the order of the plan; then those of earlier plans."""
    plan = read_json(root / PLAN) or {}
    listed = [entry["id"] for entry in plan.get("jobs") or [] if isinstance(entry, dict) and "id" in entry]
    found = [str(path.parent.relative_to(root / JOBS)) for path in sorted((root / JOBS).rglob(SPEC))]
    jobs = [read_job(root, job_id) for job_id in dict.fromkeys([*listed, *found])]
    return [job for job in jobs if job is not None]


def chosen_by(select: JobRecord) -> str | None:
    """The id of the job that a `select` job chose; None while it has not."""
    choice = (read_json(select.folder.path / CHOICE) or {}).get("job")
    return None if choice is None else str(choice)


def ancestors(job: JobRecord) -> Iterator[JobRecord]:
    """What a job depends on, nearest first; of a `select` job only what it chose."""
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
    """The job itself where it trains, else the nearest training job that it depends on."""
    return next((below for below in (job, *ancestors(job)) if below.trains), None)


def failure(job: JobRecord, above: tuple[str, ...] = ()) -> str | None:
    """Why a job cannot be done: the reason of the first failed job below it; None where no failure is in its way.

    A `select` job fails only when all of its candidates do.
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
    """What `select` jobs say of a training run."""

    rejected: bool = False
    """Whether the run is a candidate and not a result."""
    keys: set[str] = field(default_factory=set)
    """The grid keys over which they chose it, or its settings."""


def selections(root: Path) -> dict[Path, Selection]:
    """The training runs that finished `select` jobs compared, and those with the chosen settings, by run folder.

    The chosen candidate is a result, unless only new training went on from the choice: then the new runs are.
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
    """Ids of the jobs whose results a `select` job compares: they are of validation data, not results."""
    return {need for job in all_jobs(root) if job.kind == SELECT for need in job.needs}


def outdated(root: Path) -> dict[str, str]:
    """Jobs whose inputs are no longer those they were made from, each with the job that was made anew since.

    A manifest names the key of each job that it depends on; a job that was prepared or done again with other inputs has
    another key. Jobs that the present plan does not name count too: a study may be run one part at a time.
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
    causes: dict[str, str] = {}  # an empty text: the inputs have not changed

    def cause(job_id: str) -> str:
        if job_id not in causes:
            causes[job_id] = ""  # ends the recursion where jobs need each other in a circle
            changed = (need for need, key in recorded[job_id].items() if keys.get(need) not in (None, key))
            below = (cause(need) for need in jobs[job_id].needs if need in jobs)
            causes[job_id] = next(changed, "") or next((text for text in below if text), "")
        return causes[job_id]

    return {job_id: cause(job_id) for job_id in jobs if cause(job_id)}
