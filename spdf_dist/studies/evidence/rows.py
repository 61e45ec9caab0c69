"""The cells of an evidence study: one row per size, variant, pre-training seed and mode of fine-tuning.

A study is a workflow with variants named SIZE-WHAT, including SIZE-dense. Its rows are written to ``evidence.csv``, and
its validation curves to ``evidence_curves.csv``. Existing rows of these files are kept unless the study has new results
for them. Therefore a study can be run in parts and on several machines.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from spdf_dist.accounting.flops import linears_share
from spdf_dist.accounting.parameters import total_parameters
from spdf_dist.config.errors import UserError
from spdf_dist.report.results import Results, outdated_text
from spdf_dist.report.runs import Run
from spdf_dist.report.tables import csv_text
from spdf_dist.workflow_folder import DONE as JOB_DONE
from spdf_dist.workflow_folder import (
    EVALUATE,
    FINETUNE,
    PRETRAIN,
    JobRecord,
    all_jobs,
    ancestors,
    failure,
)

ROWS, CURVES = "evidence.csv", "evidence_curves.csv"
DONE, PRETRAINED, NOT_RUN = "done", "pre-trained", "not run"
DENSE, UNTRAINED, SMALL, STOPPED = "dense", "untrained", "small", "stopped"
CONTROLS = (UNTRAINED, SMALL, STOPPED)
METRICS = ("bleu", "nist", "meteor", "rouge_l", "cider")


@dataclass
class Row:
    """One cell. Losses are in nats per target token. Scores have the scale of the official scripts."""

    size: str
    variant: str
    seed: int
    """Seed of pre-training."""
    finetuning: str = "dense"
    """`dense`, or `sparse` for fine-tuning that keeps the mask."""
    state: str = NOT_RUN
    """`done`, `pre-trained`, `not run`, or `failed: ` and the reason."""
    sparsity: float | None = None
    pattern: str = ""
    parameters: float | None = None
    nonzeros: float | None = None
    """Number of parameters that the mask keeps."""
    linears_share: float | None = None
    tokens: float | None = None
    tokens_per_parameter: float | None = None
    lr: float | None = None
    pretraining_flops: float | None = None
    pretraining_seconds: float | None = None
    """Time in training steps at their median speed."""
    pretraining_val_loss: float | None = None
    finetuning_lr: float | None = None
    finetuning_flops: float | None = None
    finetuning_seconds: float | None = None
    e2e_val_loss: float | None = None
    webnlg_val_loss: float | None = None
    bleu: float | None = None
    nist: float | None = None
    meteor: float | None = None
    rouge_l: float | None = None
    cider: float | None = None

    @property
    def key(self) -> tuple[str, str, int, str]:
        """The identity of the cell."""
        return (self.size, self.variant, self.seed, self.finetuning)


@dataclass(frozen=True)
class CurvePoint:
    """One validation of a pre-training run."""

    size: str
    variant: str
    seed: int
    step: int
    tokens: float
    flops: float
    seconds: float
    val_loss: float


@dataclass
class Evidence:
    """All rows and curves of a study, in reading order."""

    rows: list[Row] = field(default_factory=list)
    curves: list[CurvePoint] = field(default_factory=list)
    note: str = ""
    """A sentence with the results that are left out because an input was remade; may be empty."""

    @property
    def sizes(self) -> list[str]:
        """Sizes, smallest first. A size without any result, whose parameters are unknown, comes last."""
        largest = {row.size: 0.0 for row in self.rows}
        for row in self.rows:
            largest[row.size] = max(largest[row.size], row.parameters or 0.0)
        return sorted(largest, key=lambda size: (largest[size] or math.inf, size))

    def sparse_variants(self, size: str) -> list[str]:
        """Names of the sparse variants of a size."""
        names = [row.variant for row in self.rows if row.size == size]
        return [name for name in dict.fromkeys(names) if name not in (DENSE, *CONTROLS)]

    def values(self, size: str, variant: str, column: str, finetuning: str = "dense") -> list[tuple[int, float | None]]:
        """(seed, value) of one column."""
        return [
            (row.seed, getattr(row, column))
            for row in self.rows
            if (row.size, row.variant, row.finetuning) == (size, variant, finetuning)
        ]


def read_evidence(results: Results, kept: Iterable[Path]) -> Evidence:
    """The rows and curves of the study, merged into those in the folders ``kept``; empty without any.

    Raises UserError for a kept file that cannot be read.
    """
    rows: dict[tuple[str, str, int, str], Row] = {}
    points: dict[tuple[str, str, int], list[CurvePoint]] = {}
    for folder in kept:
        rows |= {row.key: row for row in read_table(folder / ROWS, Row)}
        old: dict[tuple[str, str, int], list[CurvePoint]] = {}
        for point in read_table(folder / CURVES, CurvePoint):
            old.setdefault((point.size, point.variant, point.seed), []).append(point)
        points |= old
    for root in results.workflows:
        jobs = [job for job in all_jobs(root) if not results.is_outdated(job.folder.path)]
        names = {job.variant for job in jobs}
        for job in jobs:
            size, _, what = job.variant.partition("-")
            if f"{size}-{DENSE}" not in names or not what:
                continue
            if job.kind == EVALUATE:
                row = row_of(results, job, size, what)
                if row.state == DONE or rows.get(row.key, row).state != DONE:
                    rows[row.key] = row
            elif job.kind == PRETRAIN:
                run = results.run_at(job.folder.run_dir)
                if run is not None and run.validation:
                    points[size, what, run.seed] = curve(run, size, what)
    for row in rows.values():
        fill_webnlg(results, row)
    order = {DENSE: 0, STOPPED: 2, SMALL: 3, UNTRAINED: 4}
    level: dict[tuple[str, str], float] = {}  # a cell without a result has no level of its own
    for row in rows.values():
        level[row.size, row.variant] = max(level.get((row.size, row.variant), 0.0), row.sparsity or 0.0)
    ordered = sorted(
        rows.values(),
        key=lambda r: (r.size, order.get(r.variant, 1), level[r.size, r.variant], r.variant, r.finetuning, r.seed),
    )
    return Evidence(ordered, [point for key in sorted(points) for point in points[key]], outdated_text(results))


def row_of(results: Results, job: JobRecord, size: str, what: str) -> Row:
    """The row of one evaluation."""
    below = list(ancestors(job))
    origin = next((parent for parent in below if parent.kind == PRETRAIN and parent.variant == job.variant), None)
    tuned = next((parent for parent in below if parent.kind == FINETUNE), None)
    score = next((s for s in results.scores if s.path.is_relative_to(job.folder.path.resolve())), None)
    row = Row(size, what, seed=int(job.cell.get("seed", 0)))
    if tuned and ((tuned.spec.get("config") or {}).get("finetune") or {}).get("keep_mask"):
        row.finetuning = "sparse"
    pretraining = results.run_at(origin.folder.run_dir) if origin else None
    if origin and pretraining and origin.manifest().get("status") == JOB_DONE:
        fill_pretraining(row, pretraining)
        row.state = PRETRAINED
    if job.manifest().get("status") == JOB_DONE and score is not None:
        fill_finetuning(row, score.run)
        for name, value in score.metrics.items():
            if name in METRICS:
                setattr(row, name, value)
        row.state = DONE
    else:
        reason = failure(job)
        if reason is not None:  # also for a pre-trained cell, because diverged fine-tuning is a result
            row.state = f"failed: {reason}"
    return row


def seconds_at_median_speed(run: Run, tokens: float) -> float:
    """Seconds for ``tokens`` at the run's median tokens/s, so that pauses do not count; 0 without a speed."""
    return tokens / run.median_speed if run.median_speed else 0.0


