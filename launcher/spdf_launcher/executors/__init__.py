"""Executors: where the jobs of a workflow run. Each is one class of the entry-point group ``spdf.executors``."""

from __future__ import annotations

from spdf_dist.config.errors import UserError
from spdf_dist.extensions import extensions, load_extension
from spdf_launcher.executors.base import Executor, JobState

__all__ = ["Executor", "JobState", "executor_names", "find_executor"]

GROUP = "spdf.executors"
BUILT_IN = {
    "local": "spdf_launcher.executors.local:Local",
    "deepspeed": "spdf_launcher.executors.deepspeed:DeepSpeed",
    "slurm": "spdf_launcher.executors.slurm:Slurm",
}


def executor_names() -> list[str]:
    """Names of all executors, built-in ones first."""
    return list(extensions(GROUP, BUILT_IN))


def find_executor(name: str) -> type[Executor]:
    """The class called ``name``.

    Raises:
        UserError: there is no such executor, it cannot be imported, or it is not a subclass of ``Executor``.
    """
    found = load_extension(extensions(GROUP, BUILT_IN), name, "executor")
    if not (isinstance(found, type) and issubclass(found, Executor)):
        raise UserError(f"the executor '{name}' is not a subclass of spdf_launcher.executors.Executor")
    return found
