"""Everything under the folders given to the report: runs, scores, and which belongs to which variant.

Run folders are known by their content. In a workflow folder the variant is the one of the job that made the run, and
what a score belongs to follows from what its job rests on; elsewhere both are read from the configs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spdf_dist.config.errors import UserError
from spdf_dist.config.load import flatten
from spdf_dist.report.bench import is_gemm_bench
from spdf_dist.report.jobs import (
    WorkflowJob,
    all_jobs,
    ancestors,
    chosen_by,
    chosen_over,
    job_of,
    made_from_other_inputs,
    needs_of,
    read_object,
    split_named,
    trained_by,
)
from spdf_dist.report.published import paper_cell
from spdf_dist.report.runs import Run, is_run, read_run
from spdf_dist.report.scores import METRIC_NAMES, Score

NOT_SEARCHED = ("checkpoints", "tensorboard", "report", "logs", "tokenizer")
NOT_RESULTS = (
    "manifest.json",
    "job.json",
    "plan.json",
    "choice.json",
    "execution.json",
    "finetune.json",
    "result.json",
)
LARGEST_RESULT = 16 << 20
EVIDENCE_ROWS = "evidence.csv"


@dataclass
class Study:
    """What the report is about."""

    folders: list[Path]
    runs: list[Run] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    workflows: list[Path] = field(default_factory=list)
    """Workflow folders that the given folders are or lie in."""
    bench: dict[str, Any] = field(default_factory=dict)
    """Output of ``spdf bench gemm --json``."""

    kept: list[Path] = field(default_factory=list)
    """Folders with the rows of an evidence study from before."""

    candidates: dict[Path, set[str]] = field(default_factory=dict)
    """By workflow: the jobs whose results a `select` job compares."""

    damaged: dict[Path, str] = field(default_factory=dict)
    """Run folders that could not be read and are left out, with a line that says why."""

    outdated: dict[Path, dict[str, str]] = field(default_factory=dict)
    """By workflow: the jobs made from inputs that were made anew since, and which those are. They are left out."""

    def is_outdated(self, job: WorkflowJob | None) -> bool:
        """Whether a job's results belong to inputs that are no longer there."""
        if job is None:
            return False
        root = job.root.resolve()
        if root not in self.outdated:
            self.outdated[root] = made_from_other_inputs(root)
        return job.id in self.outdated[root]

    @property
    def pretraining(self) -> list[Run]:
        """Pre-training runs but for those of a sweep."""
        return [run for run in self.runs if not run.is_finetuning and not run.rejected]

    @property
    def finetuning(self) -> list[Run]:
        """Fine-tuning runs but for those that a selection left."""
        return [run for run in self.runs if run.is_finetuning and not run.rejected]

    @property
    def synthetic(self) -> bool:
        """Whether any data in it was generated."""
        return any(score.synthetic for score in self.scores) or any(run.synthetic for run in self.runs)

    @property
    def variants(self) -> list[str]:
        """Variant names in the order of reading: untrained first, then by density, dense first."""
        order: dict[str, tuple[int, float]] = {}
        for run in (*self.pretraining, *self.finetuning):
            level = run.sparsity.level if run.sparsity else 0.0
            order.setdefault(run.variant(), (0 if run.untrained else 1, level))
        for score in self.scores:
            order.setdefault(score.variant, (2, 0.0))
        return sorted(order, key=lambda name: order[name])


def is_synthetic(tree: Any) -> bool:
    """Whether a config or result names generated data: a path or a flag with 'synthetic' in it."""
    if isinstance(tree, dict):
        return any((key == "synthetic" and value is True) or is_synthetic(value) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return any(is_synthetic(item) for item in tree)
    return isinstance(tree, str) and "synthetic" in tree.lower()


def walk(root: Path) -> Iterator[Path]:
    """``root`` and the folders below it, in order, without those that hold no results."""
    for here, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in NOT_SEARCHED and not name.startswith("."))
        yield Path(here)


