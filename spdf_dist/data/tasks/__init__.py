"""The registry of fine-tuning tasks. The entry-point group ``spdf.tasks`` adds a ``Task`` (docs/tasks.md)."""

from __future__ import annotations

import sys
from pathlib import Path

from spdf_dist.base.numbers import counted
from spdf_dist.base.rank_variables import is_rank_zero
from spdf_dist.config.errors import UserError
from spdf_dist.config.suggest import nearest
from spdf_dist.data.tasks.example import Example, distinct_contexts, number_groups, references
from spdf_dist.data.tasks.task import Task
from spdf_dist.extensions import TASKS, TASKS_GROUP, extensions, load_extension, task_names
from spdf_dist.scoring.metrics import LOSSES, Metric

__all__ = [
    "Example",
    "Task",
    "all_tasks",
    "distinct_contexts",
    "find_task",
    "load_task",
    "lower_is_better",
    "metric_title",
    "references",
    "without_empty_targets",
]


LEARNED_SPLITS = ("train", "validation")
"""Splits that need targets. The targets of a test split may be missing."""


def without_empty_targets(examples: list[Example], path: Path) -> list[Example]:
    """The examples with a target text. Rank 0 prints the number of the others on stderr.

    Raises UserError when every target is empty.
    """
    kept = [example for example in examples if example.target.strip()]
    if examples and not kept:
        raise UserError(f"{path}: each of its {len(examples)} examples has an empty text; there is no target")
    if len(kept) < len(examples) and is_rank_zero():
        print(f"{path}: left out {counted(len(examples) - len(kept), 'example')} with an empty text", file=sys.stderr)
    return number_groups([(example.context, example.target) for example in kept])


def find_task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        UserError: the task is unknown, its module cannot be imported, or the object is not a ``Task``.
    """
    task = load_extension(extensions(TASKS_GROUP, TASKS), name, "task")
    if not isinstance(task, Task):
        raise UserError(f"the task '{name}' is a {type(task).__name__}, not a spdf_dist.data.tasks.Task")
    return task


def all_tasks() -> list[Task]:
    """Every task that can be imported, built-in tasks first."""
    found = []
    for name in task_names():
        try:
            found.append(find_task(name))
        except UserError:
            continue  # a broken extension is an error only where it is used
    return found


def metrics_called(name: str) -> list[Metric]:
    """The metrics of all tasks with this name."""
    return [metric for task in all_tasks() if (metric := task.metric(name))]


def lower_is_better(name: str) -> bool:
    """Whether a lower value of the metric is better: a loss, a perplexity, or a metric with ``lower_is_better``."""
    return name in LOSSES or any(metric.lower_is_better for metric in metrics_called(name))


def metric_title(name: str) -> str:
    """A metric's name in tables."""
    return LOSSES.get(name) or next((metric.title for metric in metrics_called(name)), name.replace("_", " "))


def load_task(name: str, path: str | Path, split: str) -> list[Example]:
    """The examples of a task's file, in file order.

    Args:
        name: a registered task.
        path: the task's file. The task's module describes its formats.
        split: ``train``, ``validation`` or ``test``; WebNLG also has ``test_seen`` and ``test_unseen``.

    Raises:
        UserError: the task or split is unknown, the file cannot be read, has no examples, or an input is empty.
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
        if not example.context.strip():
            raise UserError(f"{path}: the input of the text {example.target!r:.60} is empty")
    return examples
