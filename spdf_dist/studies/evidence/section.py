"""The evidence study in the report and in pages of the documentation."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from spdf_dist.base.numbers import short_count
from spdf_dist.config.errors import UserError
from spdf_dist.report.page import NOT_RUN, Section
from spdf_dist.studies.evidence.budgets import law_section
from spdf_dist.studies.evidence.losses import easy_tasks_lose_less, little_is_lost, lost_plot, tuned_table
from spdf_dist.studies.evidence.methods import (
    METHODS,
    STATIC,
    against_static,
    blocks_lose_little,
    equal_plot,
    equal_table,
    reading,
)
from spdf_dist.studies.evidence.rates import rate_table, rate_text, rates_plot
from spdf_dist.studies.evidence.rows import DONE, STUDY, TEXTS, Evidence
from spdf_dist.studies.evidence.rules import MARGIN, SENTENCES, Hypothesis, verdict_table
from spdf_dist.studies.evidence.sizes import large_models_lose_less, size_table, sizes_plot

FIELD = re.compile(r"(<!-- evidence ([\w-]+) -->).*?(<!-- end -->)", re.DOTALL)


def hypotheses(evidence: Evidence) -> list[Hypothesis]:
    """The study's hypotheses with their findings."""
    return [
        Hypothesis("H1", little_is_lost(evidence)),
        Hypothesis("H2", easy_tasks_lose_less(evidence)),
        Hypothesis("H3", large_models_lose_less(evidence)),
        Hypothesis("Blocks", blocks_lose_little(evidence)),
    ]


def parts(evidence: Evidence) -> list[Section]:
    """The results in reading order; none without a study."""
    if evidence.rows.empty:
        return []
    h1, h2, h3, blocks = found = hypotheses(evidence)
    equal = [equal_table(evidence), blocks.table]
    return [
        Section("Verdicts", tables=[verdict_table(found)]),
        Section("H1: little is lost", (), lost_plot(evidence), [h1.table, tuned_table(evidence)]),
        Section("H2: easy tasks lose less", tables=[h2.table]),
        Section("H3: large models lose less", (), sizes_plot(evidence), [h3.table, size_table(evidence)]),
        Section("Learning rates", [rate_text(evidence)], rates_plot(evidence), [rate_table(evidence)]),
        Section("Methods and blocks at equal FLOPs", (), equal_plot(evidence), equal),
        law_section(evidence),
    ]


def state_text(evidence: Evidence) -> str:
    """Paragraphs on how much of the study has run, on which commit, and what has not run or failed."""
    rows, done = evidence.rows, evidence.done
    seconds = (done.steps * done.step_seconds).sum()
    made = sorted({f"commit {row.commit[:10]} ({row.versions})" for row in done.itertuples() if row.commit})
    waiting = rows[rows.state == NOT_RUN].groupby("job", sort=False).size().to_dict()
    failed = list(rows[~rows.state.isin([DONE, NOT_RUN])].itertuples())
    return SENTENCES.state(len(rows), len(done), seconds, made, waiting, failed, evidence.note)


def evidence_section(evidence: Evidence, found: Sequence[Section]) -> list[Section]:
    """The section of the report; empty without a study."""
    if not found:
        return []
    plots = [plot for part in found for plot in part.plots]
    tables = [table for part in found for table in part.tables]
    texts = [text for part in found for text in part.intro if text]
    return [Section("Evidence", [*state_text(evidence).split("\n\n"), *texts], plots, tables)]


def field_texts(evidence: Evidence) -> dict[str, str]:
    """The sentences for the fields of the page of methods, by name."""
    static, rigl = evidence.at(*METHODS[STATIC]), evidence.at("rigl")
    size = short_count(static.parameters.max()) if len(static) else ""
    values = {field: against_static(evidence, name) for field, name in STUDY["fields"].items()}
    blocks = [row for row in blocks_lose_little(evidence) if row.value]
    return {
        **{field: SENTENCES.method(value, reading(value), size) for field, value in values.items()},
        "blocks": SENTENCES.blocks(blocks, size, MARGIN),
        "rigl-cost": SENTENCES.update_cost((rigl.update_seconds / rigl.step_seconds).dropna(), size),
    }


def filled_pages(
    pages: Sequence[Path], evidence: Evidence, found: Sequence[Section], out: Path, command: str
) -> dict[Path, str]:
    """The texts of pages with the study's results in their fields, `<!-- evidence NAME -->...<!-- end -->`.

    Raises UserError when there is no study, or when a page cannot be read, has no field, or one of an unknown name.
    """
    if pages and not found:
        raise UserError("--markdown: there is no evidence study in the folders (see configs/workflows/study_cpu.yaml)")
    filled, template = {}, TEXTS.templates.get_template("results.md.j2")
    for page in pages:
        figures = Path(os.path.relpath(out.resolve(), page.resolve().parent)).as_posix()
        results = template.render(state=state_text(evidence), sections=found, figures=figures, command=command)
        filled[page] = fill(page, {"results": results, **field_texts(evidence)})
    return filled


def fill(page: Path, texts: Mapping[str, str]) -> str:
    """The text of a page with ``texts`` in its fields."""
    try:
        content = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--markdown {page}: cannot be read: {error}") from None
    names = [match[2] for match in FIELD.finditer(content)]
    unknown = [name for name in names if name not in texts]
    if unknown or not names:
        wrong = f"no result is called {unknown[0]}" if unknown else "no field <!-- evidence NAME --><!-- end -->"
        raise UserError(f"--markdown {page}: {wrong}; the names are {', '.join(texts)}")
    return FIELD.sub(lambda match: match[1] + texts[match[2]] + match[3], content)
