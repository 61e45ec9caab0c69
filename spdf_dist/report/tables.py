"""The report's own tables: what each variant cost and what it scored. Every table also becomes a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from spdf_dist.accounting.flops import linears_share
from spdf_dist.accounting.parameters import linear_parameters, total_parameters
from spdf_dist.report.figures import power_label, time_unit
from spdf_dist.report.paired import by_seed, minus, paired
from spdf_dist.report.runs import Run, kept_linear_weights, short_count
from spdf_dist.report.scores import METRIC_NAMES, TASK_NAMES, Score, estimate, metric_name, selected
from spdf_dist.report.study import Study

MINUS = "−"
NOT_RUN = "not run"


@dataclass
class Table:
    """A table: text cells; a line break in a cell sets its second line smaller."""

    name: str
    """File name of its CSV."""
    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    synthetic: bool = False
    labels: int = 1
    """Leading columns that are labels."""
    marks: set[tuple[int, int]] = field(default_factory=set)
    """Cells (row, column) to set apart: figures that differ from the printed ones."""

    def csv(self) -> str:
        """The table as CSV; the two lines of a cell are joined by a semicolon, minus signs are ASCII."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.header + (["data"] if self.synthetic else []))
        for row in self.rows:
            cells = [cell.replace("\n", "; ").replace(MINUS, "-") for cell in row]
            writer.writerow(cells + (["synthetic"] if self.synthetic else []))
        return buffer.getvalue()


def signed(value: float, digits: int = 3) -> str:
    """+0.012 or −0.012."""
    text = f"{value:+.{digits}f}"
    return MINUS + text[1:] if text[0] == "-" else text


def duration(seconds: float) -> str:
    """Such as '3.2 hours'."""
    scale, unit = time_unit(seconds)
    return f"{seconds / scale:.1f} {unit}"


