"""Callbacks that send a run's metrics to Weights & Biases and to MLflow. Both also work offline.

A run that continues uses the same W&B or MLflow run, whose id is in the checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spdf_dist.base.extras import require_extra
from spdf_dist.config.load import flatten, to_tree
from spdf_dist.training.callbacks import Callback, RunInfo, StepMetrics, scalars

MLFLOW_TEXT = 500
"""Maximum length of a parameter's value in MLflow."""


def known_scalars(metrics: StepMetrics, phases_ms: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a step that are known, as floats."""
    further = {
        "train/consumed_tokens": metrics.consumed_tokens,
        "train/skipped_iterations": metrics.skipped_iterations,
    }
    return {name: float(value) for name, value in (scalars(metrics, phases_ms) | further).items() if value is not None}


class Tracker(Callback):
    """A service that keeps the metrics of runs. A run that continues has the same ``id`` there."""

    id: str | None = None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.id = state["id"]

    def state_dict(self) -> dict[str, Any]:
        return {"id": self.id} if self.id else {}


class Wandb(Tracker):
    """Weights & Biases. ``options`` are arguments of ``wandb.init``, such as ``project``, ``mode`` and ``tags``."""

    def __init__(self, run: RunInfo, **options: Any) -> None:
        require_extra("wandb", "callbacks.wandb")
        import wandb

        self.wandb = wandb
        self.run = run
        self.options = {"project": "spdf", "name": run.folder.path.name, "dir": str(run.folder.path), **options}
        self.tracked: Any = None

    def on_start(self) -> None:
        config = {**to_tree(self.run.config), "run": {"kind": self.run.kind, **self.run.summary}}
        self.tracked = self.wandb.init(config=config, id=self.id, resume="allow" if self.id else None, **self.options)
        self.id = self.tracked.id

    def after_step(self, metrics: StepMetrics, phases_ms: Mapping[str, float]) -> None:
        self.tracked.log(known_scalars(metrics, phases_ms), step=metrics.step)

    def after_validation(self, step: int, loss: float) -> None:
        self.tracked.log({"validation/loss": loss}, step=step)

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        # W&B drops metrics of a step before its newest one.
        self.tracked.log(dict(values), step=max(step, self.tracked.step))

    def after_checkpoint(self, step: int, path: Path, stalled: float) -> None:
        self.tracked.summary["checkpoint"] = str(path)

    def on_note(self, text: str) -> None:
        if self.tracked is not None and text.startswith(("changed:", "rewound", "WARNING")):
            self.tracked.alert("spdf", text)

    def on_end(self) -> None:
        if self.tracked is not None:
            self.tracked.finish()


class Mlflow(Tracker):
    """MLflow. ``tracking_uri`` is a server or, by default, a file store in the run folder."""

    def __init__(self, run: RunInfo, tracking_uri: str | None = None, experiment: str = "spdf") -> None:
        require_extra("mlflow", "callbacks.mlflow")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions need it for a file store
        from mlflow.tracking import MlflowClient

        store = (run.folder.path / "mlruns").absolute()
        self.client = MlflowClient(tracking_uri or store.as_uri())
        self.run = run
        self.experiment = experiment

    def on_start(self) -> None:
        if self.id is not None:
            self.client.update_run(self.id, status="RUNNING")
            return
        known = self.client.get_experiment_by_name(self.experiment)
        experiment = known.experiment_id if known else self.client.create_experiment(self.experiment)
        self.id = self.client.create_run(experiment, run_name=self.run.folder.path.name).info.run_id
        for key, value in flatten(to_tree(self.run.config)).items():
            self.client.log_param(self.id, key.replace(":", "_"), str(value)[:MLFLOW_TEXT])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the metrics of a step."""
        for name, value in values.items():
            self.client.log_metric(self.id, name, value, step=step)

    def after_step(self, metrics: StepMetrics, phases_ms: Mapping[str, float]) -> None:
        self.log(known_scalars(metrics, phases_ms), metrics.step)

    def after_validation(self, step: int, loss: float) -> None:
        self.log({"validation/loss": loss}, step)

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.log(values, step)

    def on_end(self) -> None:
        if self.id is not None:
            self.client.set_terminated(self.id)
