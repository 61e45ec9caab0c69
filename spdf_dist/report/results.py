"""Finds the runs and scores below the folders of the report, and the run of each score.

Run folders are recognised by their content. The commands record the checkpoint of a score and the origin of a
fine-tuning run (``spdf_dist.evaluation.provenance``, ``spdf_dist.checkpoint.lineage``). Scores without such a record
are listed as unattributed. A workflow's folder also provides names, selections, and the states of jobs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spdf_dist.accounting.parameters import total_parameters
from spdf_dist.checkpoint.lineage import RUN_KINDS
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import FinetuneConfig
from spdf_dist.data.tasks import all_tasks
from spdf_dist.report.runs import Run, is_run, read_run, typed_config
from spdf_dist.report.scores import TEXT, Score, ScoreGroup, group_scores, task_title
from spdf_dist.report.speedups import is_gemm_bench
from spdf_dist.report.variants import Variant, difference_names, group_by, group_variants, name_variants
from spdf_dist.scoring.metrics import LOSSES
from spdf_dist.workflow_folder import REPORT, candidates, job_folder, job_of, outdated, read_json, selections

PRETRAIN, FINETUNE = RUN_KINDS
NOT_SEARCHED = ("checkpoints", "tensorboard", "report", "logs", "tokenizer")
"""Names of folders that never contain results."""
LARGEST_RESULT = 16 << 20
SYNTHETIC_METRICS = ("slot_accuracy",)
"""Metrics of synthetic data, which do not belong to a task."""


@dataclass
class Results:
    """The runs, scores and measurements of a report."""

    folders: list[Path]
    runs: list[Run] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    unattributed: list[dict[str, Any]] = field(default_factory=list)
    """Scores without a record of their checkpoint: ``path``, ``task`` and ``metrics``. They are not compared."""
    workflows: list[Path] = field(default_factory=list)
    """Workflow folders among the given folders or above them."""
    bench: dict[str, Any] = field(default_factory=dict)
    """Output of ``spdf bench gemm --json``."""
    damaged: dict[Path, str] = field(default_factory=dict)
    """Run folders that could not be read and are left out, each with the reason."""
    outdated: dict[Path, dict[str, str]] = field(default_factory=dict)
    """By workflow: the jobs that are left out because an input was remade later, each with that input."""
    compared: set[Path] = field(default_factory=set)
    """Folders of jobs whose results a `select` job compares. They are of validation data."""
    recorded: dict[str, Run] = field(default_factory=dict)
    """By digest of their checkpoint: runs that are known only from the records of results."""

    @property
    def pretraining(self) -> list[Run]:
        """Pre-training runs without rejected candidates."""
        return [run for run in self.runs if not run.is_finetuning and not run.rejected]

    @property
    def finetuning(self) -> list[Run]:
        """Fine-tuning runs without rejected candidates."""
        return [run for run in self.runs if run.is_finetuning and not run.rejected]

    @property
    def synthetic(self) -> bool:
        """Whether any score or run is recorded as one of synthetic data."""
        return any(score.synthetic for score in self.scores) or any(run.synthetic for run in self.runs)

    @property
    def variants(self) -> list[str]:
        """Variant names in reading order: untrained, dense, then by increasing sparsity; unknown models last."""
        order: dict[str, tuple[int, float]] = {}
        for run in (*self.pretraining, *self.finetuning, *(score.run for score in self.scores)):
            level = run.sparsity.level if run.sparsity else 0.0
            order.setdefault(run.variant, (0 if run.untrained else 1 if run.model else 2, level))
        return sorted(order, key=lambda name: order[name])

    def ordered(self, runs: Iterable[Run]) -> list[Run]:
        """Runs sorted by size, then variant in reading order, then seed."""
        place = {name: k for k, name in enumerate(self.variants)}
        sizes = {run.size(): total_parameters(run.model) if run.model else 0 for run in self.runs}
        return sorted(runs, key=lambda run: (sizes[run.size()], place[run.variant], run.config.seed))

    @property
    def sizes(self) -> list[str]:
        """The model sizes of the pre-training runs, largest first."""
        counts = {run.size(): total_parameters(run.model) for run in self.pretraining if run.model}
        return sorted(counts, key=lambda size: -counts[size])

    def name_of(self, run: Run) -> str:
        """The variant, with the model size where the report has several sizes."""
        return f"{run.variant}, {run.size()}" if len(self.sizes) > 1 else run.variant

    def pretrained_variants(self) -> list[Variant]:
        """The variants of the pre-training runs, sorted."""
        return group_variants(self.ordered(self.pretraining), self.finetuning)

    def score_groups(self) -> list[ScoreGroup]:
        """The scores by task, split and size, with variants in reading order."""
        return group_scores(self.scores, self.variants)

    def outdated_jobs(self, root: Path) -> dict[str, str]:
        """The outdated jobs of a workflow."""
        if root.resolve() not in self.outdated:
            self.outdated[root.resolve()] = outdated(root)
        return self.outdated[root.resolve()]

    def is_outdated(self, path: Path) -> bool:
        """Whether ``path`` belongs to a job with an input that was remade later."""
        job = job_of(path)
        return job is not None and job.id in self.outdated_jobs(job.root)

    def run_at(self, folder: Path) -> Run | None:
        """The run in ``folder``; None if it is not among the results."""
        place = folder.resolve()
        return next((run for run in self.runs if run.place == place), None)

    def run_of(self, digest: Any) -> Run | None:
        """The run with a checkpoint of this sha256; None if it is not among the results."""
        return next((run for run in self.runs if digest in run.checkpoint_digests), None)

    def outdated_text(self) -> str:
        """A sentence with the jobs that are left out because an input was remade later; empty without any."""
        found = [(job_id, cause) for jobs in self.outdated.values() for job_id, cause in jobs.items()]
        named = [f"{job_id} ({cause})" for job_id, cause in found if job_id.partition("/")[0] != REPORT]
        return f"Left out, because an input has changed since: {'; '.join(named)}." if named else ""


def read_results(folders: Sequence[Path], names: Mapping[Path, str] | None = None) -> Results:
    """Read every run and score below ``folders``.

    Args:
        folders: run folders, workflow folders, folders of either, and JSON files.
        names: the user's names of the runs in folders.

    Raises:
        UserError: a folder does not exist.
    """
    results = Results(list(folders))
    files: list[Path] = []
    for root in folders:
        if root.is_file():
            files.append(root)
            continue
        if not root.is_dir():
            raise UserError(f"{root}: no such folder")
        for here, below, names_here in os.walk(root):
            below[:] = sorted(name for name in below if name not in NOT_SEARCHED and not name.startswith("."))
            add_run(results, Path(here))
            files += [Path(here, name) for name in sorted(names_here) if name.endswith(".json")]
        job = job_of(root)
        workflow = job.root if job else root
        if (workflow / "jobs").is_dir() and workflow not in results.workflows:
            results.workflows.append(workflow)
    jobs = [job_folder(root, job_id) for root in results.workflows for job_id in candidates(root)]
    results.compared = {job.path.resolve() for job in jobs}
    found = {path: read_result(path) for path in dict.fromkeys(path.resolve() for path in files)}
    contents = {path: content for path, content in found.items() if content}
    for content in contents.values():  # the runs that an evaluation names are added too
        for entry in scored_runs(content):
            add_run(results, folder_of(entry))
    for run in results.runs:
        run.parent = origin_of(results, run)
    parents = dict.fromkeys(run.parent for run in results.runs if run.parent)
    results.runs += [run for run in parents if run not in results.runs]
    note_workflows(results, names or {})
    for path, content in contents.items():
        try:
            add_score(results, path, content)
        except UserError as error:  # a config in its record
            results.damaged[path] = f"scores {path}: left out: {error}"
    name_variants([*results.runs, *(score.run for score in results.scores if score.run not in results.runs)])
    name_decoding(results.scores)
    return results


def add_run(results: Results, folder: Path) -> None:
    """Add the run in ``folder``, if there is one and it is not among the results yet.

    A run that cannot be read is added to ``damaged``, so that the others are still reported.
    """
    place = folder.resolve()
    if not is_run(folder) or place in results.damaged or results.run_at(folder) or results.is_outdated(folder):
        return
    try:
        results.runs.append(read_run(folder))
    except UserError as error:
        results.damaged[place] = f"run {folder}: left out: {error}"


def scored_runs(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs in the record of an evaluation, newest first, as entries of a lineage; empty without a record."""
    try:
        lineage = content["provenance"]["checkpoint"]["lineage"]
        return [entry for entry in lineage if entry["kind"] in RUN_KINDS and entry["config"]]
    except (KeyError, TypeError):
        return []


