"""The runs of the evidence study, one row per job, from a workflow folder or from the CSV of an earlier report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from spdf_dist.accounting.parameters import linear_parameters, real_sparsity, total_parameters
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.report.page import NOT_RUN
from spdf_dist.report.results import Results
from spdf_dist.report.runs import Run
from spdf_dist.sparsity.update import update_steps
from spdf_dist.workflow_folder import PLAN, JobRecord, all_jobs, failure, read_json

ROWS = "evidence.csv"
SIGN = {"cooldown-10", "dense-equal"}
"""A workflow with jobs of these names is an evidence study."""
DONE = "done"


@dataclass
class Row:
    """One training job. Numbers of a fine-tuning job about the model and the masks are those of its pre-training."""

    job: str
    """Name of the job in the workflow."""
    variant: str = ""
    cell: str = ""
    """The job's place in its grid without the seed, such as `pattern=side8`."""
    seed: int = 0
    state: str = NOT_RUN
    """`done`, `not run`, or `failed: ` and the reason."""
    task: str = ""
    """Task of fine-tuning; empty for pre-training."""
    loss: float | None = None
    """Validation loss in nats per target token: the last one of pre-training, the best one of fine-tuning."""
    layers: int | None = None
    width: int | None = None
    seq_length: int | None = None
    vocab_size: int | None = None
    parameters: int | None = None
    """All parameters, pruned ones included."""
    linear: int | None = None
    """Weights of the linear layers, pruned ones included."""
    level: float | None = None
    """Sparsity of the linear layers' masks, at the end of training."""
    pattern: str = ""
    algorithm: str = ""
    parameterization: str = ""
    lr: float | None = None
    init_std: float | None = None
    steps: int | None = None
    tokens: float | None = None
    """Target tokens, with those of the runs from which a run continues."""
    flops: float | None = None
    """Model FLOPs as the trainer counted them, with those of the runs from which a run continues."""
    step_seconds: float | None = None
    """Median time of a training step."""
    update_seconds: float | None = None
    """Median extra time of a step that swaps masks, against the steps around it."""
    commit: str = ""
    versions: str = ""
    ended: str = ""
    key: str = ""
    """SHA-256 of the job's inputs."""

    @property
    def id(self) -> tuple[str, str, str, int]:
        """The identity of the job."""
        return (self.job, self.variant, self.cell, self.seed)

    @property
    def density(self) -> float:
        """Share of the linear layers' weights that the masks keep."""
        return 1 - (self.level or 0.0)


@dataclass
class Evidence:
    """The rows of a study in the order of its plan, and a note about results that are left out."""

    rows: list[Row] = field(default_factory=list)
    note: str = ""

    def losses(self, job: str, variant: str = "", cell: str = "") -> pd.Series:
        """Validation loss by seed of the finished jobs in one cell."""
        return pd.Series({row.seed: row.loss for row in self.of(job, variant, cell)}, dtype=float).dropna()

    def of(self, job: str, variant: str = "", cell: str = "") -> list[Row]:
        """The finished rows of one cell."""
        wanted = (job, variant, cell)
        return [row for row in self.rows if row.state == DONE and (row.job, row.variant, row.cell) == wanted]


def read_evidence(results: Results, folders: Iterable[Path]) -> Evidence:
    """The rows of the study: those in the CSV files of ``folders``, then those of the workflows of ``results``.

    A finished job of a workflow replaces the row of a file. Raises UserError for a file that cannot be read.
    """
    rows = {row.id: row for folder in folders for row in read_rows(folder / ROWS)}
    for root in results.workflows:
        jobs = all_jobs(root)
        if {job.name for job in jobs} >= SIGN:
            planned = {entry["id"] for entry in (read_json(root / PLAN) or {}).get("jobs") or []}
            for job in jobs:
                if job.trains and not results.is_outdated(job.folder.path):
                    row = row_of(results, job)
                    if row.state == DONE or (job.id in planned and row.id not in rows):
                        rows[row.id] = row
    return Evidence(list(rows.values()), results.outdated_text())


