"""The runs of the evidence study, one row per job, from a workflow folder or from the CSV of an earlier report.

``study.yaml`` defines the columns, and the grid points that each result uses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from spdf_dist.accounting.parameters import linear_parameters, real_sparsity, total_parameters
from spdf_dist.config.errors import UserError
from spdf_dist.config.load import flatten, to_tree
from spdf_dist.config.schema import AnyConfig, FinetuneConfig, PretrainConfig, TrainingConfig
from spdf_dist.report.page import NOT_RUN, Texts
from spdf_dist.report.results import Results
from spdf_dist.report.runs import Run
from spdf_dist.sparsity.update import update_steps
from spdf_dist.workflow_folder import PLAN, JobRecord, all_jobs, failure, read_json

TEXTS = Texts(Path(__file__).with_name("study.yaml"))
STUDY = TEXTS.content
COLUMNS = {name: kind for name, (kind, *_) in STUDY["columns"].items()}
ROWS = "evidence.csv"
SIGN = {"cooldown-10", "dense-equal"}
"""A workflow with jobs of these names is an evidence study."""
DONE = "done"


@dataclass
class Evidence:
    """The rows of a study in the order of its plan, and a note about results that are left out."""

    rows: pd.DataFrame
    note: str = ""

    @property
    def done(self) -> pd.DataFrame:
        """The rows of finished jobs."""
        return self.rows[self.rows.state == DONE]

    def at(self, job: str, variant: str = "", cell: str = "") -> pd.DataFrame:
        """The finished rows of one grid point."""
        done = self.done
        return done[(done.job == job) & (done.variant == variant) & (done.cell == cell)]

    def losses(self, job: str, variant: str = "", cell: str = "") -> pd.Series:
        """Validation loss by seed of the finished jobs at one grid point."""
        return self.at(job, variant, cell).set_index("seed").loss.dropna()


def typed_rows(records: Any) -> pd.DataFrame:
    """Records as a table with all columns and their types. A missing text is empty."""
    texts = dict.fromkeys((name for name, kind in COLUMNS.items() if kind == "string"), "")
    return pd.DataFrame(records, columns=list(COLUMNS)).astype(COLUMNS).fillna(texts)


def read_rows(path: Path) -> pd.DataFrame:
    """The rows in the CSV of an earlier report; none without the file. Raises UserError when it cannot be read."""
    try:
        return typed_rows(pd.read_csv(path, usecols=list(COLUMNS), dtype=COLUMNS) if path.is_file() else [])
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a table of an evidence study ({error}): move it away to start again") from None


def read_evidence(results: Results, folders: Iterable[Path]) -> Evidence:
    """The rows of the study: those in the CSV files of ``folders``, then those of the workflows of ``results``.

    A finished job of a workflow replaces the row of a file. Raises UserError for a file that cannot be read.
    """
    identity = ("job", "variant", "cell", "seed")
    earlier = [row for folder in folders for row in read_rows(folder / ROWS).to_dict("records")]
    rows = {tuple(row[name] for name in identity): row for row in earlier}
    for root in results.workflows:
        jobs = all_jobs(root)
        if {job.name for job in jobs} >= SIGN:
            planned = {entry["id"] for entry in (read_json(root / PLAN) or {}).get("jobs") or []}
            for job in jobs:
                if job.trains and not results.is_outdated(job.folder.path):
                    row = row_of(results, job)
                    key = tuple(row[name] for name in identity)
                    if row["state"] == DONE or (job.id in planned and key not in rows):
                        rows[key] = row
    return Evidence(typed_rows(list(rows.values())), results.outdated_text())


def row_of(results: Results, job: JobRecord) -> dict[str, Any]:
    """The row of one job, by column."""
    cell = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in job.cell.items() if key != "seed")
    row = {"job": job.name, "variant": job.variant, "cell": cell, "seed": int(job.cell.get("seed", 0))}
    manifest, run = job.manifest(), results.run_at(job.folder.run_dir)
    if run is None or not job.folder.is_done(str(job.spec.get("key"))):
        reason = failure(job)
        return row | {"state": NOT_RUN if reason is None else f"failed: {reason}"}
    row |= describe(run.origin) if run.origin else {}
    origins = [part for part in continued(results, run) if len(part.curve)]
    times = run.curve.set_index("step").seconds.diff().fillna(run.curve.set_index("step").seconds)
    versions = manifest.get("versions") or {}
    return row | {
        "seed": int(job.cell.get("seed", run.config.seed)),
        "state": DONE,
        "task": run.task,
        "loss": run.best_validation if run.is_finetuning else run.final_validation,
        "lr": run.config.training.lr,
        "steps": run.steps,
        "tokens": sum(part.last("tokens") for part in origins),
        "flops": sum(part.last("flops") for part in origins),
        "step_seconds": times.median() if len(times) > 1 else None,
        "update_seconds": update_seconds(run.config, times),
        "versions": " ".join(f"{name} {versions[name]}" for name in ("spdf", "torch", "python") if name in versions),
        "commit": manifest.get("git_commit"),
        "ended": manifest.get("ended"),
        "key": manifest.get("key"),
    }


def describe(config: PretrainConfig) -> dict[str, Any]:
    """The columns about the model, its masks and its parameterization."""
    model, sparsity, values = config.model, config.sparsity, flatten(to_tree(config))
    row = {name: values[key] for name, (_, _, *keys) in STUDY["columns"].items() for key in keys}
    row |= {"parameters": total_parameters(model), "linear": linear_parameters(model), "level": 0.0}
    if sparsity.level:
        row |= {"level": real_sparsity(model, sparsity), "algorithm": sparsity.algorithm}
        row["pattern"] = sparsity.pattern + (" permuted" if sparsity.permute else "")
    return row


def continued(results: Results, run: Run) -> Iterable[Run]:
    """The run, and before it the runs whose tokens and FLOPs its own counts do not contain."""
    yield run
    training = run.config.training
    if isinstance(training, TrainingConfig) and training.init_from and "schedule" in training.reset:
        origin = Path(training.init_from)
        for place in (origin, origin.parent.parent):  # a run folder, or a checkpoint in one
            if (before := results.run_at(place)) is not None:
                yield from continued(results, before)
                return


def update_seconds(config: AnyConfig, times: pd.Series) -> float | None:
    """Median over the mask updates of the extra seconds of their steps against the ten steps around each.

    None without pre-training steps, NaN without updates. ``times`` has the seconds of each step.
    """
    if len(times) < 2 or isinstance(config, FinetuneConfig):
        return None
    updates = [step for step in update_steps(config.sparsity, int(times.index.max())) if step in times.index]
    around = [times[(abs(times.index - step) <= 5) & (times.index != step)].median() for step in updates]
    return float((times[updates] - around).median())
