"""Fine-tuning tasks. A new task is one module with a ``TASK`` and an entry in ``TASKS`` (docs/tasks.md)."""

from __future__ import annotations

import sys
from pathlib import Path

from spdf_dist.base.rank_variables import is_rank_zero
from spdf_dist.config.errors import UserError
from spdf_dist.config.suggest import nearest
from spdf_dist.data.tasks import curation, dart, e2e, webnlg
from spdf_dist.data.tasks.example import Example, Task, distinct_contexts, number_groups, references

__all__ = ["TASKS", "Example", "Task", "distinct_contexts", "find_task", "load_task", "references"]

TASKS: dict[str, Task] = {task.name: task for task in (e2e.TASK, webnlg.TASK, dart.TASK, curation.TASK)}


LEARNED_SPLITS = ("train", "validation")
"""Splits whose targets are learned or predicted; a test's may be missing."""


def without_empty_targets(examples: list[Example], path: Path) -> list[Example]:
    """The examples that have a text; how many have none is said on stderr. Raises UserError when none has one."""
    kept = [example for example in examples if example.target.strip()]
    if examples and not kept:
        raise UserError(f"{path}: each of its {len(examples)} examples has an empty text; there is nothing to learn")
    if len(kept) < len(examples) and is_rank_zero():
        print(f"{path}: {len(examples) - len(kept)} examples with an empty text are left out", file=sys.stderr)
    return number_groups([(example.context, example.target) for example in kept])


def find_task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        UserError: no such task.
    """
    if name not in TASKS:
        raise UserError(f"unknown task '{name}'{nearest(name, TASKS)}")
    return TASKS[name]


def load_task(name: str, path: str | Path, split: str) -> list[Example]:
    """The examples of a task's file, in file order.

    Args:
        name: one of ``TASKS``.
        path: the task's file; its forms stand in the task's module.
        split: ``train``, ``validation`` or ``test``; WebNLG also has ``test_seen`` and ``test_unseen``.

    Raises:
        UserError: unknown task or split, or a file that cannot be read or holds no example.
    """
    task = find_task(name)
    path = Path(path)
    if split not in task.splits:
        raise UserError(f"the task {name} has no split '{split}'{nearest(split, task.splits)}")
    examples = task.load(path, split)
    if split in LEARNED_SPLITS:
        examples = without_empty_targets(examples, path)
    if not examples:
        raise UserError(f"{path} holds no example of {name}'s split {split}")
    for example in examples:
        try:
            (example.context + example.target).encode()
        except UnicodeEncodeError as error:  # "\ud800" in a JSON file
            raise UserError(f"{path}: an unpaired surrogate in the text {example.target!r:.60}") from error
    return examples