def folder_of(entry: Mapping[str, Any]) -> Path:
    """The run folder of a checkpoint in a lineage. Where its path is unknown, the folder does not exist."""
    return Path(str(entry.get("path") or "unknown/checkpoints/unknown")).parent.parent


def recorded_run(results: Results, entries: Sequence[dict[str, Any]]) -> Run | None:
    """The run of the first entry: that with its checkpoint or folder, else one from the record; None without any."""
    if not entries:
        return None
    entry, *older = entries
    folder, digest = folder_of(entry), str(entry.get("manifest_sha256"))
    found = results.run_of(digest) or results.run_at(folder)
    if found is not None and found.is_finetuning == (entry["kind"] == FINETUNE):
        return found
    if digest not in results.recorded:
        synthetic = entry.get("synthetic") is True
        run = Run(folder, typed_config(entry["config"]), best_loss=entry.get("best_val_loss"), synthetic=synthetic)
        run.parent = recorded_run(results, older)
        results.recorded[digest] = run
    return results.recorded[digest]


def origin_of(results: Results, run: Run) -> Run | None:
    """The pre-training run that a fine-tuning run records as its origin; None without one."""
    if not isinstance(run.config, FinetuneConfig):
        return None
    if entries := [entry for entry in run.lineage if entry["kind"] == PRETRAIN and entry["config"]]:
        return recorded_run(results, entries)
    # Without a recorded lineage: the config names the checkpoint, and a densified checkpoint names its source.
    checkpoint = Path(run.config.finetune.checkpoint)
    for place in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        add_run(results, place)
        found = results.run_at(place)
        if found is not None and not found.is_finetuning:
            return found
    source = (read_json(checkpoint / "manifest.json") or {}).get("source") or {}
    return results.run_of(source.get("manifest_sha256"))