def read_study(folders: Sequence[Path]) -> Study:
    """Read every run and score below ``folders``.

    Raises UserError for a folder that does not exist or holds neither.
    """
    study = Study(list(folders))
    results: list[Path] = []
    for root in folders:
        if root.is_file():
            results.append(root)
            continue
        if not root.is_dir():
            raise UserError(f"{root}: no such folder")
        for folder in walk(root):
            add_run(study, folder)
            results += [path for path in sorted(folder.glob("*.json")) if path.name not in NOT_RESULTS]
        job = job_of(root)
        for parent in ancestors(job) if job else ():  # an evaluation brings the runs behind it
            add_run(study, parent.folder / "run")
        note_workflow(study, root)
        if (root / EVIDENCE_ROWS).is_file():
            study.kept.append(root)
    link_parents(study)
    leave_rejected(study)
    for path in dict.fromkeys(path.resolve() for path in results):
        read_result(study, path)
    if not (study.runs or study.scores or study.bench or study.kept):
        if study.damaged:
            raise UserError("; ".join(study.damaged.values()))
        places = ", ".join(map(str, folders))
        raise UserError(f"{places}: no run (config.yaml with metrics.jsonl) and no scores there or below")
    return study


def add_run(study: Study, folder: Path) -> None:
    """Read the run in ``folder``, if there is one and it is not in the study yet."""
    if (
        is_run(folder)
        and all(run.path.resolve() != folder.resolve() for run in study.runs)
        and not study.is_outdated(job_of(folder))
    ):
        run = read_or_leave(study, folder)
        if run is not None:
            study.runs.append(with_variant(run))


def read_or_leave(study: Study, folder: Path) -> Run | None:
    """The run in ``folder``; None, with a line in ``damaged``, for one that cannot be read: the others are reported."""
    if folder.resolve() in study.damaged:
        return None
    try:
        return read_run(folder)
    except UserError as error:
        study.damaged[folder.resolve()] = f"run {folder}: left out: {error}"
        return None


def note_workflow(study: Study, folder: Path) -> None:
    """Remember the workflow that ``folder`` is or lies in."""
    job = job_of(folder)
    root = job.root if job else folder
    if (root / "jobs").is_dir() and root not in study.workflows:
        study.workflows.append(root)


def with_variant(run: Run) -> Run:
    """The run, with its variant's name and whether its data are generated, where a workflow says so."""
    job = job_of(run.path)
    if job is not None:
        run.name = job.variant
        run.synthetic = any(parent.kind.startswith("synthetic") for parent in ancestors(job))
    run.synthetic = run.synthetic or is_synthetic(run.tree)
    return run


def link_parents(study: Study) -> None:
    """Give each fine-tuning run the pre-training run that it started from, in the report or only on disk."""
    origins = {run.path.resolve(): run for run in study.pretraining}
    for run in study.finetuning:
        for folder in origin_folders(run):
            if folder not in origins and is_run(folder):
                origin = read_or_leave(study, folder)
                if origin is not None:
                    origins[folder] = with_variant(origin)
            if folder in origins:
                run.parent = origins[folder]
                run.name = run.name or run.parent.name
                break


def leave_rejected(study: Study) -> None:
    """Mark the runs that a `select` job left, and those from which nothing went on but a number.

    The candidates are the training runs behind what the job needs, be that their validation scores or the runs.
    """
    parents = {run.parent.path.resolve() for run in study.runs if run.parent is not None}
    by_path = {run.path.resolve(): run for run in study.runs}
    for root in study.workflows:
        jobs = all_jobs(root)
        for select in (job for job in jobs if job.kind == "select" and not study.is_outdated(job)):
            chosen = chosen_by(select)
            if chosen is None:
                continue
            fresh = begun_anew(select, jobs, by_path)
            for need in needs_of(select):
                job = trained_by(need)
                run = by_path.get((job.folder / "run").resolve()) if job else None
                if run is not None:
                    left = fresh or need.id != chosen
                    run.rejected = left if run.is_finetuning else run.path.resolve() not in parents


def begun_anew(select: WorkflowJob, jobs: list[WorkflowJob], runs: dict[Path, Run]) -> bool:
    """Whether only new fine-tuning runs went on from a choice: then its candidate is not one of them."""
    after = [job for job in jobs if select.id in job.needs]
    return (
        bool(after)
        and all(job.kind == "finetune" for job in after)
        and any((job.folder / "run").resolve() in runs for job in after)
    )


def origin_folders(run: Run) -> Iterator[Path]:
    """Where the run may have started from: what its checkpoint lies in, then what its job rests on."""
    checkpoint = str((run.tree.get("finetune") or {}).get("checkpoint") or "")
    if checkpoint:
        for place in (Path(checkpoint), run.path / checkpoint):
            yield from (folder.resolve() for folder in (place, place.parent, place.parent.parent))
    job = job_of(run.path)
    for parent in ancestors(job) if job else ():
        if parent.kind == "pretrain":
            yield (parent.folder / "run").resolve()


