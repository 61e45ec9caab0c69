"""Writes the report: ``index.html``, a PNG a figure, a CSV a table."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from spdf_dist.accounting.flops import linears_share
from spdf_dist.base.atomic_files import write_bytes
from spdf_dist.config.errors import UserError
from spdf_dist.report.evidence import CURVES, CurvePoint, Evidence, Row, read_evidence, to_csv
from spdf_dist.report.evidence_tables import SECTION as EVIDENCE_SECTION
from spdf_dist.report.evidence_tables import (
    evidence_plots,
    evidence_tables,
    markdown,
    missing_text,
    page_with,
    state_text,
    verdict_lines,
)
from spdf_dist.report.jobs import all_jobs
from spdf_dist.report.page import Section, render_page
from spdf_dist.report.paper_tables import paper_plots, paper_tables
from spdf_dist.report.plots import Plot, study_plots
from spdf_dist.report.scores import estimate, metric_name
from spdf_dist.report.study import EVIDENCE_ROWS, Study, outdated_text, read_study
from spdf_dist.report.style import drawing, to_png, to_svg, variant_colours
from spdf_dist.report.tables import (
    MINUS,
    Table,
    baseline_of,
    by_variant,
    curve_rows,
    dense_baselines,
    finished,
    is_dense,
    mean_final,
    mean_flops,
    metrics_of,
    ordered,
    score_groups,
    score_tables,
    signed,
    summary_table,
)

SYNTHETIC = (
    "Fine-tuning data in this report is synthetic: generated from a seeded grammar in the form of E2E's CSV. "
    "Its scores say that the system works, not how good a model is, and compare with nothing published."
)


def write_report(folders: Sequence[Path], out: Path, markdown_page: Path | None = None) -> Path:
    """Write the report on ``folders`` into ``out`` and return the path of its page.

    ``markdown_page``: a page with marks, between which the results of an evidence study are put. Raises UserError for a
    folder without results, for an ``out`` that cannot be made, and for a page without marks.
    """
    return write_study_report(read_study(folders), out, markdown_page)


def write_study_report(study: Study, out: Path, markdown_page: Path | None = None) -> Path:
    """``write_report`` of a study that has been read; runs that could not be read are named on the page."""
    folders = study.folders
    evidence = read_evidence(study, dict.fromkeys([out, *study.kept]))
    command = "spdf report " + shlex.join([*map(str, folders), "--out", str(out)])
    if markdown_page is not None:
        command += f" --markdown {shlex.quote(str(markdown_page))}"
        results = evidence_markdown(evidence, out, markdown_page, command)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made a folder: {error.strerror}") from None
    tables = ([summary_table(study)] if study.pretraining else []) + score_tables(study)
    plots = study_plots(study)
    reference = paper_tables(study)
    reference_plots = paper_plots(study)
    own_evidence = evidence_plots(evidence)
    drawn = draw(plots + reference_plots + own_evidence, out)
    if study.runs:
        write(out / "curves.csv", curve_rows(study))
    sections = [*evidence_sections(evidence, own_evidence, drawn), *own_sections(plots, tables, drawn)]
    figures = [(plot.name, drawn[plot.name], plot.caption) for plot in reference_plots]
    nothing_ours = not study.bench and all(score.synthetic for score in study.scores)
    sections.append(Section("The paper beside ours", PAPER_INTRO, figures, reference, folded=nothing_ours))
    sections.append(Section("Runs", (), [], [runs_table(study)] if study.runs else []))
    sections.append(Section("Jobs", (), [], [jobs_table(root, study) for root in study.workflows]))
    for table in (table for section in sections for table in section.tables):
        write(out / f"{table.name}.csv", table.csv())
    if evidence.rows:
        write(out / EVIDENCE_ROWS, to_csv(evidence.rows, Row))
        write(out / CURVES, to_csv(evidence.curves, CurvePoint))
    if markdown_page is not None:
        write(markdown_page, results)
    page = out / "index.html"
    write(
        page,
        render_page(
            title_of(study),
            subtitle_of(study),
            " ".join(filter(None, (SYNTHETIC if study.synthetic else "", outdated_text(study), *damaged_lines(study)))),
            cards(study),
            sections,
            variant_colours(study.variants),
            f"Made by: {command}",
        ),
    )
    return page


PAPER_INTRO = (
    "Printed figures of SPDF (appendix and blog) with ours next to them. What was not run says so. Ours are models of "
    "that shape, pre-trained on as many tokens and fine-tuned dense; controls and other patterns are in the scores.",
)


def write(path: Path, content: str | bytes) -> None:
    """Write a file aside and move it into place."""
    write_bytes(path, content if isinstance(content, bytes) else content.encode())


def draw(plots: Sequence[Plot], out: Path) -> dict[str, str]:
    """Save each figure as PNG and return its SVG by name."""
    svgs = {}
    with drawing():
        for plot in plots:
            figure = plot.draw()
            write(out / f"{plot.name}.png", to_png(figure))
            svgs[plot.name] = to_svg(figure, plot.name)
    return svgs


def evidence_sections(evidence: Evidence, plots: Sequence[Plot], drawn: dict[str, str]) -> list[Section]:
    """The section on the paper's hypotheses, where the folders hold a study of them."""
    if not evidence.rows:
        return []
    intro = [state_text(evidence), *verdict_lines(evidence), *(f"Not done: {line}." for line in missing_text(evidence))]
    figures = [(plot.name, drawn[plot.name], plot.caption) for plot in plots]
    return [Section(EVIDENCE_SECTION, intro, figures, evidence_tables(evidence))]


