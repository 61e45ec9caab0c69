"""Scores of a checkpoint on the tasks of EleutherAI's lm-evaluation-harness.

The checkpoint is exported to a temporary Hugging Face folder, and the harness evaluates that model. Therefore the
scores are those of the harness.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spdf_dist.base.extras import require_extra
from spdf_dist.checkpoint.hf_export import export_hf
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.errors import UserError
from spdf_dist.config.suggest import nearest
from spdf_dist.evaluation.checkpoint import device_of

SCHEMA_VERSION = 1


def evaluate_tasks(
    source: Path,
    tasks: Sequence[str],
    *,
    task_folder: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    device: str = "auto",
) -> dict[str, Any]:
    """Evaluate a checkpoint, dense or sparse.

    Args:
        source: a ``step_N`` folder, or a run folder, whose newest checkpoint is used.
        tasks: names of tasks or groups of tasks.
        task_folder: a folder with additional task files in the harness's YAML format.
        num_fewshot: number of examples before each question; None: the task's default.
        limit: number of documents per task; None: all.
        batch_size: sequences per forward pass.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.

    Returns:
        A JSON object. ``tasks`` has the harness's metrics by task. The other keys record the checkpoint and settings.

    Raises:
        UserError: the harness is not installed, a task is unknown or its data cannot be loaded, or ``source`` is not a
            complete checkpoint with a tokenizer.
    """
    checkpoint = Checkpoint(source)
    if checkpoint.tokenizer_dir is None:
        raise UserError(f"{source} holds no tokenizer, which the tasks need")
    harness, manager = check_tasks(tasks, task_folder)
    with tempfile.TemporaryDirectory(prefix="spdf-eval-", ignore_cleanup_errors=True) as folder:
        exported = Path(folder) / "model"
        export_hf(source, exported)
        try:
            found = harness.simple_evaluate(
                model="hf",
                model_args={"pretrained": str(exported), "dtype": "float32"},
                tasks=list(tasks),
                task_manager=manager,
                num_fewshot=num_fewshot,
                limit=limit,
                batch_size=batch_size,
                device=device_of(device),
                bootstrap_iters=0,
            )
        except (OSError, ConnectionError) as error:
            what = " ".join(str(error).split())[:200]
            raise UserError(f"the data of {', '.join(tasks)} cannot be loaded (is there a network?): {what}") from None
    return {
        "schema_version": SCHEMA_VERSION,
        "checkpoint": str(checkpoint.path),
        "checkpoint_sha256": checkpoint.manifest.sha256,
        "step": checkpoint.step,
        "num_fewshot": num_fewshot,
        "limit": limit,
        "tasks": {name: metrics_of(row) for name, row in sorted(found["results"].items())},
        "task_versions": found["versions"],
        "lm_eval": harness.__version__,
    }


def check_tasks(tasks: Sequence[str], task_folder: Path | None) -> tuple[Any, Any]:
    """``open_harness``, and a check that it knows the tasks. Raises UserError if it does not."""
    harness, manager = open_harness(task_folder)
    for task in tasks:
        if task not in manager.all_tasks:
            raise UserError(f"--tasks: '{task}' is not known{nearest(task, manager.all_tasks)}")
    return harness, manager


def open_harness(task_folder: Path | None) -> tuple[Any, Any]:
    """The harness and its index of tasks. Raises UserError when it is not installed or the folder is missing."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if task_folder is not None and not task_folder.is_dir():
        raise UserError(f"--include-path: {task_folder} is not a folder")
    require_extra("eval", "spdf eval")
    import lm_eval
    from lm_eval.tasks import TaskManager

    for name in ("lm_eval", "transformers", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return lm_eval, TaskManager(include_path=None if task_folder is None else str(task_folder))


def metrics_of(row: dict[str, Any]) -> dict[str, float]:
    """The metrics of a task's row. The harness appends the name of the filter after a comma, or 'none' without one."""
    numbers = {}
    for key, value in row.items():
        if isinstance(value, int | float) and "_stderr" not in key and key not in ("sample_len", "sample_count"):
            numbers[key.removesuffix(",none")] = float(value)
    return numbers
