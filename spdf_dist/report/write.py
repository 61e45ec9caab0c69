"""Writes the report: ``index.html``, one PNG per figure and one CSV per table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spdf_dist.accounting.flops import linears_share
from spdf_dist.base.atomic_files import write_bytes, write_text
from spdf_dist.config.errors import UserError
from spdf_dist.report.page import Section, render_page
from spdf_dist.report.plots import Plot, result_plots
from spdf_dist.report.results import Results, outdated_text
from spdf_dist.report.scores import by_seed, estimate, metric_name, metrics_of, minus, signed
from spdf_dist.report.style import drawing, to_png, to_svg, variant_colours
from spdf_dist.report.tables import (
    MINUS,
    by_variant,
    changes_table,
    curve_rows,
    dense_baseline,
    finished,
    is_dense,
    jobs_table,
    mean_flops,
    mean_speed,
    ordered,
    runs_table,
    score_baseline,
    score_groups,
    score_tables,
    summary_table,
    unattributed_table,
)

SYNTHETIC = (
    "Fine-tuning data in this report is synthetic: generated from a seeded grammar in the form of E2E's CSV. "
    "Its scores say that the system works. They do not say how good a model is, and compare with nothing published."
)
SECTIONS = ("Scores", "Pre-training", "Dense fine-tuning", "Sparse fine-tuning", "Cost")
MAX_CARDS = 8


def write_report(
    results: Results, out: Path, command: str = "", first: Sequence[Section] = (), last: Sequence[Section] = ()
) -> Path:
    """Write the report into ``out`` and return the path of its page.

    Args:
        results: runs and scores. The page names runs that could not be read.
        out: a folder, which is made if it does not exist.
        command: the command line for the footer of the page.
        first: sections before the report's own.
        last: sections after the report's own results.

    Raises:
        UserError: ``out`` cannot be made, or there is nothing to report.
    """
    if not (results.runs or results.scores or results.unattributed or results.bench or first):
        if results.damaged:
            raise UserError("; ".join(results.damaged.values()))
        places = ", ".join(map(str, results.folders))
        raise UserError(f"{places}: no run (config.yaml with metrics.jsonl) and no scores there or below")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made a folder: {error.strerror}") from None
    runs = [runs_table(results)] if results.runs else []
    if (changes := changes_table(results)) is not None:
        runs.append(changes)
    jobs = [jobs_table(root, results) for root in results.workflows]
    sections = [*first, *own_sections(results), *last, Section("Runs", tables=runs), Section("Jobs", tables=jobs)]
    figures = draw([plot for section in sections for plot in section.plots], out)
    for table in (table for section in sections for table in section.tables):
        write_text(out / f"{table.name}.csv", table.csv())
    if results.runs:
        write_text(out / "curves.csv", curve_rows(results))
    damaged = [f"{text[0].upper()}{text[1:]}." for text in results.damaged.values()]
    warnings = [SYNTHETIC if results.synthetic else "", outdated_text(results), *damaged]
    page = out / "index.html"
    text = render_page(
        title_of(results),
        subtitle_of(results),
        " ".join(filter(None, warnings)),
        cards(results),
        sections,
        figures,
        variant_colours(results.variants),
        f"Made by: {command}" if command else "",
    )
    write_text(page, text)
    return page


def draw(plots: Sequence[Plot], out: Path) -> dict[str, str]:
    """Save each figure as PNG, and return the SVG texts by name."""
    svgs = {}
    with drawing():
        for plot in plots:
            figure = plot.draw()
            write_bytes(out / f"{plot.name}.png", to_png(figure))
            svgs[plot.name] = to_svg(figure, plot.name)
    return svgs


def own_sections(results: Results) -> list[Section]:
    """The sections about runs and scores, in reading order."""
    found = {title: Section(title) for title in SECTIONS}
    found["Scores"].tables += score_tables(results)
    if results.unattributed:
        found["Scores"].tables.append(unattributed_table(results))
    for plot in result_plots(results):
        found[plot.section].plots.append(plot)
    return [Section("Summary", tables=[summary_table(results)] if results.pretraining else []), *found.values()]


def title_of(results: Results) -> str:
    """The page's title."""
    places = results.workflows or results.folders
    names = ", ".join(dict.fromkeys(place.resolve().stem for place in places))
    return f"Sparse pre-training, dense fine-tuning: {names}"


def subtitle_of(results: Results) -> str:
    """The numbers of runs and scores in the report, on one line."""
    parts = []
    for count, what in (
        (len(results.pretraining), "pre-training run"),
        (len(results.finetuning), "fine-tuning run"),
        (len(results.scores), "scored output"),
    ):
        if count:
            parts.append(f"{count} {what}{'s' if count > 1 else ''}")
    shares = sorted({f"{linears_share(run.config.model):.0%}" for run in results.pretraining})
    if shares:
        parts.append(f"linear layers carry {' and '.join(shares)} of the dense model's FLOPs")
    return " · ".join(parts)


def cards(results: Results) -> list[tuple[str, str]]:
    """The headline numbers: saved FLOPs and speed of each sparse variant, largest model first.

    A difference in quality is shown only for real data, and with at least two pairs of pre-training seeds.
    """
    groups = by_variant(ordered(results, results.pretraining)[::-1])
    several = len({size for size, _ in groups}) > 1
    boxes = []
    for (size, name), members in groups.items():
        base = dense_baseline(groups, size, name)
        if not base or is_dense(members[0]) or members[0].untrained or not mean_flops(base):
            continue
        runs, which = finished(members), f"{name}, {size}" if several else name
        saved = 1 - mean_flops(runs) / mean_flops(base)
        boxes.append((f"{saved:.0%}".replace("-", MINUS), f"fewer pre-training FLOPs than dense ({which})"))
        ours, theirs = mean_speed(runs), mean_speed(base)
        if ours and theirs:
            boxes.append((f"{ours / theirs:.2f}x", f"dense's tokens per second in pre-training ({which})"))
        losses = [by_seed((run.seed, run.final_validation) for run in these) for these in (runs, base)]
        boxes += difference_card(minus(*losses), 3, f"validation loss against dense, nats per token ({which})")
    for (task, _, _), group in score_groups(results).items():
        metric = next(iter(metrics_of(score for scores in group.values() for score in scores)), None)
        for name, scores in group.items():
            base_scores = score_baseline(group, name)
            if metric is None or not base_scores or any(score.synthetic for score in scores):
                continue
            values = [
                by_seed((s.pretraining_seed, s.metrics.get(metric)) for s in these) for these in (scores, base_scores)
            ]
            boxes += difference_card(minus(*values), 4, f"{metric_name(metric)[:-2]} against dense on {task} ({name})")
    return boxes[:MAX_CARDS]


def difference_card(pairs: dict[int, float], digits: int, label: str) -> list[tuple[str, str]]:
    """A box with the mean of paired differences; empty with fewer than two pairs."""
    value = estimate(pairs.values())
    if value is None or value.deviation is None:
        return []
    text = f"{signed(value.mean, digits)} ± {value.deviation:.{digits}f}"
    return [(text, f"{label}, {value.count} pairs of seeds")]