def note_workflows(results: Results, names: Mapping[Path, str]) -> None:
    """Give runs the names of their jobs or those of the user, and mark rejected candidates of selections."""
    parents = {run.parent for run in results.runs}
    chosen = {path: entry for root in results.workflows for path, entry in selections(root).items()}
    for run in results.runs:
        job = job_of(run.place)
        run.label = job.variant if job else ""
        if run.place in chosen:
            run.selected = frozenset(chosen[run.place].keys)
            run.rejected = chosen[run.place].rejected and run not in parents
        for folder, name in names.items():
            if run.place.is_relative_to(folder.resolve()):
                run.label = name


def read_result(path: Path) -> dict[str, Any]:
    """The content of a JSON file with a schema version; empty for any other file."""
    content = (read_json(path) if path.stat().st_size <= LARGEST_RESULT else None) or {}
    return content if "schema_version" in content else {}


def known_metrics(content: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics in a result of ``spdf evaluate`` or ``spdf perplexity``, in the order of the tasks' metrics."""
    names = [metric.name for task in all_tasks() for metric in task.metrics]
    names += [*SYNTHETIC_METRICS, *(name for name in LOSSES if name.startswith("perplexity"))]
    found = content.get("scores", content)
    values = {name: found[name] for name in names if isinstance(found, dict) and name in found}
    return {name: value for name, value in values.items() if value is None or isinstance(value, int | float)}


def add_score(results: Results, path: Path, content: dict[str, Any]) -> None:
    """Add the scores or kernel measurements of a result. Any other result is ignored."""
    if is_gemm_bench(content):
        results.bench = content
        return
    metrics, job = known_metrics(content), job_of(path)
    if not metrics or results.is_outdated(path) or (job and job.folder.path.resolve() in results.compared):
        return
    run, task = recorded_run(results, scored_runs(content)), str(content.get("task") or TEXT)
    if run is None:
        results.unattributed.append({"path": path, "task": task_title(task), "metrics": metrics})
        return
    if run not in results.runs and job is not None:
        run.label = job.variant
    record = content["provenance"]
    split, settings = str(record.get("split") or ""), dict(record.get("settings") or {})
    score = Score(path, task, metrics, run, split, bool(record.get("synthetic")) or run.synthetic, settings)
    same = (other for other in results.scores if other.run is run and (other.task, other.split) == (task, split))
    if not run.rejected and all((other.metrics, other.settings) != (metrics, settings) for other in same):
        results.scores.append(score)


def name_decoding(scores: Sequence[Score]) -> None:
    """Set the suffixes of scores of one variant that differ in their decoding settings."""
    for group in group_by(scores, lambda s: (s.task, s.split, s.run.size(), s.run.title())).values():
        settings = [{key: value for key, value in score.settings.items() if key != "seed"} for score in group]
        for score, difference in zip(group, difference_names(settings), strict=True):
            score.suffix = difference
