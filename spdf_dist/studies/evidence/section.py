"""The evidence study in the report and in pages of the documentation."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from spdf_dist.base.numbers import duration, short_count
from spdf_dist.config.errors import UserError
from spdf_dist.report.page import NOT_RUN, Section, Table
from spdf_dist.studies.evidence.law import fit_law, law_points
from spdf_dist.studies.evidence.plots import TITLE, equal_plot, law_plot, lost_plot, rates_plot, sizes_plot
from spdf_dist.studies.evidence.rows import DONE, Evidence
from spdf_dist.studies.evidence.rules import MARGIN, STATIC, against_static, blocks_lose_little, hypotheses
from spdf_dist.studies.evidence.tables import (
    budget_table,
    equal_table,
    hypothesis_table,
    interval_text,
    law_tables,
    law_text,
    rate_table,
    rate_text,
    reading,
    size_table,
    tuned_table,
    verdict_table,
)

FIELD = re.compile(r"(<!-- evidence ([\w-]+) -->).*?(<!-- end -->)", re.DOTALL)


def state_lines(evidence: Evidence) -> list[str]:
    """How much of the study has run, on which commit, and what has not run or failed."""
    done = [row for row in evidence.rows if row.state == DONE]
    seconds = sum((row.steps or 0) * (row.step_seconds or 0.0) for row in done)
    cost = f" Their steps took {duration(seconds)} of one core." if seconds else ""
    lines = [f"{len(done)} of {len(evidence.rows)} training jobs have run.{cost}"]
    made = sorted({f"commit {row.commit[:10]} ({row.versions})" for row in done if row.commit})
    lines += [f"Made with {'; '.join(made)}."] if made else []
    waiting = [row.job for row in evidence.rows if row.state == NOT_RUN]
    if waiting:
        counts = ", ".join(f"{job} ({waiting.count(job)})" for job in dict.fromkeys(waiting))
        lines.append(f"Not run: {counts}.")
    failed = [row for row in evidence.rows if row.state not in (DONE, NOT_RUN)]
    lines += [f"{row.job} {row.variant} {row.cell} seed {row.seed} {row.state}." for row in failed]
    return [*lines, *filter(None, [evidence.note])]


def parts(evidence: Evidence) -> list[Section]:
    """The results in reading order."""
    found = {one.name: one for one in hypotheses(evidence)}
    tables = {name: hypothesis_table(one) for name, one in found.items()}
    law = fit_law(law_points(evidence))
    last = Section("Scaling law", ["Too few points have run for a fit."])
    if law is not None:
        fitted, points = law_tables(evidence, law)
        of_law = [fitted, *budget_table(evidence, law), points]
        last = Section("Scaling law", [law_text(evidence, law)], law_plot(evidence, law), of_law)
    equal = [equal_table(evidence), tables["Blocks"]]
    return [
        Section("Verdicts", tables=[verdict_table(list(found.values()))]),
        Section("H1: little is lost", (), lost_plot(evidence), [tables["H1"], tuned_table(evidence)]),
        Section("H2: easy tasks lose less", tables=[tables["H2"]]),
        Section("H3: large models lose less", (), sizes_plot(evidence), [tables["H3"], size_table(evidence)]),
        Section("Learning rates", [rate_text(evidence)], rates_plot(evidence), [rate_table(evidence)]),
        Section("Methods and blocks at equal FLOPs", (), equal_plot(evidence), equal),
        last,
    ]


def evidence_section(evidence: Evidence, found: Sequence[Section]) -> list[Section]:
    """The section of the report; empty without a study."""
    if not evidence.rows:
        return []
    plots = [plot for part in found for plot in part.plots]
    tables = [table for part in found for table in part.tables if table.rows]
    texts = [text for part in found for text in part.intro if text]
    return [Section(TITLE, [*state_lines(evidence), *texts], plots, tables)]


def markdown_table(table: Table) -> str:
    """A table as Markdown."""
    lines = ["| " + " | ".join(table.header) + " |", "|" + "---|" * len(table.header)]
    for row in table.rows:
        cells = [cell.replace("|", "\\|").replace("\n", "<br>") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def results_markdown(evidence: Evidence, found: Sequence[Section], figures: str, command: str) -> str:
    """The results as Markdown. ``figures`` is the path of the figures, relative to the page."""
    lines = ["", f"Made by `{command}`.", "", *(text for line in state_lines(evidence) for text in (line, ""))]
    for part in found:
        lines += [f"### {part.title}", "", *(text for line in part.intro if line for text in (line, ""))]
        for plot in part.plots:
            lines += [f"![{plot.caption}]({figures}/{plot.name}.png)", ""]
        for table in (table for table in part.tables if table.rows):
            lines += [f"**{table.title}**", ""] if table.title != part.title else []
            lines += [markdown_table(table), "", *([table.note, ""] if table.note else [])]
    return "\n".join(lines)


METHOD_FIELDS = {"rigl": "RigL 75%", "gmp": "GMP to 75%", "wide": "wide, 75%", "variable": "variable, 90% then dense"}
"""Names of the fields about methods at equal FLOPs, and of the methods."""


def field_texts(evidence: Evidence) -> dict[str, str]:
    """The sentences for the fields of the page of methods, by name."""
    static = evidence.of(*STATIC)
    size = short_count(static[0].parameters or 0) if static else ""
    texts = {}
    for field, name in METHOD_FIELDS.items():
        value = against_static(evidence, name)
        difference = interval_text(value).replace("\n", ", ")
        texts[field] = (
            f"Measured at equal FLOPs and {size} parameters ([Evidence](evidence.md)): {difference} nats against "
            f"static 75%, {reading(value)}."
            if value
            else "Not measured."
        )
    blocks = [
        f"{row.labels[0].removeprefix('75%, ')} {interval_text(row.value).replace(chr(10), ', ')}, {row.verdict}"
        for row in blocks_lose_little(evidence)
        if row.value
    ]
    texts["blocks"] = (
        f"Measured at 75% and {size} parameters ([Evidence](evidence.md)), loss against unstructured masks in nats, "
        f"with the verdict on a loss below +{MARGIN}: {'; '.join(blocks)}."
        if blocks
        else "The effect of blocks on the loss is not measured."
    )
    updates = [
        row.update_seconds / row.step_seconds for row in evidence.of("rigl") if row.update_seconds and row.step_seconds
    ]
    texts["rigl-cost"] = (
        f"Measured at {size} parameters on a CPU: an update takes the time of {mean(updates):.1f} steps."
        if updates
        else "Its time is not measured."
    )
    return texts


def filled_pages(
    pages: Sequence[Path], evidence: Evidence, found: Sequence[Section], out: Path, command: str
) -> dict[Path, str]:
    """The texts of pages with the study's results in their fields, `<!-- evidence NAME -->...<!-- end -->`.

    Raises UserError when there is no study, or when a page cannot be read, has no field, or one of an unknown name.
    """
    if pages and not evidence.rows:
        raise UserError("--markdown: there is no evidence study in the folders (see configs/workflows/study_cpu.yaml)")
    filled = {}
    for page in pages:
        try:
            content = page.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--markdown {page}: cannot be read: {error}") from None
        figures = Path(os.path.relpath(out.resolve(), page.resolve().parent)).as_posix()
        texts = {"results": results_markdown(evidence, found, figures, command) + "\n", **field_texts(evidence)}
        names = [match[2] for match in FIELD.finditer(content)]
        unknown = [name for name in names if name not in texts]
        if unknown or not names:
            wrong = f"no result is called {unknown[0]}" if unknown else "no field <!-- evidence NAME --><!-- end -->"
            raise UserError(f"--markdown {page}: {wrong}; the names are {', '.join(texts)}")
        pieces = FIELD.split(content)  # text, begin, name, end, text, ...
        for k in range(2, len(pieces), 4):
            pieces[k] = texts[pieces[k]]
        filled[page] = "".join(pieces)
    return filled
