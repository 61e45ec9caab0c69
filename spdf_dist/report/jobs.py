"""The jobs of a workflow folder, as the launcher wrote them down.

``jobs/NAME[/VARIANT][/CELL]/{job,manifest}.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class WorkflowJob:
    """One job."""

    root: Path
    """The workflow's folder."""
    id: str
    name: str
    kind: str
    variant: str
    """Empty when the job exists once for all variants."""
    cell: dict[str, str]
    needs: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    """Of its command."""

    @property
    def folder(self) -> Path:
        """Where the job works."""
        return self.root / "jobs" / self.id

    def manifest(self) -> dict[str, Any]:
        """How it ended; empty while it has not."""
        return read_object(self.folder / "manifest.json")


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is none or it is not whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_job(root: Path, job_id: str) -> WorkflowJob | None:
    """A job by its id; None when the launcher has not written it."""
    spec = read_object(root / "jobs" / job_id / "job.json")
    if "kind" not in spec:
        return None
    return WorkflowJob(
        root=root,
        id=job_id,
        name=str(spec.get("name") or job_id.partition("/")[0]),
        kind=str(spec["kind"]),
        variant=str(spec.get("variant") or ""),
        cell=dict(spec.get("cell") or {}),
        needs=tuple(spec.get("needs") or ()),
        arguments=tuple(map(str, spec.get("arguments") or ())),
    )


def job_of(path: Path) -> WorkflowJob | None:
    """The job whose folder holds ``path`` or is it; None outside of a workflow folder."""
    place = path.resolve()
    for folder in (place, *place.parents):
        if (folder / "job.json").is_file():
            for root in folder.parents:
                if folder.is_relative_to(root / "jobs"):
                    return read_job(root, str(folder.relative_to(root / "jobs")))
    return None


def ancestors(job: WorkflowJob) -> Iterator[WorkflowJob]:
    """What a job rests on, nearest first; of a `select` job only what it chose."""
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
        choice = read_object(parent.folder / "out" / "choice.json") if parent.kind == "select" else {}
        queue += [str(choice["job"])] if "job" in choice else parent.needs


def needs_of(job: WorkflowJob) -> list[WorkflowJob]:
    """The jobs that a job needs itself, as far as the launcher has written them."""
    return [need for job_id in job.needs if (need := read_job(job.root, job_id)) is not None]


def failure(job: WorkflowJob, above: tuple[str, ...] = ()) -> str | None:
    """Why a job cannot be done: the reason of the failed job lowest below it; None where no failure is in its way.

    A `select` job gets by with one candidate, so the failure of some alone is none of its.
    """
    manifest = job.manifest()
    if manifest.get("status") == "done" or job.id in above:
        return None
    failed = manifest.get("status") == "failed"
    below = [failure(need, (*above, job.id)) for need in needs_of(job)]
    if job.kind == "select" and not failed and None in below:
        return None
    return next((reason for reason in below if reason is not None), str(manifest.get("reason")) if failed else None)


def trained_by(job: WorkflowJob) -> WorkflowJob | None:
    """The training job that a job is or, nearest first, rests on."""
    return next((below for below in (job, *ancestors(job)) if below.kind in ("finetune", "pretrain")), None)


def chosen_over(job: WorkflowJob) -> set[str]:
    """The grid keys over which `select` jobs chose the training run behind ``job``, or what it was set up with."""
    trained = trained_by(job)
    if trained is None:
        return set()
    between = takewhile(lambda below: below.id != trained.id, (job, *ancestors(job)))
    keys: set[str] = set()
    for select in (need for need in (*between, *needs_of(trained)) if need.kind == "select"):
        for candidate in needs_of(select):
            made = trained_by(candidate)
            if made is not None and made.kind == trained.kind:  # not what was chosen for the pre-training below
                keys |= (candidate.cell | made.cell).keys() - select.cell.keys()
    return keys


def chosen_by(job: WorkflowJob) -> str | None:
    """The job that a `select` job chose; None while it has not."""
    choice = read_object(job.folder / "out" / "choice.json").get("job")
    return None if choice is None else str(choice)


def split_named(job: WorkflowJob) -> str | None:
    """The split of the data behind a score: that of the nearest command with a ``--split``; None without any."""
    for below in (job, *ancestors(job)):
        if "--split" in below.arguments[:-1]:
            return below.arguments[below.arguments.index("--split") + 1]
        if below.kind in ("finetune", "pretrain"):
            break
    return None


def all_jobs(root: Path) -> list[WorkflowJob]:
    """Every job of a workflow folder, in the order of the plan."""
    plan = read_object(root / "plan.json")
    listed = [entry["id"] for entry in plan.get("jobs") or [] if isinstance(entry, dict) and "id" in entry]
    found = [str(path.parent.relative_to(root / "jobs")) for path in sorted((root / "jobs").rglob("job.json"))]
    jobs = [read_job(root, job_id) for job_id in dict.fromkeys([*listed, *found])]
    return [job for job in jobs if job is not None]


def made_from_other_inputs(root: Path) -> dict[str, str]:
    """Jobs whose inputs are no longer those they were made from, each with what was made anew since.

    A manifest names the key of each job that it rests on; a job set up or done again under another key has another.
    Jobs that the present plan does not name stand on their own: a study may be run a part at a time.
    """
    jobs = {job.id: job for job in all_jobs(root)}
    keys: dict[str, object] = {}
    parents: dict[str, dict[str, object]] = {}
    for job in jobs.values():
        manifest, spec = job.manifest(), read_object(job.folder / "job.json")
        keys[job.id] = manifest.get("key") or spec.get("key")
        inputs = manifest.get("inputs")
        recorded = inputs.get("parents") if isinstance(inputs, dict) else spec.get("parents")
        parents[job.id] = recorded if isinstance(recorded, dict) else {}
    causes: dict[str, str] = {}  # empty: as it was

    def cause(job_id: str) -> str:
        if job_id not in causes:
            causes[job_id] = ""  # also where jobs need each other in a circle
            changed = (need for need, key in parents[job_id].items() if keys.get(need) not in (None, key))
            below = (cause(need) for need in jobs[job_id].needs if need in jobs)
            causes[job_id] = next(changed, "") or next((text for text in below if text), "")
        return causes[job_id]

    return {job_id: cause(job_id) for job_id in jobs if cause(job_id)}
