"""Chooses the best cell of a grid by a validation metric in the cells' manifests.

Failed cells are listed and left out. The job fails only if no cell finished. In a tie the first cell is chosen.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

from spdf_dist.workflow_folder import DONE, job_folder, read_json
from spdf_launcher.folder import write_json
from spdf_launcher.plan import Job, ancestry, job_from_json, outputs


def read_job(root: Path, job_id: str) -> Job:
    """A job from its job.json, with outputs below the current location of the workflow's folder."""
    spec = read_json(job_folder(root, job_id).spec)
    if spec is None:
        raise FileNotFoundError(f"{job_folder(root, job_id).spec} is missing or incomplete")
    job = job_from_json(spec)
    return dataclasses.replace(job, outputs=outputs(root, job_id, job.kind))


def metric_of(manifest: dict[str, Any], metric: str) -> float | None:
    """The value of ``metric`` in a manifest, by its full or last name; None if it is missing or not finite."""
    metrics = manifest.get("metrics") or {}
    for name, value in metrics.items():
        if (name == metric or name.rpartition(".")[2] == metric) and isinstance(value, int | float):
            return float(value) if math.isfinite(value) else None
    return None


def choose(root: Path, job: Job) -> tuple[dict[str, Any] | None, list[str]]:
    """The choice among the jobs that ``job`` needs (None: none finished), and one line per cell that is left out."""
    assert job.select is not None
    metric, sign = job.select["metric"], -1.0 if job.select["mode"] == "max" else 1.0
    jobs = _Specs(root)
    candidates: list[tuple[float, Job]] = []
    left_out = []
    for need in job.needs:
        manifest = read_json(job_folder(root, need).manifest) or {}
        value = metric_of(manifest, metric)
        if manifest.get("status") != DONE:
            left_out.append(f"{need}: {manifest.get('reason') or blame(need, jobs)}")
        elif value is None:
            left_out.append(f"{need}: has no finite metric '{metric}'")
        else:
            candidates.append((value, jobs[need]))
    if not candidates:
        return None, left_out
    value, best = min(candidates, key=lambda pair: sign * pair[0])
    choice = {
        "schema_version": 1,
        "job": best.id,
        "metric": metric,
        "value": value,
        "cell": best.cell,
        "grid": best.values,
        "outputs": {
            ancestor.name: {name: str(Path(path).relative_to(root)) for name, path in ancestor.outputs.items()}
            for ancestor in ancestry(best, jobs)
        },
        "candidates": {candidate.id: score for score, candidate in candidates},
        "left_out": left_out,
    }
    return choice, left_out


def blame(job_id: str, jobs: _Specs) -> str:
    """Why a job without a manifest did not run: the first job below it that failed."""
    for below in ancestry(jobs[job_id], jobs):
        manifest = read_json(job_folder(jobs.root, below.id).manifest) or {}
        if manifest.get("status") not in (None, DONE):
            return f"{below.id} {manifest['status']}: {manifest.get('reason')}"
    return "did not finish"


class _Specs(dict[str, Job]):
    """Jobs by id, read at the first access."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, job_id: str) -> Job:
        self[job_id] = read_job(self.root, job_id)
        return self[job_id]


def main(root: Path, job_id: str) -> int:
    """Run one `select` job; return 0 if there is a choice, else 1."""
    job = read_job(root, job_id)
    choice, left_out = choose(root, job)
    for line in left_out:
        print(f"left out {line}", file=sys.stderr)
    if choice is None:
        print(f"spdf select: no cell of {job_id} finished", file=sys.stderr)
        return 2
    write_json(Path(job.outputs["choice"]), choice)
    print(f"{choice['job']}: {choice['metric']} {choice['value']:g}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2]))