def row_of(results: Results, job: JobRecord) -> Row:
    """The row of one job."""
    cell = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in job.cell.items() if key != "seed")
    row = Row(job.name, job.variant, cell, int(job.cell.get("seed", 0)))
    manifest, run = job.manifest(), results.run_at(job.folder.run_dir)
    if run is None or not job.folder.is_done(str(job.spec.get("key"))):
        reason = failure(job)
        row.state = NOT_RUN if reason is None else f"failed: {reason}"
        return row
    row.state, row.seed, row.task = DONE, int(job.cell.get("seed", run.seed)), run.task
    row.loss = run.best_validation if run.is_finetuning else run.final_validation
    row.lr = float(run.section("training").get("lr") or 0.0)
    row.steps = run.steps
    origins = [part for part in continued(results, run) if len(part.curve)]
    row.tokens = sum(part.last("tokens") for part in origins)
    row.flops = sum(part.last("flops") for part in origins)
    if run.pretraining is not None:
        describe(row, run.pretraining.config)
    if len(run.curve) > 1:
        times = step_times(run)
        row.step_seconds = median(times.values())
        if not run.is_finetuning:
            row.update_seconds = update_time(run.config, times)
    row.commit, row.key, row.ended = (str(manifest.get(name) or "") for name in ("git_commit", "key", "ended"))
    versions = manifest.get("versions") or {}
    row.versions = " ".join(f"{name} {versions[name]}" for name in ("spdf", "torch", "python") if name in versions)
    return row


def describe(row: Row, config: PretrainConfig) -> None:
    """Fill the columns about the model, its masks and its parameterization."""
    model, sparsity, training = config.model, config.sparsity, config.training
    row.layers, row.width = model.num_layers, model.hidden_size
    row.seq_length, row.vocab_size = model.seq_length, model.vocab_size
    row.parameters, row.linear = total_parameters(model), linear_parameters(model)
    row.level = real_sparsity(model, sparsity) if sparsity.level else 0.0
    row.pattern = sparsity.pattern + (" permuted" if sparsity.permute else "") if sparsity.level else ""
    row.algorithm = sparsity.algorithm if sparsity.level else ""
    row.parameterization, row.init_std = training.parameterization, training.init_std


def continued(results: Results, run: Run) -> Iterable[Run]:
    """The run, and before it the runs whose tokens and FLOPs its own counts do not contain."""
    yield run
    training = {} if run.is_finetuning else run.section("training")
    if training.get("init_from") and "schedule" in (training.get("reset") or []):
        origin = Path(training["init_from"])
        for place in (origin, origin.parent.parent):  # a run folder, or a checkpoint in one
            if (before := results.run_at(place)) is not None:
                yield from continued(results, before)
                return


def step_times(run: Run) -> dict[int, float]:
    """Seconds of each training step."""
    return dict(zip(run.curve.step, run.curve.seconds.diff().fillna(run.curve.seconds), strict=True))


def update_time(config: PretrainConfig, times: dict[int, float]) -> float | None:
    """Median over the mask updates of the extra seconds of their steps against the ten steps around each."""
    extra = []
    for step in update_steps(config.sparsity, max(times)):
        around = [times[near] for near in range(step - 5, step + 6) if near != step and near in times]
        if step in times and around:
            extra.append(times[step] - median(around))
    return median(extra) if extra else None


def read_rows(path: Path) -> list[Row]:
    """The rows in a CSV from ``to_csv``; none without the file. Raises UserError when it cannot be read."""
    if not path.is_file():
        return []
    converters: dict[str, Any] = {"int": int, "int | None": int, "float | None": float, "str": str}
    types = {column.name: converters[str(column.type)] for column in fields(Row)}
    try:
        lines = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        return [Row(**{name: types[name](text) for name, text in line.items() if text != ""}) for line in lines]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a table of an evidence study ({error}): move it away to start again") from None


def to_csv(rows: Iterable[Row]) -> str:
    """Rows as CSV, with numbers in full precision."""
    names = [column.name for column in fields(Row)]
    return pd.DataFrame(map(asdict, rows), columns=names, dtype=object).to_csv(index=False)