def evidence_markdown(evidence: Evidence, out: Path, page: Path, command: str) -> str:
    """The page with the study's results in it. Raises UserError."""
    if not evidence.rows:
        raise UserError("--markdown: there is no evidence study in the folders (variants called SIZE-dense, SIZE-...)")
    figures = Path(os.path.relpath(out.resolve(), page.resolve().parent)).as_posix()
    return page_with(page, markdown(evidence, figures, command))


def own_sections(plots: Sequence[Plot], tables: Sequence[Table], drawn: dict[str, str]) -> list[Section]:
    """The sections on our own runs, in reading order."""
    sections = [Section("Summary", (), [], [table for table in tables if table.name == "summary"])]
    scores = Section("Scores", (), [], [table for table in tables if table.name != "summary"])
    by_title = {"Scores": scores}
    for plot in plots:
        section = by_title.setdefault(plot.section, Section(plot.section))
        section.figures.append((plot.name, drawn[plot.name], plot.caption))
    for title in ("Scores", "Pre-training", "Dense fine-tuning", "Sparse fine-tuning", "Cost"):
        if title in by_title:
            sections.append(by_title[title])
    return [section for section in sections if section.figures or section.tables]


def title_of(study: Study) -> str:
    """The page's title."""
    places = study.workflows or study.folders
    names = ", ".join(dict.fromkeys(place.resolve().stem for place in places))
    return f"Sparse pre-training, dense fine-tuning: {names}"


def subtitle_of(study: Study) -> str:
    """What is in the report, in one line."""
    parts = []
    for count, one, many in (
        (len(study.pretraining), "pre-training run", "pre-training runs"),
        (len(study.finetuning), "fine-tuning run", "fine-tuning runs"),
        (len(study.scores), "scored output", "scored outputs"),
    ):
        if count:
            parts.append(f"{count} {one if count == 1 else many}")
    shares = sorted({f"{linears_share(run.config.model):.0%}" for run in study.pretraining})
    if shares:
        parts.append(f"linear layers carry {' and '.join(shares)} of the dense model's FLOPs")
    return " · ".join(parts)


def cards(study: Study) -> list[tuple[str, str]]:
    """The headline: of each sparse variant, largest model first, FLOPs saved, loss and first score against dense."""
    groups = by_variant(ordered(study, study.pretraining)[::-1])
    boxes = []
    baselines = dense_baselines(groups)
    for (size, name), members in groups.items():
        if size not in baselines or is_dense(members[0]) or members[0].untrained:
            continue
        runs, base = finished(members), finished(groups[size, baselines[size]])
        if runs[0].unfinished or base[0].unfinished or not mean_flops(base):
            continue
        saved = 1 - mean_flops(runs) / mean_flops(base)
        which = f"{name}, {size}" if len(baselines) > 1 else name
        boxes.append((f"{saved:.0%}".replace("-", MINUS), f"fewer pre-training FLOPs than dense ({which})"))
        ours, theirs = mean_final(runs), mean_final(base)
        if ours is not None and theirs is not None:
            boxes.append((signed(ours - theirs), f"validation loss against dense, nats a token ({which})"))
    for (task, _, _), group in score_groups(study).items():
        first = baseline_of(group)
        metric = next(iter(metrics_of(group)), None)
        for name, scores in group.items():
            if first is None or metric is None or name in (first, "untrained"):
                continue
            value = estimate([score.metrics.get(metric) for score in scores])
            reference = estimate([score.metrics.get(metric) for score in group[first]])
            if value and reference:
                digits = 2 if abs(value.mean) >= 10 else 4
                synthetic = ", synthetic" if scores[0].synthetic else ""
                label = f"{metric_name(metric)[:-2]} against dense on {task}{synthetic} ({name})"
                boxes.append((signed(value.mean - reference.mean, digits), label))
    return boxes[:8]


def damaged_lines(study: Study) -> list[str]:
    """A sentence for each run that could not be read."""
    return [f"{text[0].upper()}{text[1:]}." for text in study.damaged.values()]


def jobs_table(root: Path, study: Study) -> Table:
    """How each job of a workflow ended; jobs that failed say why."""
    outdated = study.outdated.get(root.resolve(), {})
    rows = []
    for job in (job for job in all_jobs(root) if job.kind != "report"):
        manifest = job.manifest()
        rows.append(
            [
                job.id,
                job.kind,
                str(manifest.get("status") or "not finished"),
                str(manifest.get("attempts") or "–"),
                str(manifest.get("started") or "–"),
                str(manifest.get("ended") or "–"),
                str(manifest.get("reason") or "")
                + (f"left out: {outdated[job.id]} was made anew since" if job.id in outdated else ""),
            ]
        )
    return Table(
        f"jobs-{root.resolve().name}",
        f"Jobs of {root.resolve().name}",
        ["job", "kind", "state", "attempts", "started", "ended", "reason"],
        rows,
        labels=3,
    )


def runs_table(study: Study) -> Table:
    """Where everything came from."""
    rows = []
    for run in study.runs:
        kind = "fine-tuning" if run.is_finetuning else "pre-training"
        parallel = run.tree.get("parallel") or {}
        training = run.tree.get("training") or {}
        rows.append(
            [
                run.variant(),
                kind,
                run.size(),
                str(run.seed),
                f"{run.step[-1]:,}" if run.step else "0",
                f"{training.get('lr', '–')}",
                f"TP{parallel.get('tensor', 1)} ZeRO-{parallel.get('zero_stage', 1)} {training.get('precision', '')}",
                str(run.skipped),
                str(run.path),
            ]
        )
    return Table(
        "runs",
        "Runs of this report",
        ["variant", "kind", "parameters", "seed", "steps", "peak lr", "layout", "skipped steps", "folder"],
        rows,
        "The same seed means the same initial weights, data order and (with equal sparsity seed) mask.",
        labels=2,
    )