def read_result(study: Study, path: Path) -> None:
    """Take a JSON file in when it holds scores or kernel measurements; any other is left alone."""
    if path.stat().st_size > LARGEST_RESULT:
        return
    content = read_object(path)
    if "schema_version" not in content:
        return
    if is_gemm_bench(content):
        study.bench = content
        return
    metrics = content.get("scores", content.get("metrics", content))
    if not isinstance(metrics, dict):
        return
    known = {
        name: None if metrics[name] is None else float(metrics[name])
        for name in METRIC_NAMES
        if name in metrics and (metrics[name] is None or isinstance(metrics[name], int | float))
    }
    if not known:
        return
    job = job_of(path)
    if study.is_outdated(job) or (job is not None and is_candidate(study, job)):
        return
    run = owner(study, path, job)
    if run is not None and run.rejected:
        return
    task = str(content.get("task") or (run.task if run else "") or "text")
    origin = run.pretraining if run else None
    generated = job is not None and any(parent.kind.startswith("synthetic") for parent in ancestors(job))
    study.scores.append(
        Score(
            path=path,
            task=task,
            variant=(job.variant if job else "") or (run.variant() if run else path.parent.name),
            size=run.size() if run else "",
            seed=run.seed if run else 0,
            metrics=known,
            split=split_of(content, job, task),
            synthetic=generated or is_synthetic(content) or (run is not None and run.synthetic),
            settings=settings_of(run, chosen_over(job) if job else ()) if run else "",
            keep_mask=run is not None and run.keep_mask,
            validation_loss=run.best_validation if run else None,
            pretraining_seed=origin.seed if origin else None,
            model=paper_cell(origin.config) if origin and not origin.unfinished else "",
            level=run.sparsity.level if run and run.sparsity else None,
        )
    )


def outdated_text(study: Study) -> str:
    """Which jobs are left out because what they rest on was made anew; empty without any."""
    named = [
        f"{job_id} ({cause} was made anew since)"
        for jobs in study.outdated.values()
        for job_id, cause in jobs.items()
        if job_id.partition("/")[0] != "report"
    ]
    return "Left out, as made from other inputs: " + "; ".join(named) + "." if named else ""


def is_candidate(study: Study, job: WorkflowJob) -> bool:
    """Whether a `select` job chooses by this job's scores: they are of validation data, not results."""
    if job.root not in study.candidates:
        selects = (other for other in all_jobs(job.root) if other.kind == "select")
        study.candidates[job.root] = {need for select in selects for need in select.needs}
    return job.id in study.candidates[job.root]


def split_of(content: dict[str, Any], job: WorkflowJob | None, task: str) -> str:
    """The split that was scored, in the words of tables: empty for the test set, 'seen', 'all', 'validation', ....

    By the file, else by the job that wrote the outputs, else by what the evaluation's name says beyond its kind.
    """
    named = str(content.get("split") or (split_named(job) if job else None) or "")
    if named:
        words = {"test": "all" if task == "webnlg" else "", "test_seen": "seen", "test_unseen": "unseen"}
        return words.get(named, named)
    usual = ("evaluate", "score", "scores", "perplexity", "test", task)
    return " ".join(word for word in re.split("[-_]", job.name) if word not in usual) if job else ""


def owner(study: Study, path: Path, job: WorkflowJob | None) -> Run | None:
    """The run that made what was scored: the one whose folder holds the file, or the nearest that its job rests on."""
    known = {run.path.resolve(): run for run in study.runs}
    for folder in path.parents:
        if folder in known:
            return known[folder]
    for parent in ancestors(job) if job else ():
        if parent.kind in ("finetune", "pretrain"):
            return known.get((parent.folder / "run").resolve())
    return None


def settings_of(run: Run, chosen: Iterable[str]) -> str:
    """A run's settings but for its seed, its places and the keys ``chosen``, as one line.

    What was chosen by validation, for each seed by itself perhaps, has had its selection: seeds that differ in it are
    repetitions of one procedure.
    """
    flat = flatten({key: run.tree.get(key) or {} for key in ("finetune", "training")})
    for key in ("finetune.checkpoint", *chosen):
        flat.pop(key, None)
    return " ".join(f"{key}={value}" for key, value in sorted(flat.items()))