def fill_pretraining(row: Row, run: Run) -> None:
    """Fill the columns of pre-training from its run."""
    config = run.config
    row.seed = run.seed
    row.sparsity, row.pattern = config.sparsity.level, config.sparsity.pattern if config.sparsity.level else ""
    row.parameters = total_parameters(config.model)
    row.nonzeros = total_parameters(config.model, config.sparsity)
    row.linears_share = linears_share(config.model)
    row.tokens = run.tokens[-1] if run.tokens else 0.0
    row.tokens_per_parameter = row.tokens / row.parameters
    row.lr = config.training.lr if run.tokens else None
    row.pretraining_flops = run.flops[-1] if run.flops else 0.0
    row.pretraining_seconds = seconds_at_median_speed(run, row.tokens)
    row.pretraining_val_loss = run.final_validation


def fill_finetuning(row: Row, run: Run) -> None:
    """Fill the columns of fine-tuning from the selected run."""
    row.finetuning_lr = float((run.tree.get("training") or {}).get("lr") or 0.0)
    row.finetuning_flops = run.flops[-1] if run.flops else None
    row.finetuning_seconds = seconds_at_median_speed(run, run.tokens[-1]) if run.tokens else None
    row.e2e_val_loss = run.best_validation


def fill_webnlg(results: Results, row: Row) -> None:
    """Fill the best validation loss of the cell's fine-tuning on WebNLG, if the study has it."""
    losses = [
        run.best_validation
        for run in results.finetuning
        if run.task == "webnlg"
        and run.label == f"{row.size}-{row.variant}"
        and run.parent is not None
        and run.parent.seed == row.seed
        and run.best_validation is not None
        and row.finetuning == "dense"
    ]
    if losses:
        row.webnlg_val_loss = min(losses)


def curve(run: Run, size: str, what: str) -> list[CurvePoint]:
    """The validation curve of a run."""
    return [
        CurvePoint(
            size,
            what,
            run.seed,
            step,
            run.at_step(step, run.tokens) or 0.0,
            run.at_step(step, run.flops) or 0.0,
            seconds_at_median_speed(run, run.at_step(step, run.tokens) or 0.0),
            loss,
        )
        for step, loss in run.validation
    ]


def read_table(path: Path, kind: type[Any]) -> list[Any]:
    """The records of a CSV from ``to_csv``; empty without the file. Raises UserError when it cannot be read."""
    if not path.is_file():
        return []
    converters = {"int": int, "float": float, "float | None": float, "str": str}
    types = {column.name: converters[str(column.type)] for column in fields(kind)}
    records = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                records.append(kind(**{name: types[name](text) for name, text in line.items() if text != ""}))
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a table of an evidence study ({error}): move it away to begin anew") from None
    return records


def to_csv(records: Iterable[Any], kind: type[Any]) -> str:
    """Records as CSV, with numbers in full precision."""
    names = [column.name for column in fields(kind)]
    filled = [["" if value is None else value for value in asdict(record).values()] for record in records]
    return csv_text([names, *filled])