def by_variant(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs by (size, variant), in the order given."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.size(), run.variant()), []).append(run)
    return groups


def finished(runs: Sequence[Run]) -> list[Run]:
    """The runs that are compared: those that are whole; all, where none is."""
    return [run for run in runs if not run.unfinished] or list(runs)


def dense_baselines(groups: Mapping[tuple[str, str], Sequence[Run]]) -> dict[str, str]:
    """By size, the name of the dense variant that the others are compared with.

    That called dense, where several are, such as one stopped early; without such a name the one that spent most.
    """
    baselines: dict[str, str] = {}
    for size in dict.fromkeys(size for size, _ in groups):
        dense = {name: runs for (other, name), runs in groups.items() if other == size and is_dense(runs[0])}
        if dense:
            baselines[size] = named_dense(dense) or max(dense, key=lambda name: mean_flops(dense[name]))
    return baselines


def ordered(study: Study, runs: Sequence[Run]) -> list[Run]:
    """Runs by size, then variant (untrained, dense, sparser and sparser), then seed."""
    place = {name: k for k, name in enumerate(study.variants)}

    def key(run: Run) -> tuple[int, int, int]:
        return (total_parameters(run.model) if run.model else 0, place.get(run.variant(), len(place)), run.seed)

    return sorted(runs, key=key)


def summary_table(study: Study) -> Table:
    """One row a variant: model, budget, validation loss, FLOPs, speed and what densifying woke."""
    groups = by_variant(ordered(study, study.pretraining))
    tuned = by_variant(study.finetuning)
    baselines = dense_baselines(groups)
    rows = []
    for (size, variant), members in groups.items():
        runs = finished(members)
        first = runs[0]
        base = finished(groups[size, baselines[size]]) if size in baselines else []
        compared = bool(base) and variant != baselines[size] and not first.unfinished and not base[0].unfinished
        model = first.config.model
        kept = kept_linear_weights(first) or 0
        loss = estimate([run.final_validation for run in runs])
        loss_text = loss.text() if loss else "–"
        base_loss, base_flops = (mean_final(base), mean_flops(base)) if compared else (None, None)
        if loss and base_loss is not None and not first.untrained:
            loss_text += f"\n{signed(loss.mean - base_loss)} to dense"
        flops = mean_flops(runs)
        flops_text = power_label(flops) if flops else "0"
        if base_flops and flops:
            flops_text += f"\n{flops / base_flops:.3f}x dense"
        speeds = [run.median_speed for run in runs if run.median_speed]
        seconds = [run.seconds[-1] for run in runs if run.seconds]
        rows.append(
            [
                variant + unfinished_text(members),
                size,
                f"{short_count(kept)}\n{kept / linear_parameters(model):.0%} kept",
                f"{linears_share(model):.0%}",
                short_count(max((run.tokens[-1] for run in runs if run.tokens), default=0)),
                loss_text,
                flops_text,
                (short_count(mean(speeds)) + execution_text(first)) if speeds else "–",
                duration(mean(seconds)) if seconds else "–",
                finetuning_text(tuned.get((size, variant), [])),
                str(len(members)),
            ]
        )
    return Table(
        "summary",
        "What each variant cost",
        [
            "variant",
            "parameters",
            "linear weights",
            "linears' share of dense FLOPs",
            "tokens",
            "validation loss",
            "pre-training FLOPs",
            "tokens/s",
            "time in steps",
            "fine-tuned, validation loss",
            "runs",
        ],
        rows,
        "Validation loss in nats a token after the last step; with several seeds mean ± sample deviation (number). "
        "FLOPs are model FLOPs as the paper counts them, without recomputation or multiplied zeros. "
        "Unfinished runs are neither averaged with finished ones nor compared.",
        study.synthetic,
    )


def unfinished_text(runs: Sequence[Run]) -> str:
    """Which runs of a variant are not whole, as a second line; nothing when all are."""
    states = [run.unfinished for run in runs if run.unfinished]
    if not states:
        return ""
    return f"\n{states[0]}" if len(runs) == 1 else f"\n{len(states)} of {len(runs)} runs unfinished"


def execution_text(run: Run) -> str:
    """How the sparse layers ran, as a second line; nothing for a dense model."""
    if run.sparsity is None or run.sparsity.level == 0:
        return ""
    chosen = sorted(set((run.execution.get("layers") or {}).values())) or [run.sparsity.execution]
    return f"\n{' and '.join(chosen)}"


def finetuning_text(runs: Sequence[Run]) -> str:
    """Best validation loss of the fine-tuning runs, task by task, and how many weights densifying reactivated."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        finetune = run.tree["finetune"]
        name = str(finetune.get("task", "")) + (", sparse" if finetune.get("keep_mask") else "")
        groups.setdefault(name, []).append(run)
    lines = []
    for name, members in groups.items():
        best = estimate([run.finetune.get("best_val_loss", run.best_validation) for run in members])
        if best is not None:
            lines.append((f"{name}: " if len(groups) > 1 else "") + best.text())
    woken = max((int(run.finetune.get("reactivated") or 0) for run in runs), default=0)
    if woken and lines:
        norm = estimate([run.finetune.get("reactivated_norm") for run in runs])
        lines.append(f"{short_count(woken)} reactivated" + (f", norm {norm.mean:.3g}" if norm else ""))
    return "\n".join(lines) or "–"


def is_dense(run: Run) -> bool:
    """Whether it is the dense baseline."""
    return run.sparsity is not None and run.sparsity.level == 0 and not run.untrained


def mean_final(runs: Sequence[Run]) -> float | None:
    """Mean final validation loss."""
    value = estimate([run.final_validation for run in runs])
    return value.mean if value else None


def mean_flops(runs: Sequence[Run]) -> float:
    """Mean FLOPs spent."""
    return mean([run.flops[-1] if run.flops else 0.0 for run in runs])


def score_groups(study: Study) -> dict[tuple[str, str, str], dict[str, list[Score]]]:
    """Scores by (task, split, size), then by variant in reading order, at the selected settings.

    A variant that was fine-tuned sparse, too, has those scores under a name of their own, after the dense ones.
    """
    groups: dict[tuple[str, str, str], dict[str, list[Score]]] = {}
    place = {name: k for k, name in enumerate(study.variants)}
    for score in sorted(study.scores, key=lambda score: (place[score.variant], score.keep_mask)):
        groups.setdefault((score.task, score.split, score.size), {}).setdefault(score.label, []).append(score)
    return {key: {name: selected(scores) for name, scores in group.items()} for key, group in groups.items()}


def named_dense(names: Iterable[str]) -> str | None:
    """The name that says dense, a plain one first; None without any."""
    found = [name for name in names if name.startswith("dense") or name.endswith("-dense")]
    return min(found, key=lambda name: name != "dense" and not name.endswith("-dense"), default=None)


def baseline_of(group: dict[str, list[Score]]) -> str | None:
    """The dense variant of a group of scores."""
    return named_dense(name for name, scores in group.items() if not scores[0].keep_mask)


def to_dense(ours: Sequence[Score], base: Sequence[Score], metric: str, digits: int) -> str:
    """The difference to dense, paired by the pre-training seed; of means where no seed is common to both."""
    pairs = paired(minus(seed_values(ours, metric), seed_values(base, metric)))
    if pairs is not None and pairs.deviation is not None:
        return f"\n{signed(pairs.mean, digits)} ± {pairs.deviation:.{digits}f} to dense ({pairs.count} pairs)"
    own, dense = (estimate([score.metrics.get(metric) for score in scores]) for scores in (ours, base))
    return f"\n{signed(own.mean - dense.mean, digits)} to dense" if own and dense else ""


def seed_values(scores: Sequence[Score], metric: str) -> dict[int, float]:
    """A metric by pre-training seed, its mean over fine-tuning seeds."""
    return by_seed(
        (score.pretraining_seed, score.metrics.get(metric)) for score in scores if score.pretraining_seed is not None
    )


def metrics_of(group: dict[str, list[Score]]) -> list[str]:
    """The metrics that any of the scores has, in the usual order."""
    present = {metric for scores in group.values() for score in scores for metric in score.metrics}
    return [metric for metric in METRIC_NAMES if metric in present]


def task_title(task: str, split: str, size: str) -> str:
    """A heading for a group of scores."""
    parts = [TASK_NAMES.get(task, task)]
    if split:
        parts.append(split)
    if size:
        parts.append(f"{size} parameters")
    return ", ".join(parts)


def score_tables(study: Study) -> list[Table]:
    """A table a task: variants by metrics, mean ± sample deviation over seeds, with the difference to dense."""
    tables = []
    for (task, split, size), group in score_groups(study).items():
        metrics = metrics_of(group)
        base = baseline_of(group)
        rows = []
        for name, scores in group.items():
            row = [name]
            for metric in metrics:
                value = estimate([score.metrics.get(metric) for score in scores])
                if value is None:
                    row.append("not computed")
                    continue
                digits = 2 if abs(value.mean) >= 10 else 4
                against = to_dense(scores, group[base], metric, digits) if base and name != base else ""
                row.append(value.text(digits) + against)
            rows.append(row)
        synthetic = any(score.synthetic for scores in group.values() for score in scores)
        name = "-".join(part for part in ("scores", task, split, size) if part).replace(" ", "_")
        tables.append(
            Table(
                name,
                f"Scores on {'synthetic data in the form of ' if synthetic else ''}{task_title(task, split, size)}",
                ["variant", *(metric_name(metric) for metric in metrics)],
                rows,
                "On the scale that the official script prints. Settings are selected by validation loss, never by "
                "these scores; mean ± sample deviation (runs). Seeds may differ in what a "
                "selection chose for each. Differences are paired by the pre-training seed.",
                synthetic,
            )
        )
    return tables


def curve_rows(study: Study) -> str:
    """Every step of every run as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            "run",
            "kind",
            "variant",
            "size",
            "seed",
            "step",
            "tokens",
            "seconds",
            "flops",
            "loss",
            "val_loss",
            "tokens_per_s",
        ]
    )
    for run in study.runs:
        validation = dict(run.validation)
        kind = "finetuning" if run.is_finetuning else "pretraining"
        label = [str(run.path), kind, run.variant(), run.size(), run.seed]
        for k, step in enumerate(run.step):
            writer.writerow(
                [
                    *label,
                    step,
                    run.tokens[k],
                    f"{run.seconds[k]:.3f}",
                    run.flops[k],
                    run.loss[k],
                    validation.get(step, ""),
                    run.tokens_per_s[k],
                ]
            )
    return buffer.getvalue()
