"""Writes the report: ``index.html``, one PNG per figure and one CSV per table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spdf_dist.accounting.flops import linears_share
from spdf_dist.base.atomic_files import write_bytes, write_text
from spdf_dist.base.numbers import MINUS
from spdf_dist.config.errors import UserError
from spdf_dist.report import plots, tables
from spdf_dist.report.estimates import paired
from spdf_dist.report.page import EMPTY, TEXTS, Plot, Section
from spdf_dist.report.results import Results
from spdf_dist.report.scores import metric_name
from spdf_dist.report.style import drawing, to_png, to_svg, variant_colours

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
    sections = [*first, *result_sections(results), *last, *record_sections(results)]
    sections = [section for section in sections if section.plots or section.tables or section.intro]
    figures = draw([plot for section in sections for plot in section.plots], out)
    for table in (table for section in sections for table in section.tables):
        write_text(out / f"{table.name}.csv", table.csv())
    if results.runs:
        write_text(out / "curves.csv", tables.curves_csv(results))
    damaged = [f"{text[0].upper()}{text[1:]}." for text in results.damaged.values()]
    warnings = [TEXTS.content["synthetic"] if results.synthetic else "", results.outdated_text(), *damaged]
    names = dict.fromkeys(place.resolve().stem for place in results.workflows or results.folders)
    page = TEXTS.templates.get_template("page.html.j2").render(
        title=f"Sparse pre-training, dense fine-tuning: {', '.join(names)}",
        counts={
            "pre-training run": len(results.pretraining),
            "fine-tuning run": len(results.finetuning),
            "scored output": len(results.scores),
        },
        shares=sorted({f"{linears_share(run.model):.0%}" for run in results.pretraining if run.model}),
        warning=" ".join(filter(None, warnings)),
        cards=cards(results),
        sections=sections,
        figures=figures,
        colours=variant_colours(results.variants),
        command=command,
        EMPTY=EMPTY,
    )
    write_text(out / "index.html", page)
    return out / "index.html"


def draw(plots: Sequence[Plot], out: Path) -> dict[str, str]:
    """Save each figure as PNG, and return the SVG texts by name."""
    svgs = {}
    with drawing():
        for plot in plots:
            figure = plot.draw()
            write_bytes(out / f"{plot.name}.png", to_png(figure))
            svgs[plot.name] = to_svg(figure, plot.name)
    return svgs


def result_sections(results: Results) -> list[Section]:
    """The sections about costs and scores, in reading order."""
    groups, colours = results.score_groups(), variant_colours(results.variants)
    scores = [tables.score_table(group) for group in groups]
    return [
        Section("Summary", tables=[tables.summary_table(results)]),
        Section(
            "Scores",
            plots=[plot for group in groups for plot in plots.score_plot(group, colours)],
            tables=[*scores, TEXTS.table("unattributed", results.unattributed)],
        ),
        Section("Pre-training", plots=plots.pretraining_plots(results)),
        Section("Dense fine-tuning", plots=plots.finetuning_plots(results, keep_mask=False)),
        Section("Sparse fine-tuning", plots=plots.finetuning_plots(results, keep_mask=True)),
        Section("Cost", plots=plots.cost_plots(results)),
    ]


def record_sections(results: Results) -> list[Section]:
    """The sections about runs and jobs."""
    jobs = [tables.jobs_table(root, results) for root in results.workflows]
    return [
        Section("Runs", tables=[tables.runs_table(results), tables.changes_table(results)]),
        Section("Jobs", tables=jobs),
    ]


def cards(results: Results) -> list[tuple[str, str]]:
    """The headline numbers: saved FLOPs and speed of each sparse variant, largest model first.

    A difference in quality is shown only for real data, and with at least two pairs of pre-training seeds.
    """
    boxes = []
    for variant in reversed(results.pretrained_variants()):
        base, which = variant.base, results.name_of(variant.first)
        if base is None or not base.flops or variant.first.is_dense or variant.first.untrained:
            continue
        saved = f"{1 - variant.flops / base.flops:.0%}".replace("-", MINUS)
        boxes.append((saved, f"fewer pre-training FLOPs than dense ({which})"))
        if variant.speed and base.speed:
            ratio = f"{variant.speed / base.speed:.2f}x"
            boxes.append((ratio, f"pre-training speed relative to dense, tokens/s ({which})"))
        if (pairs := paired(variant.losses, base.losses)) and pairs.count > 1:
            what = f"validation loss minus dense, nats per token ({which}), {pairs.count} pairs of seeds"
            boxes.append((pairs.difference_text(), what))
    for group in results.score_groups():
        for row in group.rows:
            metric = group.metrics[0]
            pairs = row.difference(metric)
            if pairs and not any(score.synthetic for score in row.scores):
                what = f"{metric_name(metric)[:-2]} minus dense on {group.task} ({row.title})"
                boxes.append((pairs.difference_text(4), f"{what}, {pairs.count} pairs of seeds"))
    return boxes[:MAX_CARDS]
