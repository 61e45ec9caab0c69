"""Extensions that users can add without editing this package: entry points by group.

A distribution that declares ``[project.entry-points."spdf.tasks"] captions = "my_module:TASK"`` adds a task. The
built-in extensions are listed in the code, so they need no installed metadata. A module is imported only when its
extension is loaded.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

from spdf_dist.config.errors import UserError
from spdf_dist.config.suggest import nearest

TASKS_GROUP = "spdf.tasks"
TASKS = {
    "e2e": "spdf_dist.data.tasks.e2e:TASK",
    "webnlg": "spdf_dist.data.tasks.webnlg:TASK",
    "dart": "spdf_dist.data.tasks.dart:TASK",
    "curation": "spdf_dist.data.tasks.curation:TASK",
}
"""The built-in tasks."""


@functools.cache
def installed(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group in all installed distributions. The look-up is slow, so it is cached."""
    return tuple(importlib.metadata.entry_points(group=group))


def extensions(group: str, built_in: Mapping[str, str]) -> dict[str, EntryPoint]:
    """The extensions of a group by name: the built-in ones, which cannot be replaced, then the installed ones."""
    found = {name: EntryPoint(name, value, group) for name, value in built_in.items()}
    for point in installed(group):
        found.setdefault(point.name, point)
    return found


def load_extension(points: Mapping[str, EntryPoint], name: str, what: str) -> Any:
    """The object of an extension.

    Args:
        points: the result of ``extensions``.
        name: name of the extension.
        what: kind of the extension for messages, such as "task".

    Raises:
        UserError: there is no such extension, or its module cannot be imported.
    """
    if name not in points:
        raise UserError(f"unknown {what} '{name}'{nearest(name, points)}")
    try:
        return points[name].load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"the {what} '{name}' ({points[name].value}) cannot be imported: {error}") from None


def task_names() -> list[str]:
    """Names of all tasks, the built-in ones first."""
    return list(extensions(TASKS_GROUP, TASKS))
