"""Finds jobs by the name that a user gives."""

from __future__ import annotations

from spdf_dist.config.errors import UserError
from spdf_dist.config.suggest import nearest
from spdf_launcher.plan import Job


def matching(jobs: list[Job], name: str | None) -> list[Job]:
    """The jobs whose id is ``name`` or begins with its path parts; all jobs for None.

    Raises:
        UserError: no job matches.
    """
    if name is None:
        return jobs
    found = [job for job in jobs if job.id == name or job.id.startswith(f"{name.rstrip('/')}/")]
    if not found:
        known = {job.id for job in jobs} | {job.name for job in jobs}
        raise UserError(f"no job '{name}'{nearest(name, known)}")
    return found
